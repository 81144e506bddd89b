"""A session as tools of LangChain."""

from __future__ import annotations

from typing import Annotated, Any

from langchain_core.tools import BaseTool, InjectedToolCallId, StructuredTool

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
) -> list[BaseTool]:
    """The tools ``exec`` and ``wait``, for a model's ``bind_tools`` or an agent. They are asynchronous:
    ``ainvoke``. Cancelling it while a program runs terminates the program.

    Args:
        session: an open session.
        max_output_tokens: the most tokens of output that one observation gives the model.
    """

    async def execute(**arguments: Any) -> Any:
        return _output(await run_exec(session, arguments, max_output_tokens=max_output_tokens), max_output_tokens)

    async def wait(**arguments: Any) -> Any:
        return _output(await run_wait(session, arguments, max_output_tokens=max_output_tokens), max_output_tokens)

    return [
        StructuredTool.from_function(
            coroutine=execute,
            name=EXEC,
            description=exec_description(session),
            args_schema=EXEC_SCHEMA,
        ),
        StructuredTool.from_function(
            coroutine=wait, name=WAIT, description=WAIT_DESCRIPTION, args_schema=WAIT_SCHEMA
        ),
    ]


def _output(result: CellResult | str, tokens: int) -> str | list[dict[str, str]]:
    """The text for the model, with the images and sounds as content blocks."""
    if not (shown := media(result)):
        return text_of(result, tokens)
    text = {"type": "text", "text": text_of(result, tokens)}
    return [text, *({"type": one.type, "base64": one.data, "mime_type": one.mime_type} for one in shown)]
