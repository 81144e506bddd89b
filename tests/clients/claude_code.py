"""Claude Code, headless, with a scripted model on loopback in place of its own.

Run with the folder of its package as the third argument.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from loopback import Loopback, serve
from scripted import script

PROGRAM, CONFIG, HOME = sys.argv[1:4]
PREFIX = "mcp__code__"
seen, tools, calls = {}, [], []
model = script(seen)


def blocks_of(result):
    content = result.get("content", "")
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [(block["type"], block.get("text", "")) for block in content]


def answer(request):
    """The blocks of the model's next message."""
    global calls
    results = {}
    for message in request["messages"]:
        for block in message["content"] if isinstance(message["content"], list) else []:
            if block["type"] == "tool_result":
                results[block["tool_use_id"]] = blocks_of(block)
    try:
        made = model.send([results[id] for id in calls] if calls else None)
    except StopIteration:
        return [{"type": "text", "text": "done"}]
    calls = [f"toolu_{len(results)}_{n}" for n in range(len(made))]
    return [
        {"type": "tool_use", "id": id, "name": PREFIX + tool, "input": arguments}
        for id, (tool, arguments) in zip(calls, made)]


class Model(Loopback):
    def do_POST(self):
        request = self.body()
        offered = [tool["name"] for tool in request.get("tools", [])]
        of_ours = [name.removeprefix(PREFIX) for name in offered if name.startswith(PREFIX)]
        if "count_tokens" in self.path:
            return self.reply(json.dumps({"input_tokens": 1}))
        # Requests without our tools are the client's own: titles, summaries.
        blocks = [{"type": "text", "text": "ok"}]
        if of_ours:
            tools[:] = tools or of_ours
            blocks = answer(request)
        reason = "tool_use" if blocks[0]["type"] == "tool_use" else "end_turn"
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": request["model"], "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}
        if not request.get("stream"):
            return self.reply(json.dumps({**message, "content": blocks, "stop_reason": reason}))
        events = [{"type": "message_start", "message": message}]
        for index, block in enumerate(blocks):
            empty = {**block, "text": ""} if block["type"] == "text" else {**block, "input": {}}
            delta = (
                {"type": "text_delta", "text": block["text"]} if block["type"] == "text"
                else {"type": "input_json_delta", "partial_json": json.dumps(block["input"])})
            events += [
                {"type": "content_block_start", "index": index, "content_block": empty},
                {"type": "content_block_delta", "index": index, "delta": delta},
                {"type": "content_block_stop", "index": index}]
        events += [
            {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None},
             "usage": {"output_tokens": 1}},
            {"type": "message_stop"}]
        self.reply_events(events)


def main():
    address = serve(Model)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "mcp.json"
        config.write_text(json.dumps({"mcpServers": {"code": {"command": PROGRAM, "args": ["mcp", "--linger", "0ms", "--config", CONFIG]}}}))
        environment = {
            **os.environ, "HOME": folder, "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_BASE_URL": address,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}
        done = subprocess.run(
            [f"{HOME}/node_modules/.bin/claude", "-p", "go", "--mcp-config", str(config), "--strict-mcp-config",
             "--allowedTools", f"{PREFIX}exec,{PREFIX}wait"],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    if "after" not in seen:
        sys.exit(f"{done.returncode} {done.stdout[-1000:]} {done.stderr[-1000:]} {list(seen)}")
    seen.update(tools=sorted(set(tools)), list_ms=None)
    print("SEEN " + json.dumps(seen))


main()
