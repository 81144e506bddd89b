#!/usr/bin/env python3
"""Lists the functions of V8 that starts of workers and ordinary cells run, for the
linker to place side by side (code-mode-bin/build.rs): what every cell runs, and then the
others, most used first. tests/start_functions.py lists what comes before them.

    tests/hot_functions.py target/release/code-mode third_party/v8/hot-functions.txt

Needs Linux's perf. Functions that the list had and this run did not see come last:
samples miss what is rare. When V8's archive is replaced, do it anew with an empty list.
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
# Runs what every cell runs, and little else.
PLAIN_CELLS = ["text('hi')"]
PLAIN_FIRST = "_ZN2v86Module8EvaluateENS_5LocalINS_7ContextEEE"
PLAIN_LAST = "_ZN2v814ScriptCompiler13CompileModuleEPNS_7IsolateEPNS0_6SourceENS0_14CompileOptionsENS0_13NoCacheReasonE"
# The function that runs a cell in an isolate that is there already, and what it does
# when the cell has its answer.
RUN = re.compile(r"9code_mode.*7runtime.*3run17h")
AFTERWARDS = "_ZN2v87Isolate7DisposeEv"
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
# A line of a sample: the thread's name, a frame (address, function, file), or both.
NAME_AND_FRAME = re.compile(r"\s*(?P<name>\S.*?)??\s*(?P<frame>\b[0-9a-f]{6,} .*)?$")
# Of this program's own crates, whose names change with every build.
RUST = re.compile(r"17h[0-9a-f]{16}E|^_R")


async def work(program, cells):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        async with Host([program, "serve"]) as host:
            for _ in range(100 if cells == "plain" else 1):
                for source in PLAIN_CELLS if cells == "plain" else CELLS:
                    await asyncio.sleep(0.02)
                    await host.execute(source, [tool("echo")])
            # Cells that wait until their heaps are shrunk.
            for _ in range(3):
                await host.execute("await new Promise(() => {})", [tool("echo")], yield_ms=1)
            await asyncio.sleep(0.4)


def samples(program, cells, *options):
    """The samples of such work: name of the thread, functions from the inside out."""
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "perf.data")
        record = ["perf", "record", "-F", "25000", "-e", "cpu-clock:u", "-o", data, *options]
        subprocess.run(
            [*record, sys.executable, __file__, "--work", program, cells], check=True, stdout=sys.stderr
        )
        script = ["perf", "script", "-i", data, "-F", "comm,ip,sym,dso", "--no-demangle"]
        text = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    thread, functions = "", []
    for line in text.splitlines():
        name, frame = NAME_AND_FRAME.match(line).groups()
        if name:
            yield thread, functions
            thread, functions = name, []
        if frame and program in frame:
            functions.append(frame.split()[1])
    yield thread, functions


def is_of_v8(function):
    return function.startswith("_") and not RUST.search(function)


def main():
    if sys.argv[1:2] == ["--work"]:
        return asyncio.run(work(*sys.argv[2:]))
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    program, path = os.path.realpath(sys.argv[1]), sys.argv[2]
    plain = collections.Counter()
    for _, functions in samples(program, "plain", "-g"):
        inside = [place for place, function in enumerate(functions) if RUN.search(function)]
        if inside and AFTERWARDS not in functions:
            plain.update(set(functions[: inside[0]]))
    # What runs while a worker starts, and then what runs for cells.
    starts, cells = collections.Counter(), collections.Counter()
    for thread, functions in samples(program, "all"):
        if functions:
            (cells if thread.startswith("code-mode-cell") else starts)[functions[0]] += 1
    listed = [function for function, _ in plain.most_common() if is_of_v8(function)]
    ends = PLAIN_FIRST, PLAIN_LAST
    listed = [PLAIN_FIRST, *(function for function in listed if function not in ends), PLAIN_LAST]
    for these, others in ((starts, cells), (cells, starts)):
        for function, count in these.most_common():
            of_these = count > others[function] or (count == others[function] and these is starts)
            if of_these and is_of_v8(function):
                listed.append(function)
    with open(path, "r+") as file:
        listed += file.read().split()
        file.seek(0)
        file.truncate()
        file.write("\n".join(dict.fromkeys(listed)) + "\n")


if __name__ == "__main__":
    main()
