"""Durable sessions: programs continue after the host was killed."""

import asyncio
import logging
import os
import pathlib
import signal
import tempfile
import unittest
from typing import Any, Sequence

from code_mode import CodeMode, RequestError, Tool, ToolCall, ToolContext

PROGRAM = """
const read = await tools.read({});
const sent = await tools.send({ to: 'all' });
text([read, sent]);
"""


class Durable(unittest.IsolatedAsyncioTestCase):
    def setUp(self) -> None:
        # A person who never answers ends with the loop.
        logging.disable(logging.ERROR)
        self.addCleanup(logging.disable, logging.NOTSET)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.journal = pathlib.Path(folder.name) / "sessions.journal"
        #: The calls that ran: name and attempt.
        self.ran: list[tuple[str, int]] = []
        self.asked: list[ToolCall] = []
        self.is_asked = asyncio.Event()

    def options(self, approve: Any) -> dict[str, Any]:
        def tool(name: str) -> Tool:
            async def function(context: ToolContext, to: str = "") -> str:
                self.ran.append((name, context.attempt))
                return name

            return Tool(function, name=name, needs_approval=name == "send")

        return {"tools": [tool("read"), tool("send")], "approve": approve, "durable": "work"}

    async def never(self, calls: Sequence[ToolCall]) -> bool:
        self.asked += calls
        self.is_asked.set()
        await asyncio.Event().wait()
        return True

    async def killed_while_it_asks(self) -> str:
        """The cell of a host that was killed while its program waited for a person."""
        host = CodeMode(journal=self.journal)
        session = await host.session(**self.options(self.never)).open()
        running = asyncio.ensure_future(session.exec(PROGRAM, yield_time=0.001))
        cell = (await running).cell_id
        await self.is_asked.wait()
        self.assertEqual(self.ran, [("read", 1)])
        os.kill(await host.pid(), signal.SIGKILL)
        await host.close()
        return cell

    async def ended(self, session: Any, cell: str) -> Any:
        result = await session.wait(cell)
        while result.status == "running":
            result = await session.wait(cell)
        return result

    async def test_a_call_that_waited_for_a_person_is_asked_about_again_and_runs_once(self) -> None:
        cell = await self.killed_while_it_asks()

        async def yes(calls: Sequence[ToolCall]) -> bool:
            self.asked += calls
            return True

        async with CodeMode(journal=self.journal) as host:
            async with host.session(**self.options(yes)) as session:
                self.assertEqual(await session.cells(), [cell])
                result = await self.ended(session, cell)
                self.assertEqual((result.status, result.text), ("completed", '["read","send"]'))
                self.assertEqual(await session.cells(), [])
        self.assertEqual(self.ran, [("read", 1), ("send", 2)])
        self.assertEqual([call.name for call in self.asked], ["send", "send"])

    async def test_what_a_person_refuses_after_a_restart_does_not_run(self) -> None:
        cell = await self.killed_while_it_asks()

        async def no(calls: Sequence[ToolCall]) -> str:
            return "not today"

        async with CodeMode(journal=self.journal) as host:
            async with host.session(**self.options(no)) as session:
                result = await self.ended(session, cell)
        self.assertEqual(result.status, "failed")
        self.assertIn("not today", result.error.message)
        self.assertEqual(self.ran, [("read", 1)])

    async def test_closing_a_durable_session_leaves_its_programs(self) -> None:
        async with CodeMode(journal=self.journal) as host:
            for _ in range(2):
                async with host.session(**self.options(self.never)) as session:
                    cells = await session.cells()
                    if not cells:
                        await session.exec("await tools.send({}); store('k', 1)", yield_time=0.001)
                    await self.is_asked.wait()
                    self.is_asked.clear()
                    cells = await session.cells()
                self.assertEqual(len(cells), 1)

    async def test_without_a_journal_a_durable_session_is_refused(self) -> None:
        async with CodeMode() as host:
            with self.assertRaisesRegex(RequestError, "journal"):
                await host.session(durable="work").open()


if __name__ == "__main__":
    unittest.main()
