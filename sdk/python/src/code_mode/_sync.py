"""The same without ``await``."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import AbstractAsyncContextManager, contextmanager
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Coroutine, Iterator, Mapping, Sequence, TypeVar

from ._errors import HostLostError
from ._host import CodeMode
from ._results import CellResult
from ._options import ExecOptions, SessionOptions, WaitOptions
from ._session import Session
from ._wire import CLOSING

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

_WAITS_FOR_ITSELF = "a coroutine of this host would wait for itself: use CodeMode there"


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="code-mode", daemon=True)
        self.thread.start()
        #: Held while work is handed over, so that none is after the end.
        self.handing_over = threading.Lock()
        self.has_ended = False
        self.owner = os.getpid()

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller is a coroutine of this host."""
        return threading.current_thread() is self.thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for something; an interrupt of the waiting cancels it."""
        if os.getpid() != self.owner:
            work.close()
            raise RuntimeError("this host belongs to the process before the fork: make another one here")
        with self.handing_over:
            why: Exception | None = None
            if self.has_ended:
                why = HostLostError("the host is closed")
            elif self.is_own_thread:
                why = RuntimeError(_WAITS_FOR_ITSELF)
            if why is not None:
                work.close()
                raise why
            done: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return done.result()
        except BaseException:
            done.cancel()
            raise

    def end(self) -> None:
        """Ends what still runs, and the thread."""
        with self.handing_over:
            if self.has_ended:
                return
            self.has_ended = True
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        if tasks:
            # One that ignores its cancellation is left behind.
            await asyncio.wait(tasks, timeout=CLOSING)


class CodeModeSync:
    """As :class:`CodeMode`, for programs without an event loop. Its arguments are the same."""

    def __init__(
        self,
        *,
        program: str | None = None,
        require_sandbox: bool = False,
        journal: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._loop = _Loop()

        async def host() -> CodeMode:
            return await CodeMode(
                program=program, require_sandbox=require_sandbox, journal=journal, args=args, env=env
            ).start()

        try:
            self._host = self._loop.run(host())
        except BaseException:
            self._loop.end()
            raise

    def __enter__(self) -> "CodeModeSync":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def pid(self) -> int:
        """The process id of the host."""
        return self._loop.run(self._host.pid())

    def session(self, **options: Unpack[SessionOptions]) -> "SessionSync":
        """Opens a session; the options are those of :class:`Session`. Tools run in threads, or on the
        loop of the host where they are asynchronous."""
        session = self._host.session(**options)
        return SessionSync(self._loop, self._loop.run(session.open()))

    def close(self) -> None:
        """Ends the host with all its sessions."""
        if self._loop.has_ended or os.getpid() != self._loop.owner:
            return
        if self._loop.is_own_thread:
            raise RuntimeError(_WAITS_FOR_ITSELF)
        try:
            self._loop.run(self._host.close())
        finally:
            self._loop.end()


class SessionSync:
    """As :class:`Session`, without ``await``."""

    def __init__(self, loop: _Loop, session: Session) -> None:
        self._loop = loop
        self._session = session

    def __enter__(self) -> "SessionSync":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def instructions(self) -> str:
        """The text for a model, about the tool by which it runs programs."""
        return self._session.instructions

    def exec(self, code: str, **options: Unpack[ExecOptions]) -> CellResult:
        """As :meth:`Session.exec`."""
        return self._loop.run(self._session.exec(code, **options))

    def run(self, code: str, **options: Unpack[ExecOptions]) -> CellResult:
        """As :meth:`Session.run`."""
        return self._loop.run(self._session.run(code, **options))

    def wait(self, cell_id: str, **options: Unpack[WaitOptions]) -> CellResult:
        """As :meth:`Session.wait`."""
        return self._loop.run(self._session.wait(cell_id, **options))

    def terminate(self, cell_id: str, *, max_output_tokens: int | None = None) -> CellResult:
        """As :meth:`Session.terminate`."""
        ended = self._session.terminate(cell_id, max_output_tokens=max_output_tokens)
        return self._loop.run(ended)

    def cells(self) -> list[str]:
        """As :meth:`Session.cells`."""
        return self._loop.run(self._session.cells())

    def stored(self) -> dict[str, Any]:
        """As :meth:`Session.stored`."""
        return self._loop.run(self._session.stored())

    @contextmanager
    def paused(self, cell_id: str | None = None) -> Iterator[None]:
        """As :meth:`Session.paused`."""
        pause = self._session.paused(cell_id)
        self._loop.run(_entered(pause))
        try:
            yield
        finally:
            self._loop.run(_left(pause))

    def close(self) -> None:
        """As :meth:`Session.close`."""
        if not self._loop.has_ended and os.getpid() == self._loop.owner:
            self._loop.run(self._session.close())


async def _entered(pause: AbstractAsyncContextManager[None]) -> None:
    await pause.__aenter__()


async def _left(pause: AbstractAsyncContextManager[None]) -> None:
    await pause.__aexit__(None, None, None)
