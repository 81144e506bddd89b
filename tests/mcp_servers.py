#!/usr/bin/env python3
"""Real servers behind `code-mode mcp`, each called with what it accepts.

    python3 tests/mcp_servers.py PROGRAM [NAME ...]

`tests/fixtures/servers.json` has servers of npm and PyPI with calls that each of them accepts when it is
called directly. This script installs them at their versions (into target/servers; the browser's
server wants apt's Chromium) and makes every call by a program. It prints a table, and fails where a
call that fits its tool's schema, or leaves out a property that is required and has a default, did
not reach its server. A server may accept more than its schema allows; the last column counts such
calls that this program refused, with a message that says what the schema wants.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "servers"
SERVERS = json.loads((ROOT / "tests" / "fixtures" / "servers.json").read_text())
SECONDS = 300

PROGRAM = """
const name = (text) => text.replace(/[^A-Za-z0-9_$]/g, "_");
for (const { tool, arguments: input } of CALLS) {
  try {
    const called = tools[`${name(SERVER)}__${name(tool)}`];
    if (!called) throw new Error("there is no such tool");
    const { isError, content } = await called.raw(input);
    text(isError ? "refused by the server: " + JSON.stringify(content).slice(0, 200) : "ok");
  } catch (error) {
    text(error.message.split("\\n")[0]);
  }
}
"""


def install(servers):
    HOME.mkdir(parents=True, exist_ok=True)
    npm, venv = HOME / "npm", HOME / "venv"
    npm.mkdir(exist_ok=True)
    if not (npm / "package.json").exists():
        (npm / "package.json").write_text('{"private": true}')

    def is_there(server):
        found = npm / "node_modules" / server["package"] / "package.json"
        return found.exists() and json.loads(found.read_text())["version"] == server["version"]

    wanted = [s for s in servers if s["registry"] == "npm" and not is_there(s)]
    if wanted:
        packages = [f"{s['package']}@{s['version']}" for s in wanted]
        quiet = ["--silent", "--ignore-scripts", "--legacy-peer-deps"]
        subprocess.run(["npm", "install", *quiet, *packages], cwd=npm, check=True)
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    frozen = subprocess.run([venv / "bin" / "pip", "freeze"], capture_output=True, text=True, check=True).stdout
    for server in servers:
        wanted = f"{server['package']}=={server['version']}"
        # One after the other: what they say of each other's dependencies is stricter than what they need.
        if server["registry"] == "pip" and wanted not in frozen.splitlines():
            subprocess.run([venv / "bin" / "pip", "install", "-q", "mcp<2", wanted], check=True)


def placed(text, folder):
    return text.replace("{NPM}", str(HOME / "npm")).replace("{VENV}", str(HOME / "venv")).replace("{FOLDER}", folder)


class Client:
    """A client of `code-mode mcp` over standard streams."""

    def __init__(self, program, config, policy, caches):
        command = [program, "mcp", "--linger", "0ms", "--config", config, "--policy", policy]
        env = {**os.environ, "XDG_CACHE_HOME": caches}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=env)
        self.last = 0
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        self.request("initialize", hello)
        self.send({"method": "notifications/initialized"})

    def send(self, message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def request(self, method, params):
        self.last += 1
        self.send({"id": self.last, "method": method, "params": params})
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("id") == self.last:
                return message["result"]
        sys.exit("code-mode mcp ended")

    def run(self, code):
        """The texts of a program, to its end."""
        texts = []
        result = self.request("tools/call", {"name": "exec", "arguments": {"code": code}})
        while True:
            said = [block["text"] for block in result["content"] if block["type"] == "text"]
            texts += said[1:]
            cell = re.search(r"cell_id: (\S+)", said[0])
            if not said[0].startswith("status: running") and "not begun" not in said[0]:
                return texts, said[0]
            result = self.request("tools/call", {"name": "wait", "arguments": {"cell_id": cell.group(1)}})

    def leave(self):
        self.process.stdin.close()
        self.process.wait(60)


def call_all(program, server):
    folder = tempfile.mkdtemp()
    try:
        for name, content in server.get("prepare", {}).items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        command, *args = [placed(part, folder) for part in server["command"]]
        env = {key: placed(value, folder) for key, value in server.get("env", {}).items()}
        config, policy = Path(folder, ".config.json"), Path(folder, ".policy.json")
        entry = {"command": command, "args": args, "env": env, "cwd": folder}
        config.write_text(json.dumps({"mcpServers": {server["name"]: entry}}))
        policy.write_text(json.dumps({"allow": ["*/*"]}))
        calls = [{"tool": call["tool"], "arguments": call.get("arguments")} for call in server["calls"]]
        for call, given in zip(calls, server["calls"]):
            if "arguments" not in given:
                del call["arguments"]
        calls = json.loads(placed(json.dumps(calls), folder))
        client = Client(program, config, policy, folder)
        head = f"const SERVER = {json.dumps(server['name'])};\nconst CALLS = {json.dumps(calls)};\n"
        texts, status = client.run(head + PROGRAM)
        client.leave()
        return texts, status
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(program, names):
    servers = [server for server in SERVERS if not names or server["name"] in names]
    install(servers)
    print("| server | tools | calls that fit the schema | reached the server | calls that the server takes beyond it | refused here |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    wrong = []
    for server in servers:
        texts, status = call_all(program, server)
        calls = server["calls"]
        if len(texts) < len(calls):
            wrong.append(f"{server['name']}: {len(texts)} of {len(calls)} calls: {status}: {texts[-1:]}")
            texts += ["nothing"] * (len(calls) - len(texts))
        reached = beyond = refused = 0
        strict = [call for call in calls if call["strict"]]
        for call, text in zip(calls, texts):
            is_refused = "does not fit its schema" in text
            # A required property that has a default may be left out.
            is_ours = call["strict"] or "required" in call.get("note", "") and "default" in call.get("note", "")
            if call["strict"]:
                reached += not is_refused and text != "nothing"
            else:
                beyond += 1
                refused += is_refused
            if is_refused and is_ours or text in ("nothing", "there is no such tool"):
                wrong.append(f"{server['name']}/{call['tool']} {json.dumps(call.get('arguments'))[:200]}: {text}")
        print(f"| {server['package']} {server['version']} | {server['tools']} | {len(strict)} | {reached} | {beyond} | {refused} |", flush=True)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(os.path.abspath(sys.argv[1]), sys.argv[2:])
