"""The two tools by which a model runs programs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Literal

from .._errors import RequestError
from .._results import CellResult
from .._session import Session

EXEC = "exec"
EXEC_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "description": "The program."},
        "yield_time_ms": {
            "type": "integer",
            "description": "How long to wait for its end. Default 10000.",
        },
    },
    "required": ["code"],
    "additionalProperties": False,
}
WAIT = "wait"
WAIT_DESCRIPTION = "Waits for more of a program that is still running."
WAIT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "cell_id": {"type": "string"},
        "yield_time_ms": {"type": "integer"},
        "terminate": {"type": "boolean", "description": "Stops the program instead."},
    },
    "required": ["cell_id"],
    "additionalProperties": False,
}


#: The most tokens of output that one observation gives a model.
MAX_OUTPUT_TOKENS = 10_000


def exec_description(session: Session) -> str:
    """What a model is told of the tool ``exec``.

    Raises:
        TypeError, RequestError: it is no session, or not an open one.
    """
    if not isinstance(session, Session):
        raise TypeError(f"the tools need a Session, and this is a {type(session).__name__}")
    if not session.instructions:
        raise RequestError("the session is not open")
    return session.instructions


async def run_exec(
    session: Session,
    code: str,
    yield_time_ms: int | None = None,
    *,
    tool_call_id: str | None = None,
    max_output_tokens: int = MAX_OUTPUT_TOKENS,
) -> CellResult:
    """Runs a program."""
    return await session.exec(
        code,
        yield_time=_seconds(yield_time_ms),
        tool_call_id=tool_call_id,
        max_output_tokens=max_output_tokens,
    )


async def run_wait(
    session: Session,
    cell_id: str,
    yield_time_ms: int | None = None,
    terminate: bool = False,
    *,
    max_output_tokens: int = MAX_OUTPUT_TOKENS,
) -> CellResult:
    """Waits for a program, or stops it; cancelling the wait stops it too."""
    if terminate:
        return await session.terminate(cell_id)
    try:
        return await session.wait(
            cell_id, yield_time=_seconds(yield_time_ms), max_output_tokens=max_output_tokens
        )
    except asyncio.CancelledError:
        await asyncio.shield(session.terminate(cell_id))
        raise


def _seconds(yield_time_ms: int | None) -> float:
    return 10 if yield_time_ms is None else yield_time_ms / 1000


@dataclass(frozen=True)
class Media:
    """An image or a sound of a program's output."""

    type: Literal["image", "audio"]
    mime_type: str
    #: Base64.
    data: str


def media(result: CellResult) -> list[Media]:
    """The images and sounds of a result; all of them come as ``data:`` URLs."""
    found: list[Media] = []
    for item in result.content:
        if item.type != "text" and (parts := re.fullmatch(r"data:([^;,]+);base64,(.*)", item.value, re.S)):
            found.append(Media(item.type, parts[1], parts[2]))
    return found
