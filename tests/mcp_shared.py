#!/usr/bin/env python3
"""What twenty clients of ten real servers cost, with one gateway for all and with one for each.

    python3 tests/mcp_shared.py PROGRAM [CLIENTS]

Half of the clients use the official SDK for Python, half that for TypeScript. Each connects, lists the tools
and runs a program that calls a server; all stay. Then this script counts the processes and their memory (pages that
several processes share are divided among them). It installs servers and SDKs as `mcp_servers.py` and
`mcp_real.py` do, and fails where an answer is wrong or a process is left.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mcp_real
import mcp_servers

SERVERS = 10
CODE = "text(ALL_SERVERS.filter((one) => one.status === 'ready').length)"

PYTHON = """
import asyncio, sys, time
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
async def main():
    program, code, *arguments = sys.argv[1:]
    start = time.perf_counter()
    async with stdio_client(StdioServerParameters(command=program, args=arguments)) as streams, ClientSession(*streams) as session:
        await session.initialize()
        await session.list_tools()
        print((time.perf_counter() - start) * 1000, flush=True)
        result = await session.call_tool("exec", {"code": code})
        print(next(one.text for one in result.content if not one.text.startswith("status")), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""

TYPESCRIPT = """
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { once } from "node:events";
const [command, code, ...args] = process.argv.slice(2);
const start = performance.now();
const client = new Client({ name: "test", version: "1" });
await client.connect(new StdioClientTransport({ command, args }));
await client.listTools();
console.log(performance.now() - start);
const result = await client.callTool({ name: "exec", arguments: { code } });
console.log(result.content.find((one) => !one.text.startsWith("status")).text);
await once(process.stdin, "data");
await client.close();
process.exit(0);
"""


def processes(folder):
    """The command lines of all processes that name the folder, and of those below them."""
    found, parents = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                said = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if said:
                found[int(entry.name)] = said
    def is_ours(id):
        return id in found and (folder in found[id] or is_ours(parents.get(id)))
    return {id: said for id, said in found.items() if is_ours(id)}


def mib(process):
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024


def kind(cmdline):
    if " mcp --gateway " in cmdline:
        return "gateway"
    if " mcp " in cmdline and "code-mode" in cmdline:
        return "shim"
    if "code-mode" in cmdline.split(" ")[0]:
        return "gateway"
    return "server"


def scenario(program, clients, options, servers, folder):
    config = Path(folder) / "servers.json"
    config.write_text(json.dumps({"mcpServers": servers}))
    script = mcp_real.HOME / "shared.mjs"
    script.write_text(TYPESCRIPT)
    python = mcp_real.HOME / "venv" / "bin" / "python"
    arguments = ["mcp", *options, "--config", str(config)]
    running, listed = [], []
    for number in range(clients):
        command = [python, "-c", PYTHON] if number % 2 == 0 else ["node", script]
        client = subprocess.Popen(
            [*command, program, CODE, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder)
        running.append(client)
        listed.append(float(client.stdout.readline()))
        ready = client.stdout.readline().strip()
        if int(ready) < SERVERS - 1:
            print(f"client {number}: {ready} servers are ready", file=sys.stderr)
    now = processes(folder)
    own = {client.pid for client in running}
    counted = {}
    for id, said in now.items():
        if id not in own:
            counted.setdefault(kind(said), []).append(mib(id))
    for client in running:
        client.stdin.write("\n")
        client.stdin.close()
    for client in running:
        assert client.wait(30) == 0
    limit = time.monotonic() + 30
    while left := processes(folder):
        assert time.monotonic() < limit, left
        time.sleep(0.1)
    return counted, listed


def main():
    program = str(Path(sys.argv[1]).resolve())
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    mcp_real.install()
    chosen = [s for s in mcp_servers.SERVERS if "chrom" not in json.dumps(s).lower()][:SERVERS]
    mcp_servers.install(chosen)
    rows = []
    for name, options in (("one gateway", ["--linger", "0ms"]), ("a gateway for each", ["--private"])):
        with tempfile.TemporaryDirectory() as folder:
            placed = lambda text: mcp_servers.placed(text, folder)
            servers = {
                server["name"]: {
                    "command": placed(server["command"][0]),
                    "args": [placed(part) for part in server["command"][1:]],
                    "env": {key: placed(value) for key, value in server.get("env", {}).items()},
                }
                for server in chosen
            }
            counted, listed = scenario(program, clients, options, servers, folder)
        memory = {what: sum(all) for what, all in counted.items()}
        shims = counted.get("shim", []) if options[0] == "--linger" else []
        rows.append([
            name,
            len(counted.get("server", [])),
            sum(len(all) for all in counted.values()),
            f"{sum(memory.values()):.0f} MiB",
            f"{statistics.mean(shims):.1f} MiB" if shims else "",
            f"{listed[0]:.0f} ms",
            f"{statistics.median(listed[1:]):.0f} ms",
        ])
    heads = [f"{clients} clients, {SERVERS} servers", "processes of servers", "processes in all", "memory", "each shim",
             "first client: connected and listed", "others, median"]
    print("| " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * (len(heads) - 1))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main()
