"""Real servers behind `code-mode mcp`, real clients in front, and what definitions cost.

    python3 tests/mcp_real.py target/release/code-mode

Installs what it needs, at pinned versions, into target/mcp: the reference servers of the
protocol's authors, their Python and TypeScript SDKs, and a tokenizer. Exit status 0 where
everything passes; the last lines are the figures of the README.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "mcp"
NPM = {
    "@modelcontextprotocol/server-everything": "2026.8.31",
    "@modelcontextprotocol/server-filesystem": "2026.8.31",
    "@modelcontextprotocol/server-memory": "2026.8.31",
    "@modelcontextprotocol/sdk": "1.32.2",
    "gpt-tokenizer": "4.0.0",
}
PIP = ["mcp==2.3.0", "mcp-server-git==2026.10.19", "mcp-server-time==2026.10.19"]


def install():
    HOME.mkdir(parents=True, exist_ok=True)
    if not (HOME / "package.json").exists():
        (HOME / "package.json").write_text('{"private": true}')
    wanted = [f"{name}@{version}" for name, version in NPM.items()]
    subprocess.run(["npm", "install", "--silent", *wanted], cwd=HOME, check=True)
    python = HOME / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME / "venv")], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *PIP], check=True)
    return python


def config(python):
    module = lambda name: str(HOME / "node_modules" / "@modelcontextprotocol" / name / "dist" / "index.js")
    folder = HOME / "files"
    folder.mkdir(exist_ok=True)
    (folder / "hello.txt").write_text("hello")
    servers = {
        "everything": {"command": "node", "args": [module("server-everything")]},
        "fs": {"command": "node", "args": [module("server-filesystem"), str(folder)]},
        "memory": {"command": "node", "args": [module("server-memory")]},
        "git": {"command": str(python.parent / "mcp-server-git"), "args": ["--repository", str(ROOT)]},
        "time": {"command": str(python.parent / "mcp-server-time")},
    }
    path = HOME / "servers.json"
    path.write_text(json.dumps({"mcpServers": servers}))
    return path, folder


PROGRAM = """
const [sum, time, listing, log] = await Promise.all([
  tools.everything__get_sum({ a: 19, b: 23 }),
  tools.time__get_current_time({ timezone: "UTC" }),
  tools.fs__read_text_file({ path: FOLDER + "/hello.txt" }),
  tools.git__git_log({ repo_path: ROOT, max_count: 1 }),
]);
text([String(sum).includes("42"), time.timezone, listing.content ?? listing, String(log).includes("Commit")]);
"""

PYTHON_CLIENT = """
import asyncio, json, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main():
    parameters = StdioServerParameters(command=sys.argv[1], args=["mcp", "--linger", "0ms", "--config", sys.argv[2]])
    async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
        await session.initialize()
        tools = (await session.list_tools()).tools
        result = await session.call_tool("exec", {"code": sys.argv[3]})
        print(json.dumps({"names": [t.name for t in tools], "texts": [c.text for c in result.content],
                          "definitions": [{"name": t.name, "description": t.description, "parameters": t.model_dump(by_alias=True, mode="json")["inputSchema"]} for t in tools]}))
asyncio.run(main())
"""

TYPESCRIPT_CLIENT = """
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
const [program, config, code] = process.argv.slice(2);
const client = new Client({ name: "test", version: "1" });
await client.connect(new StdioClientTransport({ command: program, args: ["mcp", "--linger", "0ms", "--config", config] }));
const { tools } = await client.listTools();
const result = await client.callTool({ name: "exec", arguments: { code } });
console.log(JSON.stringify({ names: tools.map((t) => t.name), texts: result.content.map((c) => c.text) }));
await client.close();
"""

DIRECT = """
import asyncio, json, sys
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main():
    found = []
    for server in json.load(open(sys.argv[1]))["mcpServers"].values():
        parameters = StdioServerParameters(command=server["command"], args=server.get("args", []))
        async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
            await session.initialize()
            for t in (await session.list_tools()).tools:
                found.append({"name": t.name, "description": t.description, "parameters": t.model_dump(by_alias=True, mode="json")["inputSchema"]})
    print(json.dumps(found))
asyncio.run(main())
"""

TASK = """
const names = (await tools.fs__list_directory({ path: FOLDER })).content.split("\\n")
  .filter((line) => line.startsWith("[FILE] report")).map((line) => line.slice(7));
