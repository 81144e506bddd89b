"""The same work through this project's SDK for Python and through `pydantic-monty`. Prints medians as
JSON. Called by tests/compare_sdks.py."""

import asyncio
import json
import statistics
import sys
import time

import pydantic_monty

from code_mode import CodeMode

ROUNDS = 40
OURS = {
    "one tool call": "await tools.add({ a: 1, b: 2 })",
    "100 calls in sequence": "for (let i = 0; i < 100; i++) await tools.add({ a: 1, b: 2 });",
    "100 calls at once": "await Promise.all(Array.from({ length: 100 }, () => tools.add({ a: 1, b: 2 })));",
}
MONTY = {
    "one tool call": "await add(1, 2)",
    "100 calls in sequence": "for i in range(100):\n    await add(1, 2)",
    "100 calls at once": "import asyncio\nawait asyncio.gather(*[add(1, 2) for i in range(100)])",
}
SESSIONS = "20 sessions, a call in each"


async def add(a: int, b: int) -> int:
    return a + b


async def main(program: str) -> None:
    times: dict[str, dict[str, list[float]]] = {"SDK for Python": {}, "pydantic-monty": {}}

    async def timed(name, what, work):
        start = time.perf_counter()
        await work()
        times[name].setdefault(what, []).append((time.perf_counter() - start) * 1000)

    async with CodeMode(program=program) as host, pydantic_monty.AsyncMonty() as pool:
        async with host.session(tools=[add], check_inputs=False) as session:

            async def ours(code, on=session):
                result = await on.exec(code)
                assert result.status == "completed", result

            async def ours_fresh():
                async with host.session(tools=[add], check_inputs=False) as one:
                    await ours(OURS["one tool call"], one)

            async def monty(code):
                async with pool.checkout() as one:
                    await one.feed_run(code, external_lookup={"add": add})

            for round in range(ROUNDS + 5):
                for what in OURS:
                    if round < 5:
                        await ours(OURS[what])
                        await monty(MONTY[what])
                    else:
                        await timed("SDK for Python", what, lambda: ours(OURS[what]))
                        await timed("pydantic-monty", what, lambda: monty(MONTY[what]))
                if round >= 5 and round % 8 == 0:
                    await timed("SDK for Python", SESSIONS, lambda: asyncio.gather(*(ours_fresh() for _ in range(20))))
                    code = MONTY["one tool call"]
                    await timed("pydantic-monty", SESSIONS, lambda: asyncio.gather(*(monty(code) for _ in range(20))))
    medians = {name: {what: statistics.median(all) for what, all in of.items()} for name, of in times.items()}
    print(json.dumps(medians))


asyncio.run(main(sys.argv[1]))
