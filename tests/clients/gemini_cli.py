"""The Gemini CLI, headless, with a scripted model on loopback in place of its own.

Run with the folder of its package as the third argument.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from loopback import Loopback, serve
from scripted import script

PROGRAM, CONFIG, HOME = sys.argv[1:4]
PREFIX = "mcp_code_"
seen, tools, calls = {}, [], []
model = script(seen)


def blocks_of(parts):
    """The blocks of one result: its text, and the images beside it."""
    blocks = []
    for part in parts:
        if "functionResponse" in part:
            response = part["functionResponse"]
            answer = response["response"]
            # The client marks each text of a result as one that it does not trust.
            text = re.sub(r"</?untrusted_context>\n?", "", answer.get("output") or answer["error"])
            blocks.append(("text", text))
        elif "inlineData" in part:
            blocks.append(("image", ""))
    return blocks


def results_in(contents):
    """The parts after the model's last message, by the call that each begins with."""
    results = []
    for part in contents[-1]["parts"]:
        if "functionResponse" in part:
            results.append([])
        if results:
            results[-1].append(part)
    return [blocks_of(result) for result in results]


def answer(request):
    """The parts of the model's next message."""
    global calls
    try:
        made = model.send(results_in(request["contents"]) if calls else None)
    except StopIteration:
        return [{"text": "done"}]
    calls = made
    return [{"functionCall": {"name": PREFIX + tool, "args": arguments}} for tool, arguments in made]


class Model(Loopback):
    def do_POST(self):
        request = self.body()
        offered = [one["name"] for tool in request.get("tools", []) for one in tool.get("functionDeclarations", [])]
        ours = [name.removeprefix(PREFIX) for name in offered if name.startswith(PREFIX)]
        # Requests without our tools are the client's own: routing, titles.
        parts = [{"text": "{}"}]
        if ours:
            tools[:] = tools or ours
            parts = answer(request)
        turn = {
            "candidates": [{"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": parts}}],
            "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 1, "totalTokenCount": 2}}
        if "countTokens" in self.path:
            return self.reply('{"totalTokens": 1}')
        if "stream" in self.path:
            return self.reply_events([turn])
        self.reply(json.dumps(turn))


def main():
    address = serve(Model)
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / ".gemini" / "settings.json"
        settings.parent.mkdir()
        settings.write_text(json.dumps({
            "mcpServers": {"code": {"command": PROGRAM, "args": ["mcp", "--linger", "0ms", "--config", CONFIG], "trust": True}},
            "security": {"auth": {"selectedType": "gemini-api-key"}}, "privacy": {"usageStatisticsEnabled": False}}))
        environment = {
            **os.environ, "HOME": folder, "GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": address,
            "GEMINI_CLI_TRUST_WORKSPACE": "true"}
        done = subprocess.run(
            [f"{HOME}/node_modules/.bin/gemini", "-p", "go", "--approval-mode", "yolo", "-m", "gemini-2.5-pro"],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=110)
    if "after" not in seen:
        sys.exit(f"{done.returncode} {done.stdout[-1500:]} {done.stderr[-1500:]} {list(seen)} {tools}")
    seen.update(tools=sorted(set(tools)), list_ms=None)
    print("SEEN " + json.dumps(seen))


main()
