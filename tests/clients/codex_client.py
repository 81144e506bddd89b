"""The Codex CLI, headless, with a scripted model on loopback in place of its own.

Run with the folder of its package as the third argument.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from scripted import script

PROGRAM, CONFIG, HOME = sys.argv[1:4]
seen, tools, calls = {}, [], []
model = script(seen)


def blocks_of(output):
    """What the model is shown of a result. Codex writes MCP results as JSON into a text."""
    kinds = {"input_text": "text", "input_image": "image", "text": "text", "image": "image"}
    if isinstance(output, str):
        output = [{"type": "text", "text": output}]
    blocks = [(kinds.get(one["type"], one["type"]), one.get("text", "")) for one in output]
    # The first text is Codex's own: how long the call took.
    return blocks[1:] if blocks[0][1].startswith("Wall time") else blocks


def answer(request):
    """The items of the model's next turn."""
    global calls
    results = {
        item["call_id"]: blocks_of(item["output"]) for item in request["input"] if item["type"] == "function_call_output"}
    try:
        made = model.send([results[id] for id in calls] if calls else None)
    except StopIteration:
        return [{"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "done"}]}]
    calls = [f"call_{len(results)}_{n}" for n in range(len(made))]
    items = []
    for id, (tool, arguments) in zip(calls, made):
        namespace, name = tools_by_name[tool]
        item = {"type": "function_call", "id": id, "call_id": id, "name": name, "arguments": json.dumps(arguments)}
        items.append({**item, "namespace": namespace} if namespace else item)
    return items


tools_by_name = {}


def learn(offered):
    """The gateway's tools among those that the model is offered."""
    for tool in offered:
        if tool.get("type") == "namespace" and "code" in tool["name"]:
            for one in tool["tools"]:
                tools_by_name[one["name"]] = (tool["name"], one["name"])
        elif tool.get("name", "").startswith("mcp__code__"):
            tools_by_name[tool["name"].removeprefix("mcp__code__")] = (None, tool["name"])


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, kind, text):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.reply("application/json", '{"models": [], "data": []}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if not self.path.endswith("/responses"):
            return self.reply("application/json", "{}")
        if not tools_by_name:
            learn(body.get("tools", []))
        if not tools_by_name:
            names = [tool.get("name") for tool in body.get("tools", [])]
            items = [{"type": "message", "id": "m", "role": "assistant", "content": [
                {"type": "output_text", "text": f"no tools of the gateway among {names}"}]}]
        else:
            items = answer(body)
        usage = {"input_tokens": 0, "input_tokens_details": None, "output_tokens": 0,
                 "output_tokens_details": None, "total_tokens": 0}
        events = [{"type": "response.created", "response": {"id": "r"}}]
        events += [
            {"type": "response.output_item.done", "output_index": index, "item": item} for index, item in enumerate(items)]
        events.append({"type": "response.completed", "response": {"id": "r", "usage": usage}})
        self.reply("text/event-stream", "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events))


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(f"""
model = "gpt-5.1-codex"
model_provider = "local"
approval_policy = "never"
sandbox_mode = "danger-full-access"
[model_providers.local]
name = "local"
base_url = "http://127.0.0.1:{server.server_address[1]}/v1"
wire_api = "responses"
requires_openai_auth = false
supports_websockets = false
[mcp_servers.code]
command = {json.dumps(PROGRAM)}
args = ["mcp", "--config", {json.dumps(CONFIG)}]
env_vars = ["SCENARIO_MARK"]
default_tools_approval_mode = "approve"
""")
        environment = {**os.environ, "HOME": folder, "CODEX_HOME": folder}
        done = subprocess.run(
            [f"{HOME}/node_modules/.bin/codex", "exec", "--skip-git-repo-check", "go"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110)
    if "after" not in seen:
        sys.exit(f"{done.returncode} {done.stdout[-1500:]} {done.stderr[-1500:]} {list(seen)}")
    seen.update(tools=sorted(tools_by_name), list_ms=None)
    print("SEEN " + json.dumps(seen))


main()
