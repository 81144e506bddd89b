"""Clients of the protocol in front of `code-mode mcp`, as a table.

    python3 tests/mcp_clients.py target/release/code-mode [NAME... | all]

Installs the clients' own libraries at pinned versions into target/clients and runs one scenario
with each (tests/clients): list and close, five calls, an error, an image, a megabyte, values kept
between programs, two programs at once, a call that needs an approval where nobody can be asked, a
program that takes longer than the client's patience, and a cancelled one. Then nothing may be left
running. `all` adds programs, each driven by a scripted model on loopback, and the long program takes
40 s instead of 12. Exit status 0 where every client saw what is expected.
"""

import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "tests" / "clients"
HOME = ROOT / "target" / "clients"
# A client: its script, and the packages of the registry that it needs.
CLIENTS = {
    "Python SDK 1.x": ("python_sdk.py", ["mcp==1.30.0"]),
    "Python SDK 2.x": ("python_sdk.py", ["mcp==2.3.0"]),
    "langchain-mcp-adapters": ("langchain_adapters.py", ["langchain-mcp-adapters==0.3.2"]),
    "openai-agents": ("openai_agents.py", ["openai-agents==0.24.0"]),
    "pydantic-ai": ("pydantic_client.py", ["pydantic-ai-slim==2.68.0", "fastmcp==4.1.2"]),
    "TypeScript SDK 1.x": ("typescript_sdk_1.mjs", ["@modelcontextprotocol/sdk@1.32.2"]),
    "TypeScript SDK 2.x": ("typescript_sdk_2.mjs", ["@modelcontextprotocol/client@2.4.0"]),
    "AI SDK": ("ai_sdk.mjs", ["@ai-sdk/mcp@2.0.99"]),
}
# Programs, which are large: run where they are named.
PROGRAMS = {
    "Claude Code": ("claude_code.py", ["@anthropic-ai/claude-code@2.1.197"]),
    "Codex CLI": ("codex_client.py", ["@openai/codex@0.169.0"]),
    "Gemini CLI": ("gemini_cli.py", ["@google/gemini-cli@0.61.0"]),
    "Qwen Code": ("qwen_code.py", ["@qwen-code/qwen-code@0.24.4"]),
    "opencode": ("opencode.py", ["opencode-ai@1.18.33"]),
}
ALL = {**CLIENTS, **PROGRAMS}
LIMIT = 200


def home_of(packages):
    return HOME / packages[0].replace("/", "_").replace("@", "_")


def installed(script, packages):
    """The command that runs a client's script, after its packages were installed."""
    home = home_of(packages)
    home.mkdir(parents=True, exist_ok=True)
    if script.endswith(".py") and "==" in packages[0]:
        python = home / "venv" / "bin" / "python"
        if not python.exists():
            venv.create(home / "venv", with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
        return [str(python), str(SCRIPTS / script)]
    (home / "package.json").write_text('{"private": true, "type": "module"}')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *packages], cwd=home, check=True)
    if script.endswith(".py"):
        return [sys.executable, str(SCRIPTS / script)]
    # Node looks for packages beside the script.
    for name in (script, "scenario.mjs"):
        (home / name).write_text((SCRIPTS / name).read_text())
    return ["node", str(home / script)]


def version(packages):
    return packages[0].rsplit("==" if "==" in packages[0] else "@", 1)[1]


def left_behind(mark):
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
        except OSError:
            continue
    return found


def wrong(seen):
    """The names of results that differ from the expected ones."""
    flat = {name: json.dumps(value) for name, value in seen.items()}
    # Some clients join the blocks.
    last = lambda blocks: "\n".join(text for _, text in blocks).splitlines()[-1]
    expected = {
        "tools": '"exec"' in flat["tools"] and '"wait"' in flat["tools"],
        "five calls": "2,3,4,5,6" in flat["five"],
        "an error": "it failed deliberately" in flat["error"],
        # A client replaces the image by a text for a model without images.
        "an image": '"image"' in flat["image"] or "[image: image/png]" in flat["image"],
        "a number": "42" in flat["number"],
        "a megabyte": "status" in flat["megabyte"],
        "status first": all("status: " in seen[name][0][1] for name in ("five", "image", "number", "megabyte")),
        "kept values": last(seen["load"]) == "7",
        "two at once": [last(blocks) for blocks in seen["two"]] == ["2,3,4,5,6", "7"],
        "an approval": "approv" in flat["approval"],
        "a slow program": "late" in flat["slow"],
        "a cancelled program": "still here" in flat["after"],
    }
    return [name for name, holds in expected.items() if not holds]


def run(name, program, seconds):
    script, packages = ALL[name]
    command = installed(script, packages)
    mark = f"SCENARIO_MARK={os.getpid()}-{time.monotonic_ns()}"
    config = HOME / "servers.json"
    server = {"command": sys.executable, "args": [str(SCRIPTS / "server.py")]}
    config.write_text(json.dumps({"mcpServers": {"s": server}}))
    environment = {**os.environ, mark.split("=")[0]: mark.split("=")[1], "CLIENTS": f"{SCRIPTS.as_uri()}/",
                   "SLOW_SECONDS": str(seconds)}
    try:
        done = subprocess.run(
            [*command, program, str(config), str(home_of(packages))], env=environment, timeout=LIMIT, text=True, capture_output=True)
    except subprocess.TimeoutExpired as error:
        return None, [f"it takes more than {LIMIT} s: {(error.stderr or b'')[-300:]}"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("SEEN ")]
    if done.returncode != 0 or not lines:
        return None, [f"exit status {done.returncode}: {done.stderr[-1500:]}"]
    seen = json.loads(lines[-1][5:])
    problems = wrong(seen)
    until = time.monotonic() + 5
    while (left := left_behind(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    if left:
        problems.append(f"left running: {left}")
    return seen, problems


def main():
    program = os.path.abspath(sys.argv[1])
    names = sys.argv[2:] or list(CLIENTS)
    seconds = 12
    if names == ["all"]:
        names, seconds = list(ALL), 40
    failed = False
    print(f"| client | version | tools listed after | a program of {seconds} s: first answer, waits | result |")
    print("| --- | --- | ---: | ---: | --- |")
    for name in names:
        seen, problems = run(name, program, seconds)
        failed |= bool(problems)
        listed = f"{seen['list_ms']} ms" if seen and seen["list_ms"] is not None else ""
        slow = f"{seen['first_answer_ms'] / 1000:.1f} s, {seen['waits']}" if seen else ""
        said = "; ".join(problems) or "as expected"
        print(f"| {name} | {version(ALL[name][1])} | {listed} | {slow} | {said} |", flush=True)
        if problems and seen:
            print(json.dumps(seen, indent=1)[:6000], file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
