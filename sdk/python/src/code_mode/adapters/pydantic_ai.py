"""A session as a toolset of Pydantic AI."""

from __future__ import annotations

from typing import Any

from pydantic_ai import Tool
from pydantic_ai.toolsets import FunctionToolset

from .._session import Session
from ._model_tools import (
    EXEC,
    EXEC_SCHEMA,
    WAIT,
    WAIT_DESCRIPTION,
    WAIT_SCHEMA,
    run_exec,
    run_wait,
)


def code_mode_toolset(session: Session) -> FunctionToolset[Any]:
    """The tools ``exec`` and ``wait``, for ``Agent(toolsets=[...])``. Cancelling the agent's run
    terminates the program."""

    async def execute(**arguments: Any) -> str:
        return await run_exec(session, **arguments)

    async def wait(**arguments: Any) -> str:
        return await run_wait(session, **arguments)

    tools: list[Tool[Any]] = [
        Tool.from_schema(execute, EXEC, session.instructions, EXEC_SCHEMA),
        Tool.from_schema(wait, WAIT, WAIT_DESCRIPTION, WAIT_SCHEMA),
    ]
    return FunctionToolset(tools)
