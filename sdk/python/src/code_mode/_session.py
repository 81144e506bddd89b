"""Sessions: one agent's programs, and the values that they store."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Iterable, Mapping

from ._approvals import Approvals, Approve, KeptQuestions
from ._errors import HostLostError, RequestError, ToolError
from ._events import OnEvent, event_of
from ._options import ExecOptions, Limits, limits_of, milliseconds
from ._results import CellResult, Position, result
from ._threads import Threads, depth
from ._tools import Tool, ToolCall, ToolContext, ToolLike, failed, shown, tool_of
from ._wire import ANSWERING, Message, Wire

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Tools of one session that may block at the same time; more wait.
_MOST_THREADS = 256

#: About how many characters a token has, as the host counts when it cuts output.
_TOKEN_CHARACTERS = 4

_sessions = itertools.count(1)
_execs = itertools.count(1)


class Session:
    """One agent's programs, and the values that they store.

    ``async with host.session(...) as session`` opens and closes it.

    Args:
        connect: gives the connection to the host.
        tools: functions that programs may call.
        approve: asked before calls run, for all that wait at that moment in one list; it answers
            for all (``True``, ``False``, or a reason why not) or for each. The clocks of the
            programs stand still meanwhile.
        on_event: told of cells, calls and notifications.
        stored: values that programs find stored.
        durable: the name by which the session is kept in the host's journal, and continues after whatever
            ended its process: its programs, stored values and questions. Closing it then leaves its
            programs to whoever opens it next; :meth:`cells` names them.
        limits: what programs may use.
        check_inputs: whether inputs are checked against the schemas before a tool runs.
        require_readable_schemas: whether a tool whose schema cannot be read is left out.
        instructions_tokens: how long the tools' part of the instructions may be.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Wire]],
        *,
        tools: Iterable[ToolLike] = (),
        approve: Approve | None = None,
        on_event: OnEvent | None = None,
        stored: Mapping[str, Any] | None = None,
        durable: str | None = None,
        limits: Limits | None = None,
        check_inputs: bool = True,
        require_readable_schemas: bool = False,
        instructions_tokens: int = 4000,
    ) -> None:
        self._connect = connect
        self._tools: dict[tuple[str | None, str], Tool] = {}
        for tool in map(tool_of, tools):
            key = (tool.namespace, tool.own_name)
            if key in self._tools:
                raise ValueError(f"two tools have the name {tool.own_name}")
            self._tools[key] = tool
        self._definitions = [tool.definition() for tool in self._tools.values()]
        kept = None if durable is None else KeptQuestions(self._asked, self._decided)
        self._approvals = Approvals(approve, self.paused, kept)
        self._on_event = on_event
        self._guided = {
            "checkInputs": check_inputs,
            "requireReadableSchemas": require_readable_schemas,
            "stored": dict(stored or {}),
            "limits": limits_of(limits or {}),
            "events": on_event is not None,
            **({} if durable is None else {"durable": durable}),
        }
        self._instructions_tokens = instructions_tokens
        self._id = f"s{next(_sessions)}"
        self._wire: Wire | None = None
        self._lost: HostLostError | None = None
        self._threads = Threads(_MOST_THREADS)
        #: How many tools are around the programs that tools have run, by the name of the exec.
        self._depths: dict[str, int] = {}
        #: Observations that came when nobody waited for them any more.
        self._kept: dict[str, CellResult] = {}
        #: Observations that were cancelled, and have not ended yet.
        self._late: dict[str, asyncio.Future[Message]] = {}
        #: Cells that nobody will wait for any more.
        self._given_up: set[str] = set()
        self._observing: set[asyncio.Future[Any]] = set()
        #: What a model should be told of the tool by which it runs programs; known once it is open.
        self.instructions = ""

    async def __aenter__(self) -> "Session":
        return await self.open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> "Session":
        """Opens the session."""
        wire = self._wire
        if wire is not None and not wire.is_lost and wire.loop is asyncio.get_running_loop():
            return self
        wire = await self._connect()
        self._lost = None
        self._threads = Threads(_MOST_THREADS)
        for of_old_cells in (self._kept, self._late, self._depths):
            of_old_cells.clear()
        self._given_up.clear()
        self._id = f"s{next(_sessions)}"
        self._wire = wire
        wire.register(self._id, self)
        about = {"sessionId": self._id}
        try:
            opened = self._ask_host({"method": "session/open", **about, "guided": self._guided})
            opened.add_done_callback(_retrieved)
            described = self._ask_host(
                {
                    "method": "session/describe",
                    **about,
                    "enabledTools": self._definitions,
                    "budgetTokens": self._instructions_tokens,
                }
            )
            _, description = await asyncio.gather(opened, described)
        except BaseException:
            # The host may have opened it; also where this task is cancelled.
            self._close_soon(wire)
            raise
        self.instructions = description["text"]
        return self

    def _close_soon(self, wire: Wire) -> None:
        """Closes a session that may have been opened, and does not wait for that."""
        self._wire = None
        wire.forget(self._id)
        if not wire.is_lost:
            _, closed = wire.request({"method": "session/shutdown", "sessionId": self._id})
            closed.add_done_callback(_retrieved)

    def _open_wire(self) -> Wire:
        if self._lost is not None:
            raise self._lost
        if self._wire is None:
            raise RequestError("the session is not open")
        return self._wire

    def _ask_host(self, request: Message) -> asyncio.Future[Message]:
        return self._open_wire().request(request)[1]

    async def exec(
        self,
        code: str,
        *,
        yield_time: float = 10,
        max_output_tokens: int | None = None,
        tool_call_id: str | None = None,
        constants: Mapping[str, Any] | None = None,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> CellResult:
        """Runs a program until it ends or ``yield_time`` seconds are over.

        Cancelling the call terminates the program.
        """
        name = tool_call_id or f"exec-{next(_execs)}"
        if (around := depth()) > 0:
            self._depths[name] = around
        guided: Message = {"constants": dict(constants or {})}
        if traceparent:
            guided["traceparent"] = traceparent
        if tracestate:
            guided["tracestate"] = tracestate
        request = {
            "method": "session/execute",
            "sessionId": self._id,
            "request": {
                "tool_call_id": name,
                "enabled_tools": self._definitions,
                "source": code,
                "yield_time_ms": milliseconds(yield_time),
                "max_output_tokens": max_output_tokens,
                "guided": guided,
            },
        }
        wire = self._open_wire()
        started: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def first(value: Message) -> None:
            started.set_result(value["cellId"])

        _, answer = wire.request(request, first)
        try:
            first_result = result(await asyncio.shield(answer))
            if first_result.status != "running":
                self._depths.pop(name, None)
            return first_result
        except asyncio.CancelledError:
            # Also where it has just yielded: nobody gets to know its name.
            self._end_soon(wire, started)
            answer.add_done_callback(_retrieved)
            raise

    def _end_soon(self, wire: Wire, started: asyncio.Future[str]) -> None:
        """Terminates a program that nobody waits for, as soon as it is known by a name."""

        def end(cell: asyncio.Future[str]) -> None:
            if not wire.is_lost and not cell.cancelled():
                about = {"sessionId": self._id, "cellId": cell.result()}
                _, ended = wire.request({"method": "session/terminate", **about})
                ended.add_done_callback(_retrieved)

        started.add_done_callback(end)

    async def wait(
        self, cell_id: str, *, yield_time: float = 10, max_output_tokens: int | None = None
    ) -> CellResult:
        """Waits for more of a program that is still running.

        Cancelling the call leaves the program running, and its output for the next wait.
        """
        wire = self._open_wire()
        if (late := self._late.get(cell_id)) is not None:
            await asyncio.wait([late])
        kept = self._kept.pop(cell_id, None)
        if kept is not None and kept.status != "running":
            return kept
        id, answer = wire.request(
            {
                "method": "session/wait",
                "sessionId": self._id,
                "request": {"cell_id": cell_id, "yield_time_ms": milliseconds(yield_time)},
                "maxOutputTokens": max_output_tokens,
            }
        )
        try:
            observed = _outcome(await asyncio.shield(answer))
        except asyncio.CancelledError:
            wire.yield_now(id)
            self._late[cell_id] = answer
            answer.add_done_callback(lambda done: self._keep(cell_id, kept, done))
            raise
        return observed if kept is None else _after(kept, observed)

    def _keep(self, cell_id: str, kept: CellResult | None, answer: asyncio.Future[Message]) -> None:
        """Keeps an observation that nobody waits for, for the next wait."""
        self._late.pop(cell_id, None)
        if cell_id in self._given_up:
            return
        if not answer.cancelled() and answer.exception() is None:
            observed = _outcome(answer.result())
            self._kept[cell_id] = observed if kept is None else _after(kept, observed)

    async def run(self, code: str, **options: Unpack[ExecOptions]) -> CellResult:
        """Runs a program to its end, however often it yields; takes the options of :meth:`exec`, of which
        ``max_output_tokens`` is for all of its output."""
        last = await self.exec(code, **options)
        content = list(last.content)
        left = options.get("max_output_tokens")
        try:
            while last.status == "running":
                if left is not None:
                    # Each text has a line, also an empty one.
                    size = sum(len(item.value) + 1 for item in last.content if item.type == "text")
                    left = max(0, left - -(-size // _TOKEN_CHARACTERS))
                last = await self.wait(last.cell_id, max_output_tokens=left)
                content += last.content
        except asyncio.CancelledError:
            self._give_up(last.cell_id)
            raise
        return CellResult(last.status, last.cell_id, tuple(content), last.error, last.stats)

    def _give_up(self, cell_id: str) -> None:
        """Terminates a program that nobody waits for, and does not wait for its end: a host that does not
        answer must not keep a task from being cancelled."""
        if self._wire is None or self._wire.is_lost:
            return
        self._given_up.add(cell_id)

        def ended(done: asyncio.Future[Message]) -> None:
            _retrieved(done)
            self._given_up.discard(cell_id)
            self._kept.pop(cell_id, None)

        about = {"sessionId": self._id, "cellId": cell_id}
        self._ask_host({"method": "session/terminate", **about}).add_done_callback(ended)

    async def terminate(self, cell_id: str, *, max_output_tokens: int | None = None) -> CellResult:
        """Stops a program, and waits until it has stopped."""
        request = {
            "method": "session/terminate",
            "sessionId": self._id,
            "cellId": cell_id,
            "maxOutputTokens": max_output_tokens,
        }
        if (late := self._late.get(cell_id)) is not None:
            await asyncio.wait([late])
        ended = _outcome(await self._ask_host(request))
        kept = self._kept.pop(cell_id, None)
        return ended if kept is None else _after(kept, ended)

    async def cells(self) -> list[str]:
        """The programs that have not ended, or whose result nobody has taken: in a durable session also those
        of an earlier process, for :meth:`wait`."""
        request = {"method": "session/cells", "sessionId": self._id}
        cells: list[str] = (await self._ask_host(request))["cells"]
        return cells

    async def _asked(self, call: ToolCall, subject: str, text: str) -> bool | None:
        """Keeps the question about a call; returns the decision, if there is one."""
        about = {"sessionId": self._id, "cellId": call.cell_id, "runtimeToolCallId": call.call_id}
        request = {"method": "session/ask", **about, "subject": subject, "text": text}
        allowed: bool | None = (await self._ask_host(request))["allowed"]
        return allowed

    async def _decided(self, call: ToolCall, allowed: bool) -> bool:
        """Keeps the decision about a call, and says which one stands."""
        about = {"sessionId": self._id, "cellId": call.cell_id, "runtimeToolCallId": call.call_id}
        request = {"method": "session/decide", **about, "allowed": allowed}
        return (await self._ask_host(request))["allowed"] is True

    async def stored(self) -> dict[str, Any]:
        """The values that programs have stored."""
        request = {"method": "session/stored", "sessionId": self._id}
        values: dict[str, Any] = (await self._ask_host(request))["values"]
        return values

    @asynccontextmanager
    async def paused(self, cell_id: str | None = None) -> AsyncIterator[None]:
        """Lets the deadlines of one program, or of all, stand still meanwhile."""
        about = {"sessionId": self._id} if cell_id is None else {"sessionId": self._id, "cellId": cell_id}
        begun = self._ask_host({"method": "session/pause", **about})
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(lambda _: self._resume_soon(about))
            raise
        try:
            yield
        finally:
            if self._wire is not None and not self._wire.is_lost:
                try:
                    await self._ask_host({"method": "session/resume", **about})
                except (RequestError, HostLostError):
                    # A program that has ended meanwhile needs no resuming.
                    pass

    def _resume_soon(self, about: Message) -> None:
        """Ends a pause that nobody holds."""
        if self._wire is not None and not self._wire.is_lost:
            resumed = self._ask_host({"method": "session/resume", **about})
            resumed.add_done_callback(_retrieved)

    async def close(self) -> None:
        """Stops every program, and forgets the stored values."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        try:
            if not wire.is_lost:
                closed = wire.request({"method": "session/shutdown", "sessionId": self._id})[1]
                await asyncio.wait_for(closed, ANSWERING)
        except HostLostError:
            pass
        except (asyncio.TimeoutError, TimeoutError):
            # A host that does not answer is of no use to anybody.
            wire.kill()
        finally:
            wire.forget(self._id)

    # What the host asks.

    async def call(self, invocation: Message) -> Message:
        """Runs a tool; for the connection."""
        name = invocation["tool_name"]
        tool = self._tools.get((name["namespace"], name["name"]))
        if tool is None:
            return failed(ToolError(f"the tool {name['name']} does not exist"))
        site = invocation.get("site")
        passed = invocation["input"]
        try:
            arguments = tool.arguments(passed)
            # Whoever decides about the call sees what the tool will get.
            is_asked_about = self._approvals.concern(tool) and arguments is not None
            seen = shown(arguments) if is_asked_about else passed
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - an input that does not fit
            return failed(error)
        context = ToolContext(
            name=name["name"],
            namespace=name["namespace"],
            input=seen,
            cell_id=invocation["cell_id"],
            call_id=invocation["runtime_tool_call_id"],
            tool_call_id=invocation["call_id"],
            site=Position(**site) if site else None,
            traceparent=invocation.get("traceparent"),
            tracestate=invocation.get("tracestate"),
            attempt=invocation.get("attempt", 1),
        )
        try:
            await self._approvals.check(tool, context)
            bound = tool.bound(arguments, context)
            around = self._depths.get(context.tool_call_id, 0)
            value = await (bound() if tool.is_async else self._threads.run(bound, around))
            if inspect.isawaitable(value):
                value = await value
        except asyncio.CancelledError:
            context.cancelled.set()
            raise
        except BaseException as error:  # noqa: BLE001 - a tool's failure is its program's
            # Also where it wants to end this process: `sys.exit()` is what parsers of arguments do.
            return failed(error)
        return {"status": "ok", "value": {"type": "tool/result", "result": value}}

    def notify(self, text: str, cell_id: str) -> None:
        """Takes a program's notification; for the connection."""
        self.event({"type": "notification", "text": text, "cell_id": cell_id})

    def event(self, event: Message) -> None:
        """Takes an event; for the connection."""
        if self._on_event is not None:
            try:
                seen = self._on_event(event_of(event))
            except Exception:  # noqa: BLE001, S110 - what an observer raises is its own
                return
            if inspect.isawaitable(seen):
                task = asyncio.ensure_future(seen)
                self._observing.add(task)
                task.add_done_callback(self._observed)

    def _observed(self, task: asyncio.Future[Any]) -> None:
        self._observing.discard(task)
        if not task.cancelled():
            # What an observer raises is its own, now or later.
            task.exception()

    def lost(self, error: HostLostError) -> None:
        """Takes the end of the host; for the connection."""
        self._lost = error


def _after(first: CellResult, second: CellResult) -> CellResult:
    """Two observations of a cell as one."""
    return replace(second, content=(*first.content, *second.content))


def _retrieved(done: asyncio.Future[Any]) -> None:
    """Python must not log a failure that nobody waits for."""
    if not done.cancelled():
        done.exception()


def _outcome(answer: Message) -> CellResult:
    (response,) = answer["outcome"].values()
    return result(response)
