#!/usr/bin/env python3
"""The same cells on any two programs that speak the stdio wire; prints where they differ.

    tests/differ_hosts.py OURS [THEIRS] [CASES.json]

Each program is a command as one string. Without THEIRS the reference host is fetched
from npm. Cases come from tests/fixtures/conformance.json, or a file of the same form.
Exit status 1 where anything differs.
"""
import asyncio
import json
import os
import shlex
import sys

from reference_host import reference_host
from stdio_client import Host

FIXTURE = os.path.join(os.path.dirname(__file__), "fixtures", "conformance.json")


def answers(shot):
    def answer(call):
        name = call["tool_name"]["name"]
        if name == "fail":
            raise RuntimeError("tool said no")
        if name == "slow":
            async def slow():
                await asyncio.sleep(0.04)
                return "slow done"
            return slow()
        if name == "never":
            return asyncio.sleep(3600)
        if name in ("nothing", "big", "shot"):
            return {"nothing": None, "big": "x" * 1_000_000, "shot": shot}[name]
        return {"name": name, "ns": call["tool_name"]["namespace"], "kind": call["tool_kind"],
                "input": call["input"], "id": call["runtime_tool_call_id"]}
    return answer


def without_timings(value):
    if isinstance(value, dict):
        return {k: without_timings(v) for k, v in value.items() if not k.endswith("_ns")}
    if isinstance(value, list):
        return [without_timings(v) for v in value]
    return value


async def run(command, case, fixture):
    async with Host(command, answers(fixture["shot_result"])) as host:
        results, last = [], ""
        for step in case["steps"]:
            cell = last if step.get("cell_id") == "LAST" else step.get("cell_id")
            if step["op"] == "execute":
                tools = step.get("enabled_tools", fixture["enabled_tools"])
                result = await host.execute(step["source"], tools, step["yield_time_ms"])
                last = next(iter(result["value"].values()))["cell_id"]
            elif step["op"] == "wait":
                result = await host.wait(cell, step["yield_time_ms"])
            elif step["op"] == "terminate_if_yielded" and "Yielded" not in results[-1]["value"]:
                continue
            else:
                result = await host.terminate(cell)
            results.append(without_timings(result))
        return results, host.notifications


async def main():
    arguments = [a for a in sys.argv[1:] if not a.endswith(".json")]
    files = [a for a in sys.argv[1:] if a.endswith(".json")]
    if not arguments:
        sys.exit(__doc__)
    commands = [shlex.split(argument) for argument in arguments]
    if len(commands) == 1:
        commands.append([reference_host()])
    with open(files[0] if files else FIXTURE) as file:
        fixture = json.load(file)
    differing = 0
    for case in fixture["cases"]:
        got = []
        for command in commands:
            try:
                got.append(await asyncio.wait_for(run(command, case, fixture), 30))
            except (asyncio.TimeoutError, ConnectionError) as error:
                got.append(type(error).__name__)
        if got[0] != got[1]:
            differing += 1
            print(case["name"])
            for name, seen in zip(("ours  ", "theirs"), got):
                print(f"  {name} {json.dumps(seen, ensure_ascii=False)[:1000]}")
    print(f"{len(fixture['cases']) - differing} alike, {differing} differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    asyncio.run(main())
