"""What an agent does with a session, without a framework: it offers the model two tools, ``exec`` and
``wait``, runs what the model asks for, and asks a person before money is spent. The model is scripted.

    pip install code-mode-runtime && python agent.py
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from code_mode import CellResult, CodeMode, Tool, ToolCall, ToolLike


async def quote(part: str) -> dict[str, Any]:
    "The price of a part in cents"
    return {"part": part, "cents": len(part) * 100}


async def buy(part: str, cents: int) -> str:
    "Buys a part"
    return f"bought {part}"


def approve(calls: Sequence[ToolCall]) -> list[bool | str]:
    """Calls that wait at the same time come together; the program's clocks stand still meanwhile."""
    why = "more than 5.00 needs a signature"
    return [call.input["cents"] <= 500 or f"{call.name}: {why}" for call in calls]


def observe(event: Mapping[str, Any]) -> None:
    if event["type"] == "call/finished":
        print(f"  {event['name']}: {event['outcome']}")


#: What the model asks for, turn by turn; a real one reads ``session.instructions`` and the answers.
TURNS = [
    """const quotes = await Promise.all(["bolt", "turbine"].map((part) => tools.quote({ part })));
store("quotes", quotes);
for (const quote of quotes) text(await tools.buy(quote).catch((error) => error.message));""",
    """text(load("quotes").length + " quotes");\nyield_control();\ntext("done");""",
    None,
]


async def main() -> None:
    tools: list[ToolLike] = [Tool(quote, needs_approval=False), buy]
    async with CodeMode() as host:
        session = host.session(tools=tools, approve=approve, on_event=observe, limits={"max_wall_time": 60})
        async with session:
            last: CellResult | None = None
            for code in TURNS:
                if code is not None:
                    last = await session.exec(code, max_output_tokens=10_000)
                elif last is not None:
                    last = await session.wait(last.cell_id)
                assert last is not None
                print(f"{'wait' if code is None else 'exec'}: {last.status}\n{last.for_model()}")


asyncio.run(main())
