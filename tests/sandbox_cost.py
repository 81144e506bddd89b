#!/usr/bin/env python3
"""What a worker's sandbox and code that is not compiled cost, over the stdio wire in one run.

    tests/sandbox_cost.py PROGRAM
"""
import asyncio
import statistics
import sys

from compare_hosts import execs, script, start_to_first, timed
from stdio_client import Host

FIB = "const fib = (n) => n < 2 ? n : fib(n - 1) + fib(n - 2); text(fib(32))"
OBJECTS = """
const rows = Array.from({ length: 300000 }, (_, i) => ({ id: i, key: (i * 7919) % 300007 }));
const copy = JSON.parse(JSON.stringify(rows));
text(copy.sort((a, b) => a.key - b.key)[0].id)
"""
CALLS = "for (let i = 0; i < 300; i++) await tools.echo({i})"


async def cost(commands, scenario, rounds):
    """The median of each command, a round of one after a round of the others."""
    hosts = [Host(command) for command in commands]
    for host in hosts:
        await host.__aenter__()
        await host.execute("text(1)")
    times = [[] for _ in hosts]
    for _ in range(rounds):
        for host, seen in zip(hosts, times):
            seen += await scenario(host)
    for host in hosts:
        await host.__aexit__()
    return map(statistics.median, times)


def cell(source):
    async def scenario(host):
        return [await timed(host.execute(source))]

    return scenario


async def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    serve = [sys.argv[1], "serve"]
    commands = [serve, [*serve, "--no-sandbox"], [*serve, "--jitless"]]
    print("| work | with the sandbox | without | with `--jitless` |\n| --- | ---: | ---: | ---: |")

    def row(name, values, scale, unit):
        print(f"| {name} |", " | ".join(f"{value * scale:.2f} {unit}" for value in values), "|", flush=True)

    starts = [[] for _ in commands]
    for _ in range(21):
        for command, seen in zip(commands, starts):
            seen.append(await start_to_first(command))
    row("process start to first result", map(statistics.median, starts), 1e3, "ms")
    row("warm exec, 0 tools", await cost(commands, execs(0, 0), 20), 1e3, "ms")
    row("sequential tool call", await cost(commands, script(CALLS, 300), 7), 1e6, "us")
    row("`fib(32)` in a cell", await cost(commands, cell(FIB), 7), 1e3, "ms")
    row("300,000 objects to JSON and back, and sorted", await cost(commands, cell(OBJECTS), 5), 1e3, "ms")


if __name__ == "__main__":
    asyncio.run(main())
