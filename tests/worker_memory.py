#!/usr/bin/env python3
"""Where the memory of workers is: a table of private KiB, for the command of a host.

    tests/worker_memory.py "target/x86_64-unknown-linux-gnu/dist/code-mode serve"

Starts the host with a session in which a cell has ended and one in which a cell waits, and reads
`smaps` of its processes when all have been quiet for some seconds. What processes share is not in
it: the program's code, and the addresses that loading it made.
"""
import asyncio
import os
import re
import shlex
import sys

from stdio_client import Host

KINDS = ["program, code", "program, data", "V8, read only", "heaps and allocator", "stacks"]


def children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as children:
            found += map(int, children.read().split())
    return found


def kind(permissions, name):
    if name.startswith("/"):
        return "program, code" if "x" in permissions else "program, data"
    if name == "[stack]":
        return "stacks"
    return "heaps and allocator" if "w" in permissions else "V8, read only"


def private(pid):
    sums, current = dict.fromkeys(KINDS, 0), None
    with open(f"/proc/{pid}/smaps") as smaps:
        for line in smaps:
            head = re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \S+\s*(.*)", line)
            if head:
                current = kind(*head.groups())
            elif line.startswith(("Private_Clean:", "Private_Dirty:")):
                sums[current] += int(line.split()[1])
    return sums


async def main(command):
    columns = {}
    async with Host(command) as host:
        await host.execute("text(1)")
        await asyncio.sleep(1)
        known = set(children(host.process.pid))
        await host.open("waits")
        await host.execute("await new Promise(() => {})", yield_ms=1, session="waits")
        await asyncio.sleep(3)
        columns["host"] = private(host.process.pid)
        for pid in sorted(children(host.process.pid)):
            with open(f"/proc/{pid}/comm") as comm:
                is_template = comm.read().startswith("code-mode-templ")
            # The spare of before has become the second session's worker.
            names = ["template"] if is_template else ["worker, a cell has ended", "worker, a cell waits"] if pid in known else ["spare worker"]
            columns[next(name for name in names if name not in columns)] = private(pid)
    print("| private KiB | " + " | ".join(columns) + " |\n| --- |" + " ---: |" * len(columns))
    for one in KINDS:
        print(f"| {one} | " + " | ".join(str(column[one]) for column in columns.values()) + " |")
    print("| all | " + " | ".join(str(sum(column.values())) for column in columns.values()) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(shlex.split(sys.argv[1])))
