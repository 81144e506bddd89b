"""A scripted model behind the chat completions of OpenAI's wire."""

import json
import sys

from loopback import Loopback, serve
from scripted import script


class Chat:
    """The model of a client that offers the gateway's tools under a prefix."""

    def __init__(self, prefix, blocks_of):
        self.seen, self.tools, self.calls = {}, [], []
        self.prefix, self.blocks_of = prefix, blocks_of
        self.model = script(self.seen)

    def message(self, request):
        """The model's next message."""
        offered = [tool["function"]["name"] for tool in request.get("tools", [])]
        ours = [name.removeprefix(self.prefix) for name in offered if name.startswith(self.prefix)]
        # Requests without our tools are the client's own: titles, summaries.
        if not ours:
            return {"role": "assistant", "content": "ok"}
        self.tools = self.tools or ours
        results, last = {}, []
        for message in request["messages"]:
            if message["role"] == "tool":
                last = results[message["tool_call_id"]] = self.blocks_of(message["content"])
            elif message["role"] == "user" and isinstance(message["content"], list):
                # Results have no images on this wire: a message of the user has them.
                last += [("image", "") for part in message["content"] if part["type"] == "image_url"]
        try:
            made = self.model.send([results[id] for id in self.calls] if self.calls else None)
        except StopIteration:
            return {"role": "assistant", "content": "done"}
        self.calls = [f"call_{len(results)}_{n}" for n in range(len(made))]
        return {"role": "assistant", "content": None, "tool_calls": [
            {"id": id, "index": index, "type": "function",
             "function": {"name": self.prefix + tool, "arguments": json.dumps(arguments)}}
            for index, (id, (tool, arguments)) in enumerate(zip(self.calls, made))]}

    def serve(self):
        """Serves the model; returns the address."""
        chat = self

        class Handler(Loopback):
            def do_POST(self):
                request = self.body()
                message = chat.message(request)
                reason = "tool_calls" if message.get("tool_calls") else "stop"
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
                common = {"id": "c", "created": 1, "model": request.get("model", "")}
                if not request.get("stream"):
                    choice = {"index": 0, "message": message, "finish_reason": reason}
                    return self.reply(json.dumps(
                        {**common, "object": "chat.completion", "choices": [choice], "usage": usage}))
                chunk = {**common, "object": "chat.completion.chunk"}
                self.reply_events([
                    {**chunk, "choices": [{"index": 0, "delta": message, "finish_reason": None}]},
                    {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "usage": usage}],
                    end="data: [DONE]\n\n")

        return serve(Handler)

    def report(self, done):
        """Prints what the model saw, or how the client ended before the scenario did."""
        if "after" not in self.seen:
            sys.exit(f"{done.returncode} {done.stdout[-1500:]} {done.stderr[-1500:]} {list(self.seen)} {self.tools}")
        self.seen.update(tools=sorted(set(self.tools)), list_ms=None)
        print("SEEN " + json.dumps(self.seen))
