"""Runs the programs that a model writes, in sandboxed processes, with your functions as their tools.

    from code_mode import CodeMode

    async def add(a: int, b: int) -> int:
        "Sum"
        return a + b

    async with CodeMode() as host:
        async with host.session(tools=[add]) as session:
            result = await session.run("text(await tools.add({ a: 1, b: 2 }))")
            print(result.text)
"""

from ._errors import CodeModeError, HostLostError, RequestError, StartError, ToolError
from ._host import CodeMode
from ._program import find_program
from ._results import CellError, CellResult, CellStats, ContentItem, Limit, Position
from ._approvals import Approve, Decision
from ._events import OnEvent
from ._options import ExecOptions, Limits, SessionOptions, WaitOptions
from ._session import Session
from ._sync import CodeModeSync, SessionSync
from ._tools import Tool, ToolCall, ToolContext, ToolLike, audio, image

__all__ = [
    "Approve",
    "CellError",
    "CellResult",
    "CellStats",
    "CodeMode",
    "CodeModeError",
    "CodeModeSync",
    "ContentItem",
    "Decision",
    "ExecOptions",
    "HostLostError",
    "Limit",
    "Limits",
    "OnEvent",
    "Position",
    "RequestError",
    "Session",
    "SessionOptions",
    "SessionSync",
    "StartError",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolError",
    "ToolLike",
    "WaitOptions",
    "audio",
    "find_program",
    "image",
]
