"""The packages that the clients of the gRPC wire need, in a place of their own."""

import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent / "target" / "grpc-clients"
PACKAGES = ["grpcio==1.85.1", "grpcio-tools==1.85.1", "h2==4.3.0"]


def python():
    """A Python that has them."""
    program = HOME / "venv" / "bin" / "python"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(HOME / "venv")], check=True)
    subprocess.run([str(program), "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return str(program)