const files = await Promise.all(names.map((name) => tools.fs__read_text_file({ path: `${FOLDER}/${name}` })));
const totals = files.map((f) => Number(/total: (\\d+)/.exec(f.content)[1]));
text({ files: names.length, total: totals.reduce((a, b) => a + b) });
"""

LATENCY = """
const start = performance.now();
for (let i = 0; i < 300; i++) await tools.everything__get_sum({ a: i, b: 1 });
text((performance.now() - start) / 300);
"""

DIRECT_TASK = """
import asyncio, json, sys, time
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main():
    servers = json.load(open(sys.argv[1]))["mcpServers"]
    folder = sys.argv[2]
    traffic = []
    async def open_(name, use):
        parameters = StdioServerParameters(command=servers[name]["command"], args=servers[name].get("args", []))
        async with stdio_client(parameters) as streams, ClientSession(*streams) as session:
            await session.initialize()
            await use(session)
    async def task(session):
        async def call(name, arguments):
            result = await session.call_tool(name, arguments)
            text = result.content[0].text
            traffic.append({"call": name, "arguments": arguments, "result": text})
            return text
        listing = await call("list_directory", {"path": folder})
        for line in listing.splitlines():
            if line.startswith("[FILE] report"):
                await call("read_text_file", {"path": folder + "/" + line[7:]})
    async def latency(session):
        start = time.perf_counter()
        for i in range(300):
            await session.call_tool("get-sum", {"a": i, "b": 1})
        print(json.dumps({"traffic": traffic, "ms": (time.perf_counter() - start) * 1000 / 300}))
    await open_("fs", task)
    await open_("everything", latency)
asyncio.run(main())
"""

TOKENS = """
import { readFileSync } from "node:fs";
import { encode } from "gpt-tokenizer/encoding/o200k_base";
const definitions = JSON.parse(readFileSync(0, "utf8"));
console.log(definitions.reduce((sum, one) => sum + encode(JSON.stringify(one)).length, 0));
"""


def reports(folder):
    for number in range(1, 21):
        lines = [f"line {i} of report {number}: nothing much happened here" for i in range(60)]
        (folder / f"report{number}.txt").write_text("\n".join([*lines, f"total: {number}"]))


def run(command, **more):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def main():
    program = Path(sys.argv[1]).resolve()
    python = install()
    path, folder = config(python)
    code = PROGRAM.replace("FOLDER", json.dumps(str(folder))).replace("ROOT", json.dumps(str(ROOT)))
    wanted = '[true,"UTC","hello",true]'
    script = HOME / "client.mjs"
    script.write_text(TYPESCRIPT_CLIENT)
    answers = {
        "Python SDK": run([python, "-c", PYTHON_CLIENT, program, path, code]),
        "TypeScript SDK": run(["node", script, program, path, code], cwd=HOME),
    }
    for name, answer in answers.items():
        assert answer["names"] == ["exec", "wait"], (name, answer["names"])
        assert answer["texts"][1] == wanted, (name, answer["texts"])
        assert answer["texts"][0].startswith("status: completed\ncalls: 4 ran"), (name, answer["texts"])
        print(f"{name}: passed")
    without = run([python, "-c", DIRECT, path])
    with_it = answers["Python SDK"]["definitions"]
    counter = HOME / "tokens.mjs"
    counter.write_text(TOKENS)
    count = lambda found: run(["node", counter], cwd=HOME, input=json.dumps(found))
    reports(folder)
    direct = run([python, "-c", DIRECT_TASK, path, folder])
    task = TASK.replace("FOLDER", json.dumps(str(folder)))
    done = run([python, "-c", PYTHON_CLIENT, program, path, task])
    assert json.loads(done["texts"][1]) == {"files": 20, "total": 210}, done["texts"]
    traffic = count([{"code": task, "result": done["texts"]}])
    print(f"one task, 20 files read: {len(direct['traffic'])} turns and {count(direct['traffic'])} tokens as calls, 1 turn and {traffic} tokens as a program")
    nested = float(run([python, "-c", PYTHON_CLIENT, program, path, LATENCY])["texts"][1])
    print(f"one call: {direct['ms']:.2f} ms from the Python SDK to the server, {nested:.2f} ms from a program")
    print(f"tokens of definitions (o200k): {count(without)} for {len(without)} tools, {count(with_it)} with code-mode")


if __name__ == "__main__":
    main()
