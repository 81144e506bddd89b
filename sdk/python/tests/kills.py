"""Kills hosts at random moments under load: `python3 tests/kills.py [COUNT]`. No call may hang, no answer
may be another call's, and no process may be left."""

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

from code_mode import CodeMode, HostLostError, Session, StartError

counts = {"answered": 0, "lost": 0}


async def echo(n: str) -> str:
    await asyncio.sleep(random.random() * 0.004)
    return n


async def execute(session: Session, name: str) -> None:
    code = f"const all = await Promise.all([1, 2, 3].map((n) => tools.echo({{ n: {json.dumps(name)} + n }}))); text(all)"
    try:
        result = await asyncio.wait_for(session.exec(code), 30)
    except HostLostError:
        counts["lost"] += 1
        return
    expected = json.dumps([f"{name}{n}" for n in (1, 2, 3)], separators=(",", ":"))
    assert result.status == "completed" and result.text == expected, (name, result)
    counts["answered"] += 1


async def work(host: CodeMode, name: str) -> None:
    try:
        session = await asyncio.wait_for(host.session(tools=[echo]).open(), 30)
        await asyncio.gather(*(execute(session, f"{name}e{e}-") for e in range(4)))
        await asyncio.wait_for(session.close(), 30)
    except (HostLostError, StartError):
        counts["lost"] += 1


async def main(count: int) -> None:
    pids = set()
    async with CodeMode() as host:
        for kill in range(count):
            pid = await host.pid()
            pids.add(pid)
            all = [asyncio.create_task(work(host, f"k{kill}s{s}")) for s in range(3)]
            await asyncio.sleep(random.random() * 0.3)
            with contextlib.suppress(ProcessLookupError):
                # It may have been killed before, where nobody has noticed yet.
                os.kill(pid, signal.SIGKILL)
            await asyncio.gather(*all)
    until = time.monotonic() + 30
    # Workers are in the groups of their hosts.
    while left := [pid for pid in pids if subprocess.run(["pgrep", "-g", str(pid)], capture_output=True).returncode == 0]:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.05)
    print(
        f"{count} hosts killed: {counts['answered']} programs answered rightly, {counts['lost']} calls lost with a "
        "HostLostError, nothing hung, nothing left"
    )


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300))
