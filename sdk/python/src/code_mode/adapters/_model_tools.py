"""The two tools by which a model runs programs."""

from __future__ import annotations

from typing import Any

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


async def run_exec(session: Session, code: str, yield_time_ms: int | None = None) -> str:
    """Runs a program; the answer is for the model, also where it failed."""
    seconds = 10 if yield_time_ms is None else yield_time_ms / 1000
    return (await session.exec(code, yield_time=seconds)).for_model()


async def run_wait(
    session: Session, cell_id: str, yield_time_ms: int | None = None, terminate: bool = False
) -> str:
    """Waits for a program, or stops it."""
    if terminate:
        return (await session.terminate(cell_id)).for_model()
    seconds = 10 if yield_time_ms is None else yield_time_ms / 1000
    return (await session.wait(cell_id, yield_time=seconds)).for_model()
