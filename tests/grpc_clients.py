"""The clients of the gRPC wire that docs/grpc-wire.md has, by its own commands, each in an empty
folder, against the real program.

    python3 tests/grpc_clients.py target/debug/code-mode

Exit status 0 where each prints what its cell puts out."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    program = Path(sys.argv[1]).resolve()
    page = (ROOT / "docs/grpc-wire.md").read_text().split("## Clients in other languages")[1]
    commands = re.findall(r"```sh\n(.*?)```", page.split("\n## ")[0], re.S)
    host = subprocess.Popen([program, "serve", "--listen", "grpc://127.0.0.1:0"],
                            stdout=subprocess.PIPE, text=True)
    try:
        address = host.stdout.readline().strip().removeprefix("http://")
        environment = {**os.environ, "CODE_MODE": str(ROOT), "HOST": address}
        for name, command in zip(["Python", "TypeScript"], commands, strict=True):
            with tempfile.TemporaryDirectory() as folder:
                done = subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, timeout=300,
                                      capture_output=True, text=True)
            if done.returncode != 0 or not done.stdout.endswith("\n42\n5000000\n"):
                sys.exit(f"{name}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
            print(f"{name}: ok")
    finally:
        host.terminate()
    if host.wait(timeout=30) != 0:
        sys.exit(f"the host ended with {host.returncode}")


main()
