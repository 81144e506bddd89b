"""Fetches the reference host, and the Codex CLI that starts it, from npm."""
import os
import subprocess
import tarfile

PACKAGE = "@openai/codex@0.169.0-linux-x64"
FOLDER = os.path.join(os.path.dirname(__file__), "..", "target", "reference")
INSIDE = "package/vendor/x86_64-unknown-linux-musl/"


def installed(program):
    path = os.path.join(FOLDER, "bin", program)
    if not os.path.exists(path):
        os.makedirs(FOLDER, exist_ok=True)
        archive = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=FOLDER, check=True,
                                 capture_output=True, text=True).stdout.strip()
        archive = os.path.join(FOLDER, archive)
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.startswith(INSIDE):
                    member.name = member.name.removeprefix(INSIDE)
                    tar.extract(member, FOLDER, filter="data")
        os.remove(archive)
    return path


def reference_host():
    return installed("codex-code-mode-host")


def codex():
    return installed("codex")
