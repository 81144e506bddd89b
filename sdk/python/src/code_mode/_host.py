"""Hosts of sessions."""

from __future__ import annotations

import asyncio
import os
from types import TracebackType
from typing import TYPE_CHECKING, Mapping, Sequence

from ._errors import HostLostError
from ._program import find_program
from ._options import SessionOptions
from ._session import Session
from ._wire import Wire

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CodeMode:
    """A host of sessions: one process, which starts a sandboxed one for each session. It ends with
    this process, however that ends.

    ``async with CodeMode() as host`` starts and ends it.

    Args:
        program: the program. Default: ``CODE_MODE_BIN``, the one of this package, or ``PATH``.
        require_sandbox: refuse to run where a layer of the sandbox is missing. By default programs
            run with the rest.
        journal: a file for durable sessions, of which one host at a time has it open.
        args: further options of ``code-mode serve``.
        env: environment variables of the host. Default: those of this process.
    """

    def __init__(
        self,
        *,
        program: str | None = None,
        require_sandbox: bool = False,
        journal: str | os.PathLike[str] | None = None,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._program = program
        kept = [] if journal is None else ["--journal", os.fspath(journal)]
        self._args = [*(["--require-sandbox"] if require_sandbox else []), *kept, *args]
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
            self._leave_other_loop()
            if self._wire is None or self._wire.is_lost:
                program = self._program or find_program()
                self._wire = await Wire.start(program, self._args, self._env)
            return self._wire

    def _leave_other_loop(self) -> None:
        """Gives up a host that was started by another process, or by an event loop that has ended.

        Raises:
            RuntimeError: that loop still runs; each needs a host of its own.
        """
        wire = self._wire
        if wire is None or (wire.owner == os.getpid() and wire.loop is asyncio.get_running_loop()):
            return
        if wire.owner == os.getpid():
            if not wire.loop.is_closed():
                raise RuntimeError("this host belongs to another event loop: make a CodeMode in each")
            wire.abandon()
        self._wire = None

    async def pid(self) -> int:
        """The process id of the host."""
        return (await self._connection()).pid

    def session(self, **options: Unpack[SessionOptions]) -> Session:
        """A session, which ``async with`` or ``await session.open()`` opens; the options are those of
        :class:`Session`. Where the host was lost, a new one is started."""
        return Session(self._connection, **options)

    async def close(self) -> None:
        """Ends the host with all its sessions."""
        self._is_closed = True
        async with self._starting:
            self._leave_other_loop()
            wire, self._wire = self._wire, None
            if wire is None:
                return
            wire.close()
            await wire.ended()
