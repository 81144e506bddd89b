#!/usr/bin/env python3
"""What a model reads at each front door, in tokens, as a table.

    python3 tests/door_tokens.py target/debug/code-mode

A token is counted as four bytes. The servers are tests/clients/server.py, several times.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(Path(sys.argv[1]).resolve())
SERVER = str(ROOT / "tests/clients/server.py")
MANY = 14


def tokens(text):
    return -(-len(text.encode()) // 4)


def at_a_shell(*more):
    done = subprocess.run([PROGRAM, "run", "--list-tools", *more], capture_output=True, text=True, check=True)
    return tokens(done.stdout)


def behind_mcp(servers):
    """The tokens of the tools that `code-mode mcp` offers, and of those of the servers alone."""
    config = {"mcpServers": {f"s{n}": {"command": sys.executable, "args": [SERVER]} for n in range(servers)}}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        check = subprocess.run(
            [PROGRAM, "mcp", "check", "--json", "--config", file.name], capture_output=True, text=True, check=True)
    report = json.loads(check.stdout)
    return report["tokensWith"], report["tokensWithout"], sum(len(one["tools"]) for one in report["servers"])


def main():
    print("| front door | tools | tokens | the servers' own definitions |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| `run --list-tools` | 0 | {at_a_shell()} | |")
    tools = ROOT / "examples/git-history/tools.toml"
    count = tools.read_text().count("[[tool]]")
    print(f"| `run --list-tools`, with the tools of examples/git-history | {count} | {at_a_shell('--tools', str(tools))} | |")
    for servers in (1, MANY):
        with_it, without, count = behind_mcp(servers)
        named = "one server" if servers == 1 else f"{servers} servers"
        print(f"| `mcp`, {named} | {count} | {with_it} | {without} |")


main()
