"""One connection to a host: ``code-mode serve --listen stdio``, and the wire it speaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import struct
import sys
import weakref
from typing import Any, Callable, Mapping, Protocol, Sequence

from ._errors import HostLostError, RequestError, StartError
from ._tools import encoded, failed

Message = dict[str, Any]

LARGEST_FRAME = 64 << 20
#: How long a host may take for its greeting, in seconds.
GREETING = 10
CAPABILITIES = ["bounded-output-v1", "delegate-capacity-4096", "guided-sessions-v1"]
#: How much of what the program writes on standard error is kept for an error.
LAST_WORDS = 2000
#: How long a host that has closed its output may take to end by itself, in seconds.
LAST_WORDS_TIME = 0.5
#: How long a host may take to end a session.
ANSWERING = 15.0
#: How long a host that is closed may take to end.
CLOSING = 5.0


class SessionHandler(Protocol):
    """What a session does with the messages that are for it."""

    async def call(self, invocation: Message) -> Message: ...

    def notify(self, text: str, cell_id: str) -> None: ...

    def event(self, event: Message) -> None: ...

    def lost(self, error: HostLostError) -> None: ...


class _Pending:
    __slots__ = ("answer", "first")

    def __init__(self, first: Callable[[Message], None] | None) -> None:
        self.answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        #: An execute has two answers.
        self.first = first


class Wire:
    """A host's process, with its requests and its calls."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._pending: dict[int, _Pending] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        #: Calls whose answers nobody waits for any more.
        self._cancelled: set[int] = set()
        self.loop = asyncio.get_running_loop()
        #: The process that started the host; what is forked from it has no use for it.
        self.owner = os.getpid()
        self._sessions: dict[str, SessionHandler] = {}
        self._last_id = 0
        self._said = b""
        #: How the host was lost.
        self._how = ""
        self._lost: HostLostError | None = None
        self._is_closing = False
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._listen())]
        self._ready: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        _wires.add(self)

    @classmethod
    async def start(
        cls, program: str, args: Sequence[str], env: Mapping[str, str] | None
    ) -> "Wire":
        """Starts a host and agrees with it on what both can."""
        # A Ctrl-C at the terminal is the agent's; the host ends with its input.
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                "serve",
                "--listen",
                "stdio",
                *args,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=None if env is None else dict(env),
                start_new_session=sys.platform != "win32",
                limit=1 << 20,
            )
        except (OSError, ValueError) as error:
            raise StartError(f"{program} does not start: {error}") from error
        wire = cls(process)
        hello = {"supportedVersions": [1], "requiredCapabilities": CAPABILITIES}
        wire._send({"type": "connection/hello", **hello})
        try:
            answer = await asyncio.wait_for(wire._ready, GREETING)
            if answer["type"] != "connection/ready":
                why = json.dumps(answer.get("reason") or "it does not answer the greeting")
                raise StartError(f"{program} is not a code-mode that this package can use: {why}")
        except BaseException as error:
            wire.kill()
            if isinstance(error, HostLostError):
                raise StartError(f"{program} does not start as a host: {wire._how}") from None
            if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
                raise StartError(f"{program} does not greet: it is not code-mode") from None
            raise
        return wire

    @property
    def is_lost(self) -> bool:
        return self._lost is not None or self._is_closing or self.owner != os.getpid()

    @property
    def pid(self) -> int:
        return self._process.pid

    def register(self, session: str, handler: SessionHandler) -> None:
        self._sessions[session] = handler

    def forget(self, session: str) -> None:
        self._sessions.pop(session, None)

    def request(
        self, request: Message, first: Callable[[Message], None] | None = None
    ) -> tuple[int, asyncio.Future[Message]]:
        """Sends a request. ``first`` gets the first of two answers; the future is of the last."""
        if self.is_lost:
            raise self._lost or HostLostError("the host is closed")
        self._last_id += 1
        id, pending = self._last_id, _Pending(first)
        self._pending[id] = pending
        try:
            self._send({"type": "operation/request", "id": id, "request": request})
        except RequestError:
            del self._pending[id]
            raise
        return id, pending.answer

    def yield_now(self, id: int) -> None:
        """Ends the observation that a request holds."""
        if not self.is_lost:
            self._send({"type": "operation/yield", "id": id})

    def close(self) -> None:
        """Ends the host with everything in it."""
        if self._is_closing:
            return
        self._is_closing = True
        self._fail(HostLostError("the host was closed"))
        if self._process.stdin is not None:
            self._process.stdin.close()

    def kill(self) -> None:
        """Ends the process at once."""
        self.close()
        try:
            self._process.kill()
        except ProcessLookupError:
            pass

    def abandon(self) -> None:
        """Ends a process whose event loop has ended: asyncio cannot do it any more."""
        self._is_closing = True
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    async def ended(self) -> None:
        """Waits until the process has ended; one that does not is killed."""
        try:
            await asyncio.wait_for(self._process.wait(), CLOSING)
        except (asyncio.TimeoutError, TimeoutError):
            self.kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, message: Message) -> None:
        try:
            content = encoded(message)
        except (TypeError, ValueError) as error:
            raise RequestError(f"it is not JSON: {error}") from error
        if len(content) > LARGEST_FRAME:
            raise RequestError(f"{len(content)} bytes are more than a message of 64 MiB")
        stdin = self._process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.write(struct.pack("<I", len(content)) + content)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(4096):
            self._said = (self._said + chunk)[-LAST_WORDS:]

    async def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        how = None
        try:
            while True:
                header = await stdout.readexactly(4)
                (size,) = struct.unpack("<I", header)
                if size > LARGEST_FRAME:
                    raise ValueError(f"it begins with {header!r}")
                self._receive(_decoded(await stdout.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            # The loop is ending: nothing will ever be read again, so nothing may wait for it.
            self._lose("its event loop has ended")
            raise
        except Exception as error:
            self._process.kill()
            how = f"it sent bytes that are not a message of the wire: {error}"[:300]
        try:
            status = await asyncio.wait_for(self._process.wait(), LAST_WORDS_TIME)
        except (asyncio.TimeoutError, TimeoutError):
            # Without its output it is of no use.
            how = how or "it has closed its output"
            self._process.kill()
            status = await self._process.wait()
        # What it said last is there by now, or on its way.
        await asyncio.wait([self._tasks[1]], timeout=1)
        said = self._said.decode(errors="replace").strip()
        if how is None:
            how = f"it was ended by signal {-status}" if status < 0 else f"it ended with status {status}"
        self._lose(how + (f": {said}" if said else ""))

    def _lose(self, how: str) -> None:
        if self._lost is None:
            self._how = how
            self._lost = HostLostError(f"the host was lost: {how}")
            self._fail(self._lost)

    def _fail(self, lost: HostLostError) -> None:
        if not self._ready.done():
            self._ready.set_exception(lost)
        for pending in self._pending.values():
            if not pending.answer.done():
                pending.answer.set_exception(lost)
                # Python must not log it where nobody waits for it.
                pending.answer.exception()
        self._pending.clear()
        for call in self._calls.values():
            call.cancel()
        for session in list(self._sessions.values()):
            session.lost(lost)
        self._sessions.clear()

    def _receive(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("operation/response", "execute/initialResponse"):
            self._answered(message)
        elif kind == "delegate/request":
            self._called(message)
        elif kind == "delegate/cancel":
            if call := self._calls.get(message["id"]):
                self._cancelled.add(message["id"])
                call.cancel()
        elif kind == "cell/closed":
            if session := self._sessions.get(message["sessionId"]):
                session.event({"type": "cell/closed", "cell_id": message["cellId"]})
        elif kind == "session/event":
            if session := self._sessions.get(message["sessionId"]):
                session.event(message["event"])
        elif not self._ready.done():
            self._ready.set_result(message)

    def _answered(self, message: Message) -> None:
        pending = self._pending.get(message["id"])
        if pending is None:
            return
        result = message["result"]
        is_ok = result["status"] == "ok"
        if is_ok and pending.first and message["type"] == "operation/response":
            first, pending.first = pending.first, None
            first(result["value"])
            return
        del self._pending[message["id"]]
        if pending.answer.done():
            return
        if is_ok:
            pending.answer.set_result(result["value"])
        else:
            pending.answer.set_exception(RequestError(result["message"]))

    def _called(self, message: Message) -> None:
        id, request = message["id"], message["request"]
        session = self._sessions.get(message["sessionId"])
        if session is None:
            self._answer(id, {"status": "error", "message": "the session is closed"})
        elif request["type"] == "notification/send":
            session.notify(request["text"], request["cellId"])
            self._answer(id, {"status": "ok", "value": {"type": "notification/delivered"}})
        else:
            task = asyncio.create_task(self._call(id, session, request["invocation"]))
            self._calls[id] = task
            # Also of one that is cancelled before it has begun.
            task.add_done_callback(lambda task: self._called_back(id, task))

    def _called_back(self, id: int, task: asyncio.Task[None]) -> None:
        self._calls.pop(id, None)
        self._cancelled.discard(id)
        if not task.cancelled():
            task.exception()

    async def _call(self, id: int, session: SessionHandler, invocation: Message) -> None:
        try:
            answer = await session.call(invocation)
        except asyncio.CancelledError as error:
            # Either nobody waits for the answer, or the tool has made up its own cancellation.
            answer = failed(error)
        except Exception as error:  # noqa: BLE001 - whatever fails, it is this call that fails
            answer = failed(error)
        if id not in self._cancelled:
            self._answer(id, answer)

    def _answer(self, id: int, result: Message) -> None:
        if self.is_lost:
            return
        try:
            self._send({"type": "delegate/response", "id": id, "result": result})
        except RequestError as error:
            why = f"the result cannot be sent: {error}"
            told = {"status": "error", "message": why}
            self._send({"type": "delegate/response", "id": id, "result": told})


#: The connections of this process.
_wires: weakref.WeakSet[Wire] = weakref.WeakSet()


def _leave_to_parent() -> None:
    """Gives up the hosts of the process that this one was forked from: a host ends when nobody holds its
    input any more."""
    with contextlib.suppress(Exception):
        nothing = os.open(os.devnull, os.O_RDWR)
        for wire in list(_wires):
            stdin = wire._process.stdin
            pipe = None if stdin is None else stdin.transport.get_extra_info("pipe")
            if pipe is not None and pipe.fileno() >= 0:
                # The number stays taken, because objects of the parent's loop will close it.
                os.dup2(nothing, pipe.fileno())
        os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _decoded(content: bytes) -> Any:
    """A message. A program can make numbers of more digits than Python reads; no message is broken by
    them."""
    try:
        return json.loads(content)
    except ValueError:
        return json.loads(content, parse_int=_integer)


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def environment(env: Mapping[str, str] | None) -> Mapping[str, str]:
    """The variables of the host: those that were given, or this process's."""
    return os.environ if env is None else env
