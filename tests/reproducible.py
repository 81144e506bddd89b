#!/usr/bin/env python3
"""Wraps one program twice and compares the packages: `python3 tests/reproducible.py PROGRAM`."""
import hashlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packaging"))
from wrap import Release  # noqa: E402


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def main(program):
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        Release("9.9.9", program, Path(one)).make()
        # Times of files are in whole seconds.
        time.sleep(1.1)
        Release("9.9.9", program, Path(other)).make()
        first, second = sums(Path(one)), sums(Path(other))
    for name in first:
        print("same " if first[name] == second.get(name) else "DIFFERS", name)
    sys.exit(first != second)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())
