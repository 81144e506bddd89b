"""A session as a toolset of Pydantic AI."""

from __future__ import annotations

import base64
from typing import Any

from pydantic_ai import BinaryContent, Tool, ToolReturn
from pydantic_ai.toolsets import FunctionToolset

from .._results import CellResult
from .._session import Session
from ._model_tools import (
    EXEC,
    EXEC_SCHEMA,
    MAX_OUTPUT_TOKENS,
    WAIT,
    WAIT_DESCRIPTION,
    WAIT_SCHEMA,
    exec_description,
    media,
    run_exec,
    run_wait,
    text_of,
)


def code_mode_toolset(
    session: Session, *, max_output_tokens: int = MAX_OUTPUT_TOKENS
) -> FunctionToolset[Any]:
    """The tools ``exec`` and ``wait``, for ``Agent(toolsets=[...])``. Cancelling the agent's run while a
    program runs terminates the program.

    Args:
        session: an open session.
        max_output_tokens: the most tokens of output that one observation gives the model.
    """

    async def execute(**arguments: Any) -> Any:
        return _output(await run_exec(session, arguments, max_output_tokens=max_output_tokens), max_output_tokens)

    async def wait(**arguments: Any) -> Any:
        return _output(await run_wait(session, arguments, max_output_tokens=max_output_tokens), max_output_tokens)

    tools: list[Tool[Any]] = [
        Tool.from_schema(execute, EXEC, exec_description(session), EXEC_SCHEMA),
        Tool.from_schema(wait, WAIT, WAIT_DESCRIPTION, WAIT_SCHEMA),
    ]
    return FunctionToolset(tools)


def _output(result: CellResult | str, tokens: int) -> str | ToolReturn[str]:
    """The text for the model, with the images and sounds that it is shown."""
    if not (shown := media(result)):
        return text_of(result, tokens)
    content = [BinaryContent(base64.b64decode(one.data), media_type=one.mime_type) for one in shown]
    return ToolReturn(text_of(result, tokens), content=content)
