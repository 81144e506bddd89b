"""The example clients of the gRPC wire, against the real program.

    python3 tests/grpc_clients.py target/debug/code-mode

Installs what they need, at pinned versions, into target/grpc-clients. Exit status 0 where each
prints what its cell puts out."""

import subprocess
import sys
from pathlib import Path

from grpc_packages import HOME, python

ROOT = Path(__file__).resolve().parent.parent
NPM = ["@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1", "tsx@4.23.15"]


def typescript():
    """A folder that has the packages, with the client in it: Node looks for them there."""
    folder = HOME / "examples" / "grpc-typescript"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM],
                   cwd=folder, check=True)
    source = ROOT / "examples/grpc-typescript/client.ts"
    (folder / "client.ts").write_text(source.read_text())
    interface = HOME / "code-mode-protocol" / "proto"
    interface.mkdir(parents=True, exist_ok=True)
    proto = ROOT / "code-mode-protocol/proto/code_mode.proto"
    (interface / "code_mode.proto").write_text(proto.read_text())
    return [str(folder / "node_modules/.bin/tsx"), str(folder / "client.ts")]


def main():
    program = Path(sys.argv[1]).resolve()
    host = subprocess.Popen([program, "serve", "--listen", "grpc://127.0.0.1:0"],
                            stdout=subprocess.PIPE, text=True)
    try:
        address = host.stdout.readline().strip().removeprefix("http://")
        for name, command in [
                ("Python", [python(), str(ROOT / "examples/grpc-python/client.py")]),
                ("TypeScript", typescript())]:
            done = subprocess.run([*command, address], capture_output=True, text=True, timeout=60)
            if (done.returncode, done.stdout) != (0, "42\n"):
                sys.exit(f"{name}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
            print(f"{name}: ok")
    finally:
        host.terminate()
    if host.wait(timeout=30) != 0:
        sys.exit(f"the host ended with {host.returncode}")


main()
