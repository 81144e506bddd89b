"""How sessions are opened, and programs run."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, TypedDict

from ._approvals import Approve
from ._errors import RequestError
from ._events import OnEvent
from ._tools import ToolLike
from ._wire import Message


class Limits(TypedDict, total=False):
    """What cells of a session may use; what is left out is the host's own limit, which is also the
    most. Times are in seconds."""

    max_heap_bytes: int
    max_cpu_time: float
    max_wall_time: float
    max_yield_time: float
    max_output_bytes: int
    max_live_cells: int
    max_pending_tool_calls: int
    max_stored_bytes: int


class SessionOptions(TypedDict, total=False):
    """What a session is opened with. The defaults are those of :class:`Session`."""

    tools: Iterable[ToolLike]
    approve: Approve | None
    on_event: OnEvent | None
    stored: Mapping[str, Any] | None
    durable: str | None
    limits: Limits | None
    check_inputs: bool
    require_readable_schemas: bool
    instructions_tokens: int


class ExecOptions(TypedDict, total=False):
    """How a program is run. The defaults are those of :meth:`Session.exec`."""

    yield_time: float
    max_output_tokens: int | None
    tool_call_id: str | None
    constants: Mapping[str, Any] | None
    traceparent: str | None
    tracestate: str | None


class WaitOptions(TypedDict, total=False):
    """How a program is waited for. The defaults are those of :meth:`Session.wait`."""

    yield_time: float
    max_output_tokens: int | None


def limits_of(limits: Limits) -> Message:
    told: Message = {}
    for name, value in limits.items():
        if name not in Limits.__annotations__:
            raise RequestError(f"the limit {name} does not exist; the limits are {', '.join(Limits.__annotations__)}")
        first, *rest = name.split("_")
        camel = first + "".join(part.capitalize() for part in rest)
        if name.endswith("_time"):
            if not isinstance(value, (int, float)) or not 0 <= value < 2**43:
                raise RequestError(f"the limit {name} is a time in seconds, and not {value!r}")
            told[f"{camel}Ms"] = round(value * 1000)
        else:
            told[camel] = value
    return told


def milliseconds(seconds: float) -> int:
    """A time as the wire has it."""
    try:
        return max(0, min(round(seconds * 1000), 2**53))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(f"{seconds!r} is not a time in seconds") from error
