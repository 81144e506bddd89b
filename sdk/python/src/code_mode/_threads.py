"""Functions that may block."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any, Callable


#: How many tools, each of which ran a program that called the next, are around a call.
_depth: contextvars.ContextVar[int] = contextvars.ContextVar("code_mode_depth", default=0)


class Threads:
    """A bounded number of threads for tools that may block. Tools that run programs, which call tools,
    have a bound for each level: they would wait for each other otherwise."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._levels: dict[int, asyncio.Semaphore] = {}

    async def run(self, function: Callable[[], Any], depth: int) -> Any:
        """Runs a function in a thread, once one is free."""
        free = self._levels.setdefault(depth, asyncio.Semaphore(self._most))
        await free.acquire()

        def deeper() -> Any:
            _depth.set(depth + 1)
            return function()

        # A thread that nobody waits for any more takes its place all the same.
        return await in_thread(deeper, free.release)


def depth() -> int:
    """How many tools are around what runs here."""
    return _depth.get()


async def in_thread(function: Callable[[], Any], ended: Callable[[], None] | None = None) -> Any:
    """Runs a function that may block in a separate thread, which does not keep the interpreter from
    ending. ``ended`` is called on the event loop when the thread is done."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Callable[[], Any]] = loop.create_future()
    context = contextvars.copy_context()

    def tell(outcome: Callable[[], Any]) -> None:
        if ended is not None:
            ended()
        if not done.done():
            done.set_result(outcome)

    def work() -> None:
        outcome: Callable[[], Any]
        try:
            value = context.run(function)
            outcome = lambda: value  # noqa: E731
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            raised = RuntimeError("StopIteration") if isinstance(error, StopIteration) else error

            def outcome() -> Any:
                raise raised

        try:
            loop.call_soon_threadsafe(tell, outcome)
        except RuntimeError:
            # The loop has ended meanwhile.
            pass

    try:
        threading.Thread(target=work, name="code-mode-tool", daemon=True).start()
    except RuntimeError:
        # The system cannot start another thread.
        if ended is not None:
            ended()
        raise
    return (await done)()
