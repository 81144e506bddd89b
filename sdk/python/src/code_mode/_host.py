"""Hosts of sessions."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Callable, Iterable, Mapping, Sequence

from ._errors import HostLostError
from ._program import find_program
from ._session import Approve, Limits, Session
from ._tools import ToolLike
from ._wire import Wire


class CodeMode:
    """A host of sessions: one process, which starts a sandboxed one for each session. It ends with
    this process, however that ends.

    ``async with CodeMode() as host`` starts and ends it.

    Args:
        program: the program. Default: ``CODE_MODE_BIN``, the one of this package, or ``PATH``.
        require_sandbox: refuse to run where a layer of the sandbox is missing. By default programs
            run with the rest.
        args: further options of ``code-mode serve``.
        env: environment variables of the host. Default: those of this process.
    """

    def __init__(
        self,
        *,
        program: str | None = None,
        require_sandbox: bool = False,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._program = program
        self._args = [*(["--require-sandbox"] if require_sandbox else []), *args]
        self._env = env
        self._wire: Wire | None = None
        self._starting = asyncio.Lock()
        self._is_closed = False

    async def __aenter__(self) -> "CodeMode":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def start(self) -> "CodeMode":
        """Starts the host.

        Raises:
            StartError: there is no program, or it does not start.
        """
        await self._connection()
        return self

    async def _connection(self) -> Wire:
        """The host's process; a new one where the last was lost."""
        async with self._starting:
            if self._is_closed:
                raise HostLostError("the host is closed")
            if self._wire is not None and self._wire.loop is not asyncio.get_running_loop():
                # It was started by a loop that has ended since.
                self._wire.abandon()
                self._wire = None
            if self._wire is None or self._wire.is_lost:
                program = self._program or find_program()
                self._wire = await Wire.start(program, self._args, self._env)
            return self._wire

    async def pid(self) -> int:
        """The process id of the host."""
        return (await self._connection()).pid

    def session(
        self,
        *,
        tools: Iterable[ToolLike] = (),
        approve: Approve | None = None,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        stored: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        check_inputs: bool = True,
        require_readable_schemas: bool = False,
        instructions_tokens: int = 4000,
    ) -> Session:
        """A session, which ``async with`` or ``await session.open()`` opens. Where the host was lost,
        a new one is started.

        Args:
            tools: functions that programs may call.
            approve: asked before calls run, for all that wait at that moment in one list; it answers
                for all (``True``, ``False``, or a reason why not) or for each. The clocks of the
                programs stand still meanwhile.
            on_event: told of cells, calls and notifications.
            stored: values that programs find stored.
            limits: what programs may use.
            check_inputs: whether inputs are checked against the schemas before a tool runs.
            require_readable_schemas: whether a tool whose schema cannot be read is left out.
            instructions_tokens: how long the tools' part of the instructions may be.
        """
        return Session(
            self._connection,
            tools=tools,
            approve=approve,
            on_event=on_event,
            stored=stored,
            limits=limits,
            check_inputs=check_inputs,
            require_readable_schemas=require_readable_schemas,
            instructions_tokens=instructions_tokens,
        )

    async def close(self) -> None:
        """Ends the host with all its sessions."""
        self._is_closed = True
        async with self._starting:
            wire, self._wire = self._wire, None
            if wire is None:
                return
            if wire.loop is not asyncio.get_running_loop():
                wire.abandon()
                return
            wire.close()
            await wire.ended()
