"""What goes wrong around a host, in tools and in those that are asked: each costs its own call or
request, nothing waits for ever, and no other program is lost."""

import asyncio
import dataclasses
import decimal
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
import uuid
from typing import Any, Optional

from code_mode import CodeMode, CodeModeSync, RequestError, StartError, Tool, ToolError


@dataclasses.dataclass
class Node:
    name: str
    parent: Optional["Node"] = None

    def __post_init__(self) -> None:
        self.parent = self


@dataclasses.dataclass
class Leaves:
    name: str

    def __post_init__(self) -> None:
        sys.exit(3)


def script(source: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program of a user; one that does not end fails the test."""
    return subprocess.run(
        [sys.executable, "-c", source, *arguments], capture_output=True, text=True, timeout=60
    )


class Tools(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.host = CodeMode()
        self.pid = await self.host.pid()

    async def asyncTearDown(self) -> None:
        self.assertEqual(await self.host.pid(), self.pid, "the host was lost")
        await self.host.close()

    async def test_inputs_that_cannot_be_shown_or_made_fail_their_call_alone(self) -> None:
        def take(node: Node) -> str:
            return node.name

        def leave(one: Leaves) -> None: ...

        async with self.host.session(tools=[take, leave], approve=lambda calls: True) as session:
            for call in ["take({ node: { name: 'a' } })", "leave({ one: { name: 'a' } })"]:
                result = await session.run(f"await tools.{call}")
                self.assertEqual(result.status, "failed", call)

    async def test_results_of_advertised_types_reach_the_program(self) -> None:
        def price() -> decimal.Decimal:
            return decimal.Decimal("1.10")

        def name() -> uuid.UUID:
            return uuid.UUID(int=1)

        def place() -> pathlib.Path:
            return pathlib.Path("/a/b")

        def blob() -> bytes:
            return b"x"

        async with self.host.session(tools=[price, name, place, blob]) as session:
            self.assertIn("blob(): Promise<unknown>", session.instructions)
            source = "text([await tools.price(), await tools.name(), await tools.place()].join(' '))"
            result = await session.run(source)
        self.assertEqual(result.text, f"1.10 {uuid.UUID(int=1)} /a/b")

    async def test_a_default_that_cannot_be_copied_is_passed_as_it_is(self) -> None:
        def locked(a: int, lock: Any = threading.Lock()) -> int:
            with lock:
                return a

        async with self.host.session(tools=[locked]) as session:
            self.assertEqual((await session.run("text(await tools.locked({ a: 4 }))")).text, "4")

    async def test_half_of_a_character_costs_that_character_alone(self) -> None:
        def fail() -> None:
            raise ToolError("cut \ud83d", code=7, data={"a": "\ud83d"})

        def coded() -> None:
            raise ToolError("no", code=True)

        async with self.host.session(tools=[fail, coded]) as session:
            source = "try { await tools.fail() } catch (e) { text(`${e.message} ${e.code} ${e.data.a}`) } // \ud83d"
            self.assertEqual((await session.run(source)).text, "cut \ufffd 7 \ufffd")
            source = "try { await tools.coded() } catch (e) { text(`${e.message} ${e.code}`) }"
            self.assertEqual((await session.run(source)).text, "no undefined")

    async def test_tools_that_run_programs_do_not_wait_for_each_other_s_threads(self) -> None:
        loop = asyncio.get_running_loop()

        def leaf() -> int:
            return 1

        def outer() -> str:
            inner = asyncio.run_coroutine_threadsafe(session.run("text(await tools.leaf())"), loop)
            return inner.result(60).text

        async with self.host.session(tools=[leaf, outer]) as session:
            many = "const all = await Promise.all(Array.from({ length: 300 }, () => tools.outer())); text(all.length)"
            self.assertEqual((await asyncio.wait_for(session.run(many), 100)).text, "300")

    async def test_what_an_approval_throws_stays_with_the_developer(self) -> None:
        def act() -> None: ...

        def throws(calls: Any) -> bool:
            raise RuntimeError("postgres://u:PASSWORD@host")

        for approve, said in [(throws, "the approval failed"), (lambda calls: "", "the call was not approved")]:
            with self.assertLogs("code_mode") if approve is throws else self.subTest():
                async with self.host.session(tools=[act], approve=approve) as session:
                    result = await session.run("await tools.act()")
            assert result.error is not None
            self.assertIn(said, result.error.message)
            self.assertNotIn("PASSWORD", result.for_model())

    async def test_a_question_that_is_not_answered_lets_no_call_run(self) -> None:
        ran = []
        act = Tool(lambda: ran.append(1), name="act", needs_approval=lambda input: None)  # type: ignore[arg-type, return-value]
        async with self.host.session(tools=[act]) as session:
            self.assertEqual((await session.run("await tools.act()")).status, "failed")
        self.assertEqual(ran, [])

    async def test_a_limit_that_does_not_exist_is_named_in_the_language_of_its_user(self) -> None:
        for limits in ({"max_walltime": 1.0}, {"max_wall_time": float("inf")}, {"max_wall_time": "x"}):
            with self.assertRaises(RequestError) as raised:
                self.host.session(limits=limits)  # type: ignore[arg-type]
            self.assertIn(next(iter(limits)), str(raised.exception))

    async def test_a_session_that_is_opened_again_knows_nothing_of_its_earlier_cells(self) -> None:
        session = self.host.session()
        await session.open()
        result = await session.exec("text('OLD'); yield_control(); await new Promise((r) => setTimeout(r, 1e6))", yield_time=5)
        waiting = asyncio.ensure_future(session.wait(result.cell_id))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await session.close()
        await session.open()
        self.assertEqual((await session.run("text('NEW')")).text, "NEW")
        await session.close()

    async def test_cancelled_programs_leave_nothing_behind(self) -> None:
        async with self.host.session() as session:
            for _ in range(5):
                running = asyncio.ensure_future(session.run("text('x'); yield_control(); await new Promise((r) => setTimeout(r, 1e6))"))
                await asyncio.sleep(0.05)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            # The host answers in order, so that the ends are there with this.
            await session.run("text(1)")
            await session.stored()
            self.assertEqual((session._kept, session._given_up), ({}, set()))


class Ends(unittest.TestCase):
    def test_a_program_whose_task_holds_a_session_ends(self) -> None:
        done = script(
            "import asyncio\n"
            "from code_mode import CodeMode\n"
            "async def agent(ready):\n"
            "    async with CodeMode() as host, host.session() as session:\n"
            "        ready.set()\n"
            "        await session.run('await new Promise((r) => setTimeout(r, 1e6))')\n"
            "async def main():\n"
            "    ready = asyncio.Event()\n"
            "    task = asyncio.create_task(agent(ready))\n"
            "    await ready.wait()\n"
            "asyncio.run(main())\n"
            "print('ended')\n"
        )
        self.assertEqual(done.stdout, "ended\n", done.stderr)

    def test_another_event_loop_does_not_end_a_host_in_use(self) -> None:
        async def first() -> None:
            async with CodeMode() as host, host.session() as session:
                pid = await host.pid()
                errors: list[BaseException] = []

                def second() -> None:
                    try:
                        asyncio.run(host.start())
                    except RuntimeError as error:
                        errors.append(error)

                await asyncio.to_thread(second)
                self.assertIn("another event loop", str(errors[0]))
                self.assertEqual((await session.run("text(1)")).text, "1")
                self.assertEqual(await host.pid(), pid)

        asyncio.run(first())

    @unittest.skipUnless(hasattr(os, "fork"), "forks")
    def test_a_forked_child_neither_ends_nor_keeps_the_host(self) -> None:
        source = (
            "import os, sys, time\n"
            "from code_mode import CodeModeSync\n"
            "host = CodeModeSync()\n"
            "session = host.session()\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    try:\n"
            "        session.run('text(1)')\n"
            "    except RuntimeError as error:\n"
            "        print('before the fork' in str(error), flush=True)\n"
            "    host.close()\n"
            "    time.sleep(600)\n"
            "    os._exit(0)\n"
            "time.sleep(0.5)\n"
            "print(session.run('text(2)').text, host.pid(), child, flush=True)\n"
            "os.kill(os.getpid(), 9)\n"
        )
        parent = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        self.assertEqual(parent.stdout.readline(), "True\n")
        text, pid, child = map(int, parent.stdout.readline().split())
        self.assertEqual((text, parent.wait(60)), (2, -signal.SIGKILL))
        parent.stdout.close()
        try:
            for _ in range(200):
                if not pathlib.Path(f"/proc/{pid}").exists():
                    break
                threading.Event().wait(0.05)
            else:
                self.fail("the child keeps the host")
        finally:
            os.kill(child, signal.SIGKILL)

    def test_a_host_that_stands_still_keeps_nobody_waiting(self) -> None:
        async def use() -> None:
            host = CodeMode()
            session = await host.session().open()
            pid = await host.pid()
            running = asyncio.ensure_future(session.run("await new Promise((r) => setTimeout(r, 1e6))", yield_time=0.1))
            await asyncio.sleep(0.3)
            os.kill(pid, signal.SIGSTOP)
            running.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await asyncio.wait_for(running, 5)
            with self.assertRaises((asyncio.TimeoutError, TimeoutError)):
                await asyncio.wait_for(host.session().open(), 0.5)
            await asyncio.wait_for(session.close(), 20)
            await host.close()

        asyncio.run(use())

    def test_a_coroutine_that_closes_its_own_host_is_refused(self) -> None:
        with CodeModeSync() as host:
            errors = []

            async def close() -> None:
                try:
                    host.close()
                except RuntimeError as error:
                    errors.append(str(error))

            with host.session(tools=[close]) as session:
                session.run("await tools.close()")
            self.assertIn("would wait for itself", errors[0])

    def test_a_program_that_is_not_a_host_is_named(self) -> None:
        async def start(program: str) -> str:
            with self.assertRaises(StartError) as raised:
                await CodeMode(program=program).start()
            return str(raised.exception)

        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "other"
            for body in ["echo hello world", "exit 5", "cat"]:
                path.write_text(f"#!/bin/sh\n{body}\n")
                path.chmod(0o755)
                self.assertIn(str(path), asyncio.run(start(str(path))), body)


if __name__ == "__main__":
    unittest.main()
