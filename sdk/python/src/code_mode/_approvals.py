"""Questions whether calls may run."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import logging
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Sequence, Union

from ._errors import ToolError
from ._threads import in_thread
from ._tools import Tool, ToolCall

#: A decision about a call: whether it runs; a text is the reason why not.
Decision = Union[bool, str]
Decisions = Union[Decision, Sequence[Decision]]
#: Asked before calls run: for all that wait at that moment. It answers for all, or for each.
Approve = Callable[[Sequence[ToolCall]], Union[Decisions, Awaitable[Decisions]]]

#: Calls that come this soon after each other are put to a person together, in seconds.
_ASKED_TOGETHER = 0.01


#: The longest text of a kept question, in characters.
_MOST_TEXT = 4000


@dataclass(frozen=True)
class KeptQuestions:
    """Where the questions of a durable session are kept: a call that waits for an answer has not run, and
    is made again after a restart."""

    #: Keeps a question, with what it is about and its text; what is decided already, if it is.
    asked: Callable[[ToolCall, str, str], Awaitable[bool | None]]
    #: Keeps a decision; the one that stands.
    decided: Callable[[ToolCall, bool], Awaitable[bool]]


class Approvals:
    """The questions of one session.

    Args:
        approve: answers them.
        paused: lets the clocks of a cell stand still meanwhile.
        kept: where they are kept, in a durable session.
    """

    def __init__(
        self,
        approve: Approve | None,
        paused: Callable[[str], AbstractAsyncContextManager[None]],
        kept: KeptQuestions | None = None,
    ) -> None:
        self._approve = approve
        self._paused = paused
        self._kept = kept
        self._asked: list[tuple[ToolCall, asyncio.Future[Decision]]] = []
        self._asking: set[asyncio.Task[None]] = set()

    def concern(self, tool: Tool) -> bool:
        """Whether somebody looks at the inputs of a tool."""
        return self._approve is not None or callable(tool.needs_approval)

    async def check(self, tool: Tool, call: ToolCall) -> None:
        """Returns when the call may run.

        Raises:
            ToolError: it may not.
        """
        needs = tool.needs_approval
        if callable(needs):
            needs = await _maybe_awaited(needs(call.input))
            # A function that forgets to answer must not let a call run.
            needs = True if needs is None else needs
        if self._approve is None:
            if needs:
                why = "the call needs an approval, and this session has no `approve`"
                raise ToolError(why, failure="blocked")
        elif needs is not False:
            decision = await self._decision(tool, call)
            if decision is not True:
                why = (decision if isinstance(decision, str) else "") or "the call was not approved"
                raise ToolError(why, failure="blocked")

    async def _decision(self, tool: Tool, call: ToolCall) -> Decision:
        """The decision about a call, which is kept before it runs."""
        if self._kept is None:
            return await self._ask(call)
        passed = json.dumps(call.input, sort_keys=True)
        about = json.dumps([tool.definition(), passed], sort_keys=True)
        subject = hashlib.sha256(about.encode()).hexdigest()
        known = await self._kept.asked(call, subject, f"{call.name} with {passed}"[:_MOST_TEXT])
        if known is not None:
            return known
        decision = await self._ask(call)
        stands = await self._kept.decided(call, decision is True)
        return decision if stands is (decision is True) else stands

    async def _ask(self, call: ToolCall) -> Decision:
        """Asks about this call, together with those that come in the same moment."""
        async with self._paused(call.cell_id):
            loop = asyncio.get_running_loop()
            decided: asyncio.Future[Decision] = loop.create_future()
            self._asked.append((call, decided))
            if len(self._asked) == 1:
                loop.call_later(_ASKED_TOGETHER, self._ask_soon)
            return await decided

    def _ask_soon(self) -> None:
        task = asyncio.ensure_future(self._ask_all())
        # The loop itself keeps no reference to it.
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask_all(self) -> None:
        asked = [(call, decided) for call, decided in self._asked if not decided.done()]
        self._asked = []
        approve = self._approve
        if not asked or approve is None:
            return
        calls = [call for call, _ in asked]
        decisions: Decisions
        try:
            if inspect.iscoroutinefunction(approve):
                decisions = await approve(calls)
            else:
                decisions = await _maybe_awaited(await in_thread(lambda: approve(calls)))
        except BaseException:  # noqa: BLE001 - a failure is not an approval
            # Its text is for the developer: the reason goes to the model.
            logging.getLogger("code_mode").exception("`approve` failed")
            decisions = "the approval failed"
        for index, (_, decided) in enumerate(asked):
            if not decided.done():
                decided.set_result(_decision(decisions, index))


async def _maybe_awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _decision(decisions: Any, index: int) -> Decision:
    """The decision about one call. Every other value is a refusal."""
    if isinstance(decisions, (list, tuple)):
        decisions = decisions[index] if index < len(decisions) else False
    return decisions if isinstance(decisions, (bool, str)) else False
