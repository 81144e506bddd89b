"""Builds a container image of the program, without a container engine.

    python3 examples/deploy/image.py target/x86_64-unknown-linux-gnu/dist/code-mode code-mode.tar
    podman load -i code-mode.tar        # or docker load

The image has the program, the shared libraries that it names if any, the machine's trusted roots,
and nothing else: no shell, no package manager. Its user is 65532. The same program gives the
same image, byte for byte."""

import hashlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME = "code-mode:local"
USER = 65532
ROOTS = "/etc/ssl/certs/ca-certificates.crt"


def add(archive, name, data, mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))


def folder(archive, name, mode=0o755, owner=0):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, owner, owner
    archive.addfile(info)


def libraries(program):
    """The files that the loader maps, at the paths where it looks for them."""
    listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"(/\S+)", listed)))


def stripped(program):
    """The program without what only a debugger reads."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "program"
        subprocess.run(["strip", "-o", small, program], check=True)
        return small.read_bytes()


def layer(program):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        files = libraries(program)
        if os.path.exists(ROOTS):
            files.append(ROOTS)
        folders = {"tmp"}
        for path in files:
            parents = [str(parent).lstrip("/") for parent in Path(path).parents]
            folders.update(parent for parent in parents if parent)
        for name in sorted(folders):
            folder(archive, name, *((0o1777, USER) if name == "tmp" else ()))
        add(archive, "etc/passwd", f"code-mode:x:{USER}:{USER}::/:/none\n".encode())
        for path in files:
            add(archive, path.lstrip("/"), Path(path).read_bytes(), 0o755)
        add(archive, "code-mode", stripped(program), 0o755)
    return data.getvalue()


def main():
    program, target = sys.argv[1:]
    content = layer(program)
    digest = hashlib.sha256(content).hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
        "os": "linux",
        "config": {"User": f"{USER}:{USER}", "Entrypoint": ["/code-mode"], "Cmd": ["doctor"],
                   "WorkingDir": "/", "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    config = json.dumps(config, sort_keys=True).encode()
    name = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{name}.json", "RepoTags": [NAME], "Layers": [f"{digest}.tar"]}]
    with tarfile.open(target, "w") as archive:
        add(archive, f"{digest}.tar", content)
        add(archive, f"{name}.json", config)
        add(archive, "manifest.json", json.dumps(manifest).encode())
    print(f"{target}: {NAME}, {len(content) / 2**20:.0f} MiB")


main()
