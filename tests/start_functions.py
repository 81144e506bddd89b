#!/usr/bin/env python3
"""Lists the functions that a host and a worker run from their start to the end of ordinary cells,
for the linker to place side by side (code-mode-bin/build.rs).

    tests/start_functions.py make PROGRAM    writes code-mode-bin/start-functions.txt, with valgrind: what a
                                             host runs, an empty line, what only a worker runs
    tests/start_functions.py check PROGRAM   fails where the program lacks many of them

PROGRAM is the one of `cargo dist-build`; nm reads its symbols. Make the list anew for another toolchain, another V8, and
where the check fails. The name of a function of Rust ends with a hash, which is another in each version of its
crate. So the list has such a name with `*` in place of the hash, unless far too many functions would
match: those of the same generic function for other types. Valgrind has no AVX-512, so the list has
the C library's functions for AVX2.
"""
import asyncio
import collections
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from stdio_client import Host, tool

LIST = Path(__file__).resolve().parent.parent / "code-mode-bin" / "start-functions.txt"
HASH = re.compile(r"17h[0-9a-f]{16}E(\.llvm\.\d+)?$")
# By these a worker locks itself in, and the first one is split off. Under valgrind a worker runs with `--no-sandbox` and
# none is split off, so they are listed by name.
LOCK_IN = re.compile(r"17code_mode_sandbox|8landlock|11seccompiler|6rlimit|7process5ahead|15initial_strings|6worker8template")
# A pattern may match so many times the bytes that ran, and in any case so many bytes.
MAX_RATIO, ALWAYS_ALLOWED = 4, 8192
# A program that has fewer of the list's names than this share is another than the list was made for.
MIN_SHARE = 0.9
# Under valgrind the work takes seconds.
LIMIT = 120
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


async def work(command):
    async with Host(command) as host:
        for source in CELLS:
            await host.execute(source, [tool("echo")])
        await host.execute("await new Promise(() => {})", [tool("echo")], yield_ms=1)
        # V8 collects the garbage of a cell that has waited for a moment.
        await asyncio.sleep(5)
        # At the end of its input a host ends; Host would kill it sooner than valgrind has written.
        host.process.stdin.close()
        await host.process.wait()


def functions(path):
    """Those that valgrind saw."""
    with open(path) as file:
        # Each is named where it is met first, and has a number from there on.
        seen = re.findall(r"^c?fn=\(\d+\) (\S+)$", file.read(), re.MULTILINE)
    return {name.split("'")[0] for name in seen}


def under_valgrind(folder, name):
    output = f"--callgrind-out-file={folder}/{name}"
    return ["valgrind", "-q", "--tool=callgrind", "--demangle=no", output]


async def of_host(program, folder):
    await asyncio.wait_for(work([*under_valgrind(folder, "host"), program, "serve"]), LIMIT)
    return functions(f"{folder}/host")


async def of_worker(program, folder):
    socket = f"{folder}/socket"
    command = [*under_valgrind(folder, "worker"), program, "worker", "--no-sandbox", "--listen", socket]
    worker = await asyncio.create_subprocess_exec(*command)
    try:
        while not os.path.exists(socket):
            if worker.returncode is not None:
                sys.exit("the worker does not listen")
            await asyncio.sleep(0.1)
        await asyncio.wait_for(work([program, "serve", "--worker-socket", socket]), LIMIT)
        await asyncio.wait_for(worker.wait(), LIMIT)
    finally:
        if worker.returncode is None:
            worker.kill()
    return functions(f"{folder}/worker")


def sizes_of(program):
    listed = subprocess.run(["nm", "--print-size", program], check=True, capture_output=True, text=True).stdout
    return {name: int(size, 16) for size, name in re.findall(r"^\S+ (\S+) [tTwW] (\S+)$", listed, re.MULTILINE)}


async def make(program):
    sizes = sizes_of(program)
    with tempfile.TemporaryDirectory() as folder:
        host, worker = await of_host(program, folder), await of_worker(program, folder)
    worker |= set(filter(LOCK_IN.search, sizes))
    ran = (host | worker) & sizes.keys()
    # Both run some thousand; fewer is a run that failed.
    if len(ran) < 4000:
        sys.exit(f"only {len(ran)} functions were seen")
    used, matching = collections.Counter(), collections.Counter()
    for name in ran:
        used[HASH.sub("", name)] += sizes[name]
    for name, size in sizes.items():
        matching[HASH.sub("", name)] += size

    def line(name):
        start = HASH.sub("", name)
        fits = matching[start] <= max(MAX_RATIO * used[start], ALWAYS_ALLOWED)
        return f"{start}17h*" if start != name and fits else name

    first = set(map(line, host & ran))
    parts = sorted(first), sorted(set(map(line, ran)) - first)
    LIST.write_text("\n\n".join(map("\n".join, parts)) + "\n")
    print(f"{len(ran)} functions, {sum(sizes[name] for name in ran) >> 10} KiB")


def check(program):
    names = LIST.read_text().split()
    there = sizes_of(program).keys()
    there |= {HASH.sub("17h*", name) for name in there}
    missing = [name for name in names if name not in there]
    print(f"{len(names) - len(missing)} of {len(names)} names are in the program")
    if len(missing) > (1 - MIN_SHARE) * len(names):
        sys.exit(f"it lacks {missing[:5]} and others: run `tests/start_functions.py make`")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("make", "check"):
        sys.exit(__doc__)
    if sys.argv[1] == "check":
        check(sys.argv[2])
    else:
        asyncio.run(make(os.path.realpath(sys.argv[2])))
