"""Events of a session, in the words of this SDK."""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Mapping, Union

from ._results import stats
from ._wire import Message

#: Told of what happens in a session: a mapping whose ``type`` is ``cell/started``, ``cell/ended``,
#: ``cell/closed``, ``call/started``, ``call/finished`` or ``notification``.
OnEvent = Callable[[Mapping[str, Any]], Union[None, Awaitable[None]]]


def event_of(wire: Message) -> Message:
    """An event of the wire in this SDK's words: its ids have the names that :class:`ToolCall` has."""
    event = dict(wire)
    if "call_id" in event:
        event["tool_call_id"] = event.pop("call_id")
    if "runtime_tool_call_id" in event:
        event["call_id"] = event.pop("runtime_tool_call_id")
    if tool := event.pop("tool_name", None):
        event |= {"name": tool["name"], "namespace": tool["namespace"]}
    if "duration_ms" in event:
        event["duration"] = event.pop("duration_ms") / 1000
    if isinstance(outcome := event.get("outcome"), dict):
        event["outcome"] = outcome["kind"]
    if "stats" in event:
        event["stats"] = stats(event["stats"])
    return event
