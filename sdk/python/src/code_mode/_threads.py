"""Functions that may block."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any, Callable


async def in_thread(function: Callable[[], Any]) -> Any:
    """Runs a function that may block in a separate thread, which does not keep the interpreter from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Callable[[], Any]] = loop.create_future()
    context = contextvars.copy_context()

    def tell(outcome: Callable[[], Any]) -> None:
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

    threading.Thread(target=work, name="code-mode-tool", daemon=True).start()
    return (await done)()
