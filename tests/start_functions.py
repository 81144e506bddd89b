#!/usr/bin/env python3
"""Lists the functions that a host and a worker run from their start to the end of the first cells,
for the linker to place side by side (code-mode-bin/build.rs).

    tests/start_functions.py target/x86_64-unknown-linux-gnu/dist/code-mode code-mode-bin/start-functions.txt

Needs valgrind and nm. The name of a function of Rust ends with a hash, which is another in each version of
its crate. So the list has such a name with `*` in place of the hash, unless far too many functions
would match: those of the same generic function for other types.
"""
import asyncio
import collections
import os
import re
import subprocess
import sys
import tempfile

from stdio_client import Host, tool

HASH = re.compile(r"17h[0-9a-f]{16}E(\.llvm\.\d+)?$")
# What a worker runs to lock itself in, which it does not under valgrind.
LOCK_IN = re.compile(r"17code_mode_sandbox|8landlock|11seccompiler|6rlimit")
# As much as may match beside what runs: so many times its size, or so many bytes.
MOST, LITTLE = 4, 8192


async def work(command):
    async with Host(command) as host:
        await host.execute("text(1)")
        await host.execute("text(await tools.echo({i: 1}))", [tool("echo")])
        await host.execute("await new Promise(() => {})", [tool("echo")], yield_ms=1)
        # Its heap is collected when it has waited for a moment.
        await asyncio.sleep(5)


def functions(path):
    """Those that valgrind saw, in the order in which they were first called."""
    with open(path) as file:
        # Each is named where it is met first, and has a number from there on.
        seen = re.findall(r"^c?fn=\(\d+\) (\S+)$", file.read(), re.MULTILINE)
    return list(dict.fromkeys(name.split("'")[0] for name in seen))


def under_valgrind(folder, name):
    output = f"--callgrind-out-file={folder}/{name}"
    return ["valgrind", "-q", "--tool=callgrind", "--demangle=no", output]


async def of_host(program, folder):
    await work([*under_valgrind(folder, "host"), program, "serve"])
    return functions(f"{folder}/host")


async def of_worker(program, folder):
    socket = f"{folder}/socket"
    command = [*under_valgrind(folder, "worker"), program, "worker", "--no-sandbox", "--listen", socket]
    worker = await asyncio.create_subprocess_exec(*command)
    while not os.path.exists(socket):
        if worker.returncode is not None:
            sys.exit("the worker does not listen")
        await asyncio.sleep(0.1)
    await work([program, "serve", "--worker-socket", socket])
    await worker.wait()
    return functions(f"{folder}/worker")


def sizes_of(program):
    listed = subprocess.run(["nm", "--print-size", program], check=True, capture_output=True, text=True).stdout
    return {name: int(size, 16) for size, name in re.findall(r"^\S+ (\S+) [tTwW] (\S+)$", listed, re.MULTILINE)}


async def main(program, path):
    sizes = sizes_of(program)
    with tempfile.TemporaryDirectory() as folder:
        ran = await of_host(program, folder)
        ran += filter(LOCK_IN.search, sizes)
        ran += await of_worker(program, folder)
    ran = [name for name in dict.fromkeys(ran) if name in sizes]
    used, matching = collections.Counter(), collections.Counter()
    for name in ran:
        used[HASH.sub("", name)] += sizes[name]
    for name, size in sizes.items():
        matching[HASH.sub("", name)] += size

    def line(name):
        start = HASH.sub("", name)
        fits = matching[start] <= max(MOST * used[start], LITTLE)
        return f"{start}17h*" if start != name and fits else name

    with open(path, "w") as file:
        file.write("\n".join(dict.fromkeys(map(line, ran))) + "\n")
    print(f"{len(ran)} functions, {sum(sizes[name] for name in ran) >> 10} KiB")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    asyncio.run(main(os.path.realpath(sys.argv[1]), sys.argv[2]))
