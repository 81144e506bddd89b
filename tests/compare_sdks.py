#!/usr/bin/env python3
"""The speed of the SDKs, beside the bare wire and beside what their users have instead.

    python3 tests/compare_sdks.py PROGRAM

Installs `run` (which `@ai-sdk/code-mode` is made of), `isolated-vm` and `pydantic-monty`, does the same
work with each in turn, and prints a table of medians. The libraries run programs in the agent's own
process (`run`, `isolated-vm`) or in processes without a sandbox of the operating system (`pydantic-monty`,
which runs a subset of Python).
"""
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODE, HOME = ROOT / "benches" / "sdks", ROOT / "target" / "sdks"


def run(*command, cwd=ROOT, **env):
    done = subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def main(program):
    run("npm", "install", "--silent", "--no-audit", "--no-fund", cwd=NODE)
    run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=ROOT / "sdk" / "typescript")
    run("npx", "tsc", "-p", ".", cwd=ROOT / "sdk" / "typescript")
    python = HOME / "venv" / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", HOME / "venv")
    run(python, "-m", "pip", "install", "-q", "pydantic-monty==1.4.0")
    results = json.loads(run("node", "compare.mjs", program, cwd=NODE))
    results |= json.loads(run(python, "compare.py", program, cwd=NODE, PYTHONPATH=str(ROOT / "sdk" / "python" / "src")))
    ways = list(results)
    print("| work | " + " | ".join(ways) + " |")
    print("| --- |" + " ---: |" * len(ways))
    for what in results[ways[0]]:
        print(f"| {what} | " + " | ".join(f"{results[way][what]:.2f} ms" for way in ways) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(os.path.abspath(sys.argv[1]))
