#!/usr/bin/env python3
"""The published Codex CLI runs exec and wait calls through this program.

    cargo build --release && tests/codex_e2e.py [target/release/code-mode]

Installs the Codex CLI from npm (160 MB, once), puts this program in its host's place,
plays its model on a local HTTP server, and compares what the model is shown with what
it is shown through Codex's own host: over gRPC, which Codex speaks unless it is told
otherwise, and over the stdio wire. Exit status 1 where that differs.
"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from reference_host import codex, reference_host

sys.path.append(str(Path(__file__).parent / "clients"))
from loopback import Loopback, codex_config, codex_message, codex_turn, serve  # noqa: E402

CASES = {
    "text and values": [("exec", "text('hello'); text({a: [1, 2]}); text(await 5)")],
    "an error and its line": [("exec", "text('before');\nthrow new Error('boom')")],
    "stored values": [("exec", "store('k', {n: 41})"), ("exec", "text(load('k').n + 1)")],
    "a nested tool": [("exec", "const r = await tools.exec_command({cmd: 'echo from-the-shell'});\ntext(JSON.stringify(r).includes('from-the-shell'))")],
    "tools are listed": [("exec", "text(ALL_TOOLS.some(t => t.name === 'exec_command'))")],
    "yield and wait": [
        ("exec", "// @exec: {\"yield_time_ms\": 50}\ntext('first'); await new Promise(r => setTimeout(r, 400)); text('second')"),
        ("wait", {"cell_id": "$CELL", "yield_time_ms": 5000}),
    ],
    "terminate": [
        ("exec", "// @exec: {\"yield_time_ms\": 50}\ntext('up'); while (true) {}"),
        ("wait", {"cell_id": "$CELL", "terminate": True}),
    ],
    "a cell that is not there": [("wait", {"cell_id": "999", "yield_time_ms": 50})],
    "output beyond its budget": [
        ("exec", "// @exec: {\"max_output_tokens\": 20}\ntext('x'.repeat(900)); text('y\\n'.repeat(9))"),
    ],
    "a notification": [("exec", "notify('note'); text('end')")],
    "many tools at once": [
        ("exec", "const all = await Promise.all(Array.from({length: 20}, (_, i) => tools.exec_command({cmd: 'echo ' + i})));\ntext(all.length)"),
    ],
}


class Model:
    """Asks for the calls of a case one by one, then says that it is done."""

    def __init__(self, calls):
        self.calls, self.turn, self.cell, self.outputs = calls, 0, "?", []

    def reply(self, request):
        self.outputs = [item["output"] for item in request.get("input", [])
                        if item.get("type", "").endswith("call_output")]
        if self.outputs and (found := re.search(r"cell ID ([\w:.-]+)", json.dumps(self.outputs[-1]))):
            self.cell = found.group(1)
        turn, self.turn = self.turn, self.turn + 1
        if turn >= len(self.calls):
            item = codex_message("done")
        elif self.calls[turn][0] == "exec":
            item = {"type": "custom_tool_call", "id": f"i{turn}", "call_id": f"c{turn}",
                    "name": "exec", "input": self.calls[turn][1]}
        else:
            arguments = json.dumps(self.calls[turn][1]).replace("$CELL", self.cell)
            item = {"type": "function_call", "id": f"i{turn}", "call_id": f"c{turn}",
                    "name": "wait", "arguments": arguments}
        return codex_turn([item])


# The configuration of Codex for each wire.
WIRES = {"gRPC": [], "stdio": ["--disable", "code_mode_host_grpc"]}


def run(host, calls, options):
    """What the model is shown for each call, with `host` in the place of Codex's."""
    model = Model(calls)

    class Handler(Loopback):
        def do_GET(self):
            self.reply('{"models": [], "data": []}')

        def do_POST(self):
            body = self.body()
            if self.path.endswith("/responses"):
                self.reply_events(model.reply(body))
            else:
                self.reply("{}")

    address = serve(Handler)
    with tempfile.TemporaryDirectory() as folder:
        home, programs, work = (os.path.join(folder, name) for name in ("home", "bin", "work"))
        for path in (home, programs, work):
            os.makedirs(path)
        program = os.path.join(programs, "codex")
        shutil.copy(codex(), program)
        os.symlink(os.path.abspath(host), os.path.join(programs, "codex-code-mode-host"))
        with open(os.path.join(home, "config.toml"), "w") as config:
            config.write(f"{codex_config(address)}[features]\ncode_mode = true\ncode_mode_only = true\n")
        subprocess.run(
            [program, "exec", "--skip-git-repo-check", *options, "go"],
            cwd=work, env={"PATH": os.environ["PATH"], "HOME": home, "CODEX_HOME": home},
            stdin=subprocess.DEVNULL, capture_output=True, timeout=90, check=True)
    return model.outputs


def comparable(outputs):
    """Codex shows the model how long a call took, and where its shell ran."""
    text = json.dumps(outputs)
    text = re.sub(r"Wall time:? [\d.]+ seconds", "Wall time", text)
    return re.sub(r"cell ID [\w:.-]+", "cell ID", text)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    ours = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "..", "target", "release", "code-mode")
    failed = 0
    cases = [(wire, name) for wire in WIRES for name in CASES]
    for wire, name in cases:
        calls, options = CASES[name], WIRES[wire]
        mine, theirs = run(ours, calls, options), run(reference_host(), calls, options)
        # What fails to run at all must not count as alike.
        same = comparable(mine) == comparable(theirs) and len(mine) >= len(calls)
        print(("ok    " if same else "DIFFER"), f"{wire}: {name}")
        if not same:
            failed += 1
            print("  ours  ", comparable(mine)[:1500])
            print("  theirs", comparable(theirs)[:1500])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
