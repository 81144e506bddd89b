#!/usr/bin/env python3
"""Lists the functions of V8 that starts of workers and ordinary cells run, most used
first, for the linker to place side by side (code-mode-bin/build.rs):

    tests/hot_functions.py target/release/code-mode > third_party/v8/hot-functions.txt

Needs Linux's perf. Do it anew when V8's archive is replaced; a function that is no
longer there is ignored.
"""
import asyncio
import collections
import os
import re
import subprocess
import sys
import tempfile
import time

from stdio_client import Host, tool

SECONDS = 75
CELLS = [
    "text('hi')",
    "store('a', {b: [1, 2, 3]}); text(load('a'))",
    "text(await tools.echo({i: 1}))",
    "await Promise.all([1, 2, 3].map((i) => tools.echo({i}))); text('done')",
    "throw new Error('x')",
    "text(ALL_TOOLS.length); await new Promise((r) => setTimeout(r, 1)); text({a: 1})",
    "const m = new Map([[1, 2]]); for (const [k, v] of m) text(`${k}${v}`); text([3, 1, 2].sort().join())",
    "class A { #x = 1; get x() { return this.#x } } text(new A().x); text('abc'.replace(/b/g, 'x'))",
    "text(JSON.stringify(JSON.parse('{\"a\":[1,\"x\",null]}'))); notify('n')",
]
# Of this program's own crates, whose names change with every build.
RUST = re.compile(r"17h[0-9a-f]{16}E|^_R")


async def work(program):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        async with Host([program, "serve"]) as host:
            for source in CELLS:
                await asyncio.sleep(0.02)
                await host.execute(source, [tool("echo")])
            # Cells that wait until their heaps are shrunk.
            for _ in range(3):
                await host.execute("await new Promise(() => {})", [tool("echo")], yield_ms=1)
            await asyncio.sleep(0.4)


def main():
    if sys.argv[1:2] == ["--work"]:
        return asyncio.run(work(sys.argv[2]))
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    program = os.path.realpath(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        samples = os.path.join(folder, "perf.data")
        record = ["perf", "record", "-F", "25000", "-e", "cpu-clock:u", "-o", samples]
        subprocess.run([*record, sys.executable, __file__, "--work", program], check=True, stdout=sys.stderr)
        script = ["perf", "script", "-i", samples, "-F", "comm,ip,sym,dso", "--no-demangle"]
        lines = subprocess.run(script, check=True, capture_output=True, text=True).stdout.splitlines()
    # What runs while a worker starts, and then what runs for cells.
    starts, cells = collections.Counter(), collections.Counter()
    for fields in (line.split() for line in lines if program in line):
        in_cell = fields[0].startswith("code-mode-cell")
        (cells if in_cell else starts)[fields[2]] += 1
    for these, others in ((starts, cells), (cells, starts)):
        for function, count in these.most_common():
            of_these = count > others[function] or (count == others[function] and these is starts)
            if of_these and function.startswith("_") and not RUST.search(function):
                print(function)


if __name__ == "__main__":
    main()
