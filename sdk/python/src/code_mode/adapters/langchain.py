"""A session as tools of LangChain."""

from __future__ import annotations

from typing import Any

from langchain_core.tools import BaseTool, StructuredTool

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


def code_mode_tools(session: Session) -> list[BaseTool]:
    """The tools ``exec`` and ``wait``, for a model's ``bind_tools`` or an agent. They are asynchronous:
    ``ainvoke``."""

    async def execute(**arguments: Any) -> str:
        return await run_exec(session, **arguments)

    async def wait(**arguments: Any) -> str:
        return await run_wait(session, **arguments)

    return [
        StructuredTool.from_function(
            coroutine=execute,
            name=EXEC,
            description=session.instructions,
            args_schema=EXEC_SCHEMA,
        ),
        StructuredTool.from_function(
            coroutine=wait, name=WAIT, description=WAIT_DESCRIPTION, args_schema=WAIT_SCHEMA
        ),
    ]
