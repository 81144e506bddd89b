"""A session as tools of the OpenAI Agents SDK."""

from __future__ import annotations

import json
from typing import Any

from agents import FunctionTool, ToolOutputImage, ToolOutputText

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


def code_mode_tools(
    session: Session, *, max_output_tokens: int = MAX_OUTPUT_TOKENS
) -> list[FunctionTool]:
    """The tools ``exec`` and ``wait``, for ``Agent(tools=[...])``. Cancelling the run while a program
    runs terminates the program.

    Args:
        session: an open session.
        max_output_tokens: the most tokens of output that one observation gives the model.
    """

    async def execute(context: Any, arguments: str) -> Any:
        call = getattr(context, "tool_call_id", None)
        tokens = max_output_tokens
        given = _given(arguments)
        ran = await run_exec(session, given, tool_call_id=call, max_output_tokens=tokens)
        return _output(ran, tokens)

    async def wait(_: Any, arguments: str) -> Any:
        waited = await run_wait(session, _given(arguments), max_output_tokens=max_output_tokens)
        return _output(waited, max_output_tokens)

    description = exec_description(session)
    return [
        FunctionTool(EXEC, description, EXEC_SCHEMA, execute, strict_json_schema=False),
        FunctionTool(WAIT, WAIT_DESCRIPTION, WAIT_SCHEMA, wait, strict_json_schema=False),
    ]


def _given(arguments: str) -> Any:
    """What a model has passed; nothing, where it is not JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return None


def _output(result: CellResult | str, tokens: int) -> str | list[ToolOutputText | ToolOutputImage]:
    """The text for the model, with the images that it is shown; the SDK has no sounds."""
    images = [one for one in media(result) if one.type == "image"]
    if not images:
        return text_of(result, tokens)
    shown = [ToolOutputImage(image_url=f"data:{one.mime_type};base64,{one.data}") for one in images]
    return [ToolOutputText(text=text_of(result, tokens)), *shown]
