"""A session as tools of the OpenAI Agents SDK."""

from __future__ import annotations

import json
from typing import Any

from agents import FunctionTool

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


def code_mode_tools(session: Session) -> list[FunctionTool]:
    """The tools ``exec`` and ``wait``, for ``Agent(tools=[...])``."""

    async def execute(_: Any, arguments: str) -> str:
        return await run_exec(session, **json.loads(arguments))

    async def wait(_: Any, arguments: str) -> str:
        return await run_wait(session, **json.loads(arguments))

    return [
        FunctionTool(EXEC, session.instructions, EXEC_SCHEMA, execute, strict_json_schema=False),
        FunctionTool(WAIT, WAIT_DESCRIPTION, WAIT_SCHEMA, wait, strict_json_schema=False),
    ]
