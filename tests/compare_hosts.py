#!/usr/bin/env python3
"""Two programs that speak the stdio wire, the same work in turn: medians and ratios.

    tests/compare_hosts.py OURS [THEIRS]

Each is a command as one string. Without THEIRS the reference host is fetched from
npm (160 MB) into target/reference, once. For example:

    tests/compare_hosts.py "target/x86_64-unknown-linux-gnu/dist/code-mode serve"

OURS is copied first, as an installer does: the kernel maps a file that a linker has written in
smaller pieces, which costs a start 5 %.
"""
import asyncio
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time

from reference_host import FOLDER, reference_host
from stdio_client import Host, tool


def memory(process):
    """Memory of a process and its descendants in KiB; shared pages are divided."""
    total, todo = 0, [process]
    while todo:
        pid = todo.pop()
        try:
            with open(f"/proc/{pid}/smaps_rollup") as rollup:
                total += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children") as children:
                    todo += map(int, children.read().split())
        except OSError:
            pass
    return total


async def timed(work, count=1):
    start = time.perf_counter()
    await work
    return (time.perf_counter() - start) / count


async def start_to_first(command):
    start = time.perf_counter()
    async with Host(command) as host:
        await host.execute("text('hi')")
        return time.perf_counter() - start


def short_answer(_):
    return {"v": 1}


async def in_turn(commands, scenario, rounds):
    """Medians of a scenario on hosts that stay, a round of one and then of the other."""
    async with Host(commands[0], short_answer) as ours, Host(commands[1], short_answer) as theirs:
        times = [[], []]
        for host in (ours, theirs):
            await host.execute("text(1)")
        for _ in range(rounds):
            for host, seen in zip((ours, theirs), times):
                seen += await scenario(host)
        return [statistics.median(seen) for seen in times]


def execs(tools, spacing):
    tools = [tool(f"tool_{i}") for i in range(tools)]

    async def scenario(host):
        times = []
        for _ in range(5):
            await asyncio.sleep(spacing)
            times.append(await timed(host.execute("text('hi')", tools)))
        return times

    return scenario


def script(source, count):
    async def scenario(host):
        return [await timed(host.execute(source, [tool("echo")]), count)]

    return scenario


async def burst(host):
    return [await timed(asyncio.gather(*(host.execute("text(1)") for _ in range(64))), 64)]


async def waiting_cells(command, count=50):
    async with Host(command) as host:
        await host.execute("text(1)")
        await asyncio.sleep(0.5)
        before = memory(host.process.pid)
        await asyncio.gather(*(host.execute("await new Promise(() => {})", yield_ms=1) for _ in range(count)))
        await asyncio.sleep(0.5)
        return before, (memory(host.process.pid) - before) / count


async def waiting_sessions(command, count=100):
    """The time to have each of many sessions with a waiting cell, and their memory when all is quiet."""
    async with Host(command) as host:
        await host.execute("text(1)")
        await asyncio.sleep(2)
        before = memory(host.process.pid)
        times = []
        for number in range(count):
            async def have():
                await host.open(f"s{number}")
                await host.execute("await new Promise(() => {})", yield_ms=1, session=f"s{number}")
            times.append(await timed(have()))
        await asyncio.sleep(3)
        return statistics.median(times), (memory(host.process.pid) - before) / count


async def idle_sessions(command, count=1000):
    """Memory of each of many sessions in which nothing ever ran."""
    async with Host(command) as host:
        await host.execute("text(1)")
        await asyncio.sleep(2)
        before = memory(host.process.pid)
        await asyncio.gather(*(host.open(f"s{number}") for number in range(count)))
        await asyncio.sleep(2)
        return (memory(host.process.pid) - before) / count


async def many_calls(command):
    async with Host(command) as host:
        work = host.execute(CALLS.format(10_000), [tool("echo")])
        try:
            return f"{await timed(asyncio.wait_for(work, 60), 10_000) * 1e6:.1f} us each"
        except (asyncio.TimeoutError, ConnectionError) as error:
            return type(error).__name__


CALLS = "await Promise.all(Array.from({{length: {}}}, (_, i) => tools.echo({{i}})))"
PAYLOAD = f"await tools.echo({{s: 'x'.repeat({8 << 20})}}); text('y'.repeat({8 << 20}))"


def main():
    commands = [shlex.split(argument) for argument in sys.argv[1:3]]
    if not commands:
        sys.exit(__doc__)
    if len(commands) == 1:
        commands.append([reference_host()])
    # Beside the reference, for the same file system.
    os.makedirs(FOLDER, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        commands[0][0] = shutil.copy(shutil.which(commands[0][0]), folder)
        asyncio.run(compare(commands))


async def compare(commands):
    print("| work over the stdio wire | ours | reference | ratio |\n| --- | ---: | ---: | ---: |")

    def row(name, values, scale, unit):
        ours, theirs = (value * scale for value in values)
        print(f"| {name} | {ours:.2f} {unit} | {theirs:.2f} {unit} | {ours / theirs:.2f} |", flush=True)

    starts = [[], []]
    for _ in range(101):
        for command, seen in zip(commands, starts):
            seen.append(await start_to_first(command))
    row("process start to first result", map(statistics.median, starts), 1e3, "ms")
    for tools in (0, 32, 128, 1024):
        row(f"warm exec, {tools} tools", await in_turn(commands, execs(tools, 0), 20), 1e3, "ms")
    for tools in (0, 128, 1024):
        row(f"exec every 20 ms, {tools} tools", await in_turn(commands, execs(tools, 0.02), 8), 1e3, "ms")
    sequential = script("for (let i = 0; i < 300; i++) await tools.echo({i})", 300)
    row("sequential tool call", await in_turn(commands, sequential, 7), 1e6, "us")
    row("100 parallel tool calls, each", await in_turn(commands, script(CALLS.format(100), 100), 7), 1e6, "us")
    row("8 MiB in, 8 MiB out", await in_turn(commands, script(PAYLOAD, 1), 5), 1e3, "ms")
    row("64 execs at once, each", await in_turn(commands, burst, 5), 1e3, "ms")
    ours, theirs = [await waiting_cells(command) for command in commands]
    row("memory after one cell, process tree", (ours[0], theirs[0]), 1 / 1024, "MiB")
    row("memory of a waiting cell", (ours[1], theirs[1]), 1 / 1024, "MiB")
    ours, theirs = [await waiting_sessions(command) for command in commands]
    row("a session with a waiting cell, one after the other", (ours[0], theirs[0]), 1e3, "ms")
    row("memory of a session with a waiting cell, of 100", (ours[1], theirs[1]), 1 / 1024, "MiB")
    row("memory of an idle session, of 1,000", [await idle_sessions(command) for command in commands], 1, "KiB")
    print(f"\n10,000 tool calls at once: ours {await many_calls(commands[0])}, reference {await many_calls(commands[1])}")


if __name__ == "__main__":
    main()
