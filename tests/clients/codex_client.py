"""The Codex CLI, headless, with a scripted model on loopback in place of its own.

Run with the folder of its package as the third argument.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from loopback import Loopback, codex_config, codex_message, codex_turn, serve
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
        return [codex_message("done")]
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


class Model(Loopback):
    def do_GET(self):
        self.reply('{"models": [], "data": []}')

    def do_POST(self):
        body = self.body()
        if not self.path.endswith("/responses"):
            return self.reply("{}")
        if not tools_by_name:
            learn(body.get("tools", []))
        if not tools_by_name:
            names = [tool.get("name") for tool in body.get("tools", [])]
            items = [codex_message(f"no tools of the gateway among {names}")]
        else:
            items = answer(body)
        self.reply_events(codex_turn(items))


def main():
    address = serve(Model)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.toml").write_text(f"""{codex_config(address)}
[mcp_servers.code]
command = {json.dumps(PROGRAM)}
args = ["mcp", "--linger", "0ms", "--config", {json.dumps(CONFIG)}]
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
