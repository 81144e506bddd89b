"""Public multi-step tasks as programs: the gold calls of the Berkeley Function-Calling
Leaderboard's stateful sets, in three styles, each against the same calls made in Python.

    python3 tests/public_tasks.py target/release/code-mode [TASKS]      default 50

The tasks come with the package bfcl-eval at a pinned version, installed into target/tasks. Exit
status 0 where every result of every program is right.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "tasks"
SERVER = ROOT / "tests" / "clients" / "bfcl_server.py"
PACKAGES = ["bfcl-eval==2026.3.23", "mpmath==1.3.0"]


def install():
    if not (HOME / "bfcl_eval").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(HOME), *PACKAGES]
        subprocess.run(command, check=True)
    sys.path[:0] = [str(HOME), str(SERVER.parent)]


def gold(text, order):
    """A gold call, as a name and its arguments by name."""
    call = ast.parse(text, mode="eval").body
    named = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    names = order[call.func.id]
    return call.func.id, {**dict(zip(names, map(ast.literal_eval, call.args))), **named}


# The styles: what stands around the calls, and how one of them is written.
def written(style, server, name, arguments):
    given = json.dumps(arguments)
    if style == "namespaces":
        return f"(await tools.{server}.{name}({given})).value"
    if style == "without await":
        return f"(await tools.{server}__{name}({given if arguments else ''})).value"
    return f"(await tools.{server}__{name}({given})).value"


def program(style, calls):
    lines = "\n".join(f"  results.push({written(style, *call)});" for call in calls)
    body = f"const results = [];\n{lines}\n  text(JSON.stringify(results));"
    # A main that nobody awaits has its time.
    return f"async function main() {{\n  {body}\n}}\nmain();" if style == "without await" else body


STYLES = ["one after the other", "namespaces", "without await"]


def check(binary, task, calls, expected, style):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        servers = {}
        for name in task["involved_classes"]:
            setting = folder / f"{name}.json"
            setting.write_text(json.dumps(task["initial_config"].get(name, {})))
            servers[name] = {
                "command": sys.executable, "args": [str(SERVER), name, str(setting)], "env": {"PYTHONPATH": str(HOME)}}
        (folder / "servers.json").write_text(json.dumps({"mcpServers": servers}))
        (folder / "program.js").write_text(program(style, calls))
        command = [binary, "run", str(folder / "program.js"), "--mcp-config", str(folder / "servers.json")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        try:
            given = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, json.JSONDecodeError):
            return f"{task['id']}, {style}: {done.stdout[-500:]} {done.stderr[-1500:]}"
        if given != expected:
            return f"{task['id']}, {style}: {given} is not {expected}"
        return None


def main():
    binary = os.path.abspath(sys.argv[1])
    wanted = int(sys.argv[2]) if len(sys.argv) > 2 else 50
    install()
    import bfcl_server
    data = HOME / "bfcl_eval" / "data"
    read = lambda path: [json.loads(line) for line in (data / path).read_text().splitlines()]
    tasks = read("BFCL_v4_multi_turn_base.json")
    answers = {one["id"]: one["ground_truth"] for one in read("possible_answer/BFCL_v4_multi_turn_base.json")}
    runs = []
    for task in tasks[:: max(1, len(tasks) // wanted)][:wanted]:
        owners, order = {}, {}
        for server in task["involved_classes"]:
            for tool in bfcl_server.tools(server):
                owners[tool["name"]] = server
                order[tool["name"]] = list(tool["inputSchema"]["properties"])
        calls = [gold(text, order) for turn in answers[task["id"]] for text in turn]
        objects = {
            name: bfcl_server.made(name, task["initial_config"].get(name, {})) for name in task["involved_classes"]}
        expected = [bfcl_server.call(objects[owners[name]], name, arguments) for name, arguments in calls]
        calls = [(owners[name], name, arguments) for name, arguments in calls]
        runs += [(binary, task, calls, expected, style) for style in STYLES]
    with ThreadPoolExecutor(2) as pool:
        wrong = [what for what in pool.map(lambda run: check(*run), runs) if what]
    for what in wrong[:20]:
        print("wrong:", what[:3000])
    print(f"{len(runs) - len(wrong)} of {len(runs)} programs gave what the calls give in Python")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
