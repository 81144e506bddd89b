"""The two tools by which a model runs programs."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Any, Coroutine, Literal, Mapping

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
#: About how many characters a token has.
TOKEN_CHARACTERS = 4
#: What the host writes beside the output that it cuts.
MARKERS = 200


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
    given: Any,
    *,
    tool_call_id: str | None = None,
    max_output_tokens: int = MAX_OUTPUT_TOKENS,
) -> CellResult | str:
    """Runs a program. A text is why it does not, for the model that has passed something else."""
    if not isinstance(given, Mapping) or not isinstance(code := given.get("code"), str):
        return "error: exec needs a program: `code`, a string"
    return await _told(
        session.exec(
            code,
            yield_time=_seconds(given),
            tool_call_id=tool_call_id,
            max_output_tokens=max_output_tokens,
        )
    )


async def run_wait(
    session: Session, given: Any, *, max_output_tokens: int = MAX_OUTPUT_TOKENS
) -> CellResult | str:
    """Waits for a program, or stops it; cancelling the wait stops it too. A text is why not."""
    if not isinstance(given, Mapping) or not isinstance(cell_id := given.get("cell_id"), str):
        return "error: wait needs the cell that it waits for: `cell_id`, a string"
    terminate = session.terminate(cell_id, max_output_tokens=max_output_tokens)
    if given.get("terminate") is True:
        return await _told(terminate)
    try:
        wait = session.wait(
            cell_id, yield_time=_seconds(given), max_output_tokens=max_output_tokens
        )
        observed = await _told(wait)
        terminate.close()
        return observed
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.ensure_future(_told(terminate)))
        raise


async def _told(work: Coroutine[Any, Any, CellResult]) -> CellResult | str:
    """The result, or a refusal as a text for the model. The agent gets the loss of a host."""
    try:
        return await work
    except RequestError as error:
        return f"error: {error}"


def _seconds(given: Mapping[str, Any]) -> float:
    """How long to wait; a model may pass anything."""
    time = given.get("yield_time_ms")
    if isinstance(time, bool) or not isinstance(time, (int, float)) or not 0 <= time <= 10**9:
        return 10
    return time / 1000


def text_of(result: CellResult | str, max_output_tokens: int) -> str:
    """The text for the model: no longer than the budget, whatever it is made of."""
    text = result if isinstance(result, str) else result.for_model()
    most = max(200, max_output_tokens * TOKEN_CHARACTERS + MARKERS)
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n({len(text) - 2 * half} characters left out)\n{text[-half:]}"


@dataclass(frozen=True)
class Media:
    """An image or a sound of a program's output."""

    type: Literal["image", "audio"]
    mime_type: str
    #: Base64.
    data: str


_DATA = re.compile(r"data:((?:image|audio)/[a-z0-9.+-]+)(?:;[^;,]*)*;base64,([a-z0-9+/]+={0,2})", re.I)


def media(result: CellResult | str) -> list[Media]:
    """The images and sounds of a result that a model can be shown."""
    found: list[Media] = []
    for item in () if isinstance(result, str) else result.content:
        parts = None if item.type == "text" else _DATA.fullmatch(item.value)
        if item.type != "text" and parts and len(parts[2]) % 4 == 0:
            found.append(Media(item.type, parts[1].lower(), parts[2]))
    return found
