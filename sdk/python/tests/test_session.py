"""What the SDK promises, against the program that CODE_MODE_BIN names."""

import asyncio
import dataclasses
import datetime
import enum
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import unittest.mock
import uuid
from typing import Annotated, Any, Literal, Optional, TypedDict

from code_mode import (
    CodeMode,
    CodeModeSync,
    ContentItem,
    HostLostError,
    RequestError,
    StartError,
    Tool,
    ToolCall,
    ToolContext,
    ToolError,
    image,
)


async def add(a: int, b: int = 40) -> int:
    """Sum

    Args:
        a: the first number
    """
    return a + b


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Row(TypedDict):
    name: str
    tags: list[str]


class Sessions(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.host = CodeMode()
        await self.host.start()

    async def asyncTearDown(self) -> None:
        await self.host.close()

    async def test_a_program_calls_functions_of_ours_and_its_output_comes_back(self) -> None:
        async with self.host.session(tools=[add]) as session:
            self.assertIn("/** Sum */\nadd(args: { a: number;", session.instructions)
            result = await session.run("console.log('note'); text(await tools.add({ a: 2 }))")
        self.assertEqual((result.status, result.text), ("completed", "42"))
        self.assertEqual(result.content[0], ContentItem("text", "[log] note", "log"))
        assert result.stats is not None
        self.assertEqual(result.stats.calls, 1)

    async def test_an_input_that_does_not_fit_never_reaches_the_function(self) -> None:
        async with self.host.session(tools=[add]) as session:
            result = await session.run("\nawait tools.add({ a: 'x' })")
        assert result.error is not None and result.error.position is not None
        self.assertEqual((result.status, result.error.kind), ("failed", "script_error"))
        self.assertEqual(result.error.position.line, 2)

    async def test_hints_become_schemas_and_inputs_become_the_hinted_types(self) -> None:
        seen: list[object] = []

        def takes(
            point: Point,
            colour: Colour,
            row: Row,
            how: Literal["a", "b"],
            some: Annotated[list[int], "numbers"],
            maybe: Optional[str] = None,
        ) -> None:
            seen.extend([point, colour, row, how, some, maybe])

        async with self.host.session(tools=[takes]) as session:
            program = "await tools.takes({ point: { x: 1 }, colour: 'red', row: { name: 'n', tags: [] }, how: 'a', some: [1] })"
            result = await session.run(program)
            wrong = await session.run(program.replace("'red'", "'blue'"))
        self.assertIsNone(result.error)
        self.assertEqual(seen, [Point(1.0), Colour.RED, {"name": "n", "tags": []}, "a", [1], None])
        assert wrong.error is not None
        self.assertIn("colour", wrong.error.message)

    async def test_an_error_of_a_tool_reaches_the_program_with_its_message_code_and_data(self) -> None:
        def fails() -> None:
            raise ToolError("no file", code=7, data={"path": "/x"})

        def breaks() -> None:
            raise KeyError("k")

        async with self.host.session(tools=[fails, breaks]) as session:
            result = await session.run(
                "for (const name of ['fails', 'breaks']) try { await tools[name]({}) } catch (e) { text([e.message, e.code, e.data]) }"
            )
        self.assertEqual(result.text, '["no file",7,{"path":"/x"}]\n["\'k\'",null,null]')

    async def test_a_tool_that_blocks_does_not_block_the_others(self) -> None:
        barrier = threading.Barrier(4, timeout=20)

        def block() -> int:
            return barrier.wait() >= 0 and 1 or 0

        async with self.host.session(tools=[block]) as session:
            result = await session.run(
                "text((await Promise.all([1, 2, 3, 4].map(() => tools.block({})))).length)"
            )
        self.assertEqual(result.text, "4")

    async def test_cancelling_a_program_cancels_its_tool(self) -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async with self.host.session(tools=[slow]) as session:
            running = asyncio.create_task(session.run("await tools.slow({})"))
            await began.wait()
            running.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await running
            await asyncio.wait_for(cancelled.wait(), 20)
            # The session continues.
            self.assertEqual((await session.run("text(1)")).text, "1")

    async def test_calls_that_wait_together_are_approved_together_and_the_clocks_stand_still(self) -> None:
        asked: list[list[int]] = []

        async def approve(calls: "list[ToolCall]") -> "list[bool | str]":
            asked.append([call.input["a"] for call in calls])
            await asyncio.sleep(0.3)
            return ["not two" if call.input["a"] == 2 else True for call in calls]

        options = {"limits": {"max_wall_time": 0.25}}
        async with self.host.session(tools=[add], approve=approve, **options) as session:  # type: ignore[arg-type]
            result = await session.run(
                "const all = await Promise.allSettled([1, 2].map((a) => tools.add({ a }))); text(all.map((one) => one.value ?? one.reason.message))"
            )
        self.assertEqual(asked, [[1, 2]])
        self.assertEqual(result.text, '[41,"not two"]')

    async def test_limits_end_a_program_with_their_name_and_the_line(self) -> None:
        async with self.host.session(limits={"max_cpu_time": 0.1}) as session:
            error = (await session.run("let n = 0;\nfor (;;) n++;")).error
        assert error is not None and error.limit is not None and error.position is not None
        self.assertEqual((error.kind, error.limit.name, error.limit.value), ("limit", "CPU time", 100))
        self.assertEqual(error.position.line, 2)

    async def test_stored_values_constants_images_and_context(self) -> None:
        def shot(context: ToolContext) -> dict[str, object]:
            assert context.tool_call_id == "model-1" and context.site is not None
            return image(b"\x01\x02", "image/png")

        async with self.host.session(tools=[shot], stored={"a": 1}) as session:
            result = await session.run(
                "store('b', load('a') + GIVEN); image(await tools.shot({}))",
                constants={"GIVEN": 2},
                tool_call_id="model-1",
            )
            self.assertEqual(await session.stored(), {"a": 1, "b": 3})
        self.assertEqual(result.content[0].value, "data:image/png;base64,AQI=")

    async def test_results_that_are_no_json_fail_their_call_alone(self) -> None:
        tools = [Tool(lambda _: value, name=f"t{at}", input_schema={}) for at, value in enumerate([object(), float("nan")])]
        async with self.host.session(tools=tools) as session:
            result = await session.run(
                "for (const name of ['t0', 't1']) await tools[name]({}).catch((e) => text(typeof e.message))"
            )
        self.assertEqual(result.text, "string\nstring")
        with self.assertRaises(RequestError):
            await session.exec("1")

    async def test_a_host_that_dies_fails_what_is_pending_and_the_next_session_has_a_new_one(self) -> None:
        began = asyncio.Event()

        async def never() -> None:
            began.set()
            await asyncio.Event().wait()

        session = await self.host.session(tools=[never]).open()
        pending = [asyncio.create_task(session.exec(code)) for code in ("await tools.never({})", "for (;;);")]
        await began.wait()
        os.kill(await self.host.pid(), signal.SIGKILL)
        for error in await asyncio.gather(*pending, return_exceptions=True):
            self.assertIsInstance(error, HostLostError)
        with self.assertRaises(HostLostError):
            await session.exec("1")
        async with self.host.session() as again:
            self.assertEqual((await again.run("text('again')")).text, "again")

    async def test_a_program_that_is_not_there_or_no_host_is_an_error_that_says_so(self) -> None:
        for options in ({"program": "/no/such"}, {"program": "/bin/true"}, {"args": ["--no-such-option"]}):
            with self.assertRaises(StartError) as raised:
                await CodeMode(**options).start()  # type: ignore[arg-type]
        self.assertIn("no-such-option", str(raised.exception))


    async def test_whatever_a_tool_or_an_approver_does_costs_its_call_alone(self) -> None:
        class Odd(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        class Dumps:
            def model_dump(self, mode: str) -> object:
                raise RuntimeError("no dump")

        def raising(error: BaseException) -> Tool:
            def fail(_: object) -> None:
                raise error

            return Tool(fail, name=f"t{len(tools)}", input_schema={})

        def giving(value: object) -> Tool:
            return Tool(lambda _: value, name=f"t{len(tools)}", input_schema={})

        tools: list[Tool] = []
        errors = [SystemExit(3), StopIteration(), Odd(), asyncio.CancelledError(), KeyboardInterrupt()]
        errors += [OSError("caf\udce9.txt"), ToolError("m", code=2**80), ToolError("m", data=object())]
        for error in errors:
            tools.append(raising(error))
        deep: list[object] = []
        for _ in range(5000):
            deep = [deep]
        for value in [unittest.mock.MagicMock(), Dumps(), deep, 10**5000, "\udce9"]:
            tools.append(giving(value))
        names = [tool.own_name for tool in tools]
        async with self.host.session(tools=tools) as session:
            code = f"for (const name of {names}) await tools[name]({{}}).then(() => text(1), (e) => text(typeof e.message))"
            result = await asyncio.wait_for(session.run(code), 60)
            self.assertEqual(len(result.text.split("\n")), len(tools), result)
        for approve in [lambda _: None, lambda _: 5, lambda _: {}, lambda _: [None], lambda calls: [][0]]:
            async with self.host.session(tools=[add], approve=approve) as session:  # type: ignore[arg-type]
                program = "await tools.add({ a: 1 }).catch((e) => text(e.message))"
                self.assertRegex((await session.run(program)).text, "not approved|approval failed")

    async def test_wrong_arguments_fail_their_request_alone(self) -> None:
        async with self.host.session() as session:
            for wrong in [
                lambda: session.exec("1", yield_time=float("nan")),
                lambda: session.exec(None),  # type: ignore[arg-type]
                lambda: session.exec("1", max_output_tokens=-1),
                lambda: session.wait(""),
                lambda: session.terminate(""),
                lambda: self.host.session(limits={"max_heap_byte": 1}).open(),  # type: ignore[typeddict-unknown-key]
                lambda: self.host.session(limits={"max_heap_bytes": -1}).open(),
                lambda: self.host.session(tools=[Tool(add, name="a b"), Tool(add, name="a-b")]).open(),
            ]:
                with self.assertRaises(RequestError):
                    await asyncio.wait_for(wrong(), 20)
            self.assertEqual((await session.run("text(1)")).text, "1")

    async def test_a_pause_that_is_cancelled_is_over(self) -> None:
        async with self.host.session(limits={"max_wall_time": 0.5}) as session:

            async def pause() -> None:
                async with session.paused():
                    await asyncio.Event().wait()

            for turns in range(4):
                pausing = asyncio.create_task(pause())
                for _ in range(turns):
                    await asyncio.sleep(0)
                pausing.cancel()
                await asyncio.gather(pausing, return_exceptions=True)
            result = await asyncio.wait_for(session.run("await new Promise((done) => setTimeout(done, 60000))"), 20)
            assert result.error is not None and result.error.limit is not None
            self.assertEqual(result.error.limit.name, "wall time")

    async def test_odd_signatures_are_read_as_far_as_they_go(self) -> None:
        @dataclasses.dataclass
        class Node:
            value: int
            next: "Optional[Node]" = None

        class Callable:
            __name__ = "called"

            def __call__(self, a: int) -> int:
                return a

        def infinite(timeout: float = float("inf")) -> float:
            return timeout

        def partly(a: int, b: Any, context: "ToolContext | None" = None) -> "NoSuchType":  # type: ignore[name-defined]  # noqa: F821
            assert context is not None
            return context.name

        def points(by_name: dict[str, Point]) -> float:
            return sum(point.x for point in by_name.values())

        def nodes(node: Node) -> int:
            return node.value

        tools = [Callable(), infinite, partly, points, nodes]
        async with self.host.session(tools=tools) as session:
            result = await session.run(
                "text([await tools.called({ a: 1 }), await tools.infinite({}).catch(() => 'inf'), await tools.partly({ a: 1, b: 2 }),"
                " await tools.points({ by_name: { p: { x: 2 } } }), await tools.nodes({ node: { value: 3, next: { value: 4 } } })])"
            )
        self.assertEqual(result.text, '[1,"inf","partly",2,3]', result)

    async def test_hints_that_json_has_no_form_for_are_refused_with_the_name_of_the_argument(self) -> None:
        class Own:
            pass

        def unknown(a: Own) -> None: ...

        def unresolved(a: "NoSuchType") -> None: ...  # type: ignore[name-defined]  # noqa: F821

        for function, message in [(unknown, "the hint of a of unknown: Own has no"), (unresolved, "NoSuchType.* is not known")]:
            with self.assertRaisesRegex(TypeError, message):
                self.host.session(tools=[function])
        with self.assertRaisesRegex(ValueError, "two tools have the name unknown"):
            self.host.session(tools=[Tool(unknown, input_schema={}), Tool(unknown, input_schema={})])

    async def test_dates_unions_typed_dicts_and_constraints_are_read_as_they_are_hinted(self) -> None:
        import annotated_types
        import pydantic

        class Pair(TypedDict):
            at: datetime.datetime
            path: pathlib.Path

        class Model(pydantic.BaseModel):
            n: int = 7

        def kinds(pair: Pair, point: Point | Colour, ids: tuple[uuid.UUID, int], model: Model | list[int]) -> list[str]:
            return [type(one).__name__ for one in [pair["at"], pair["path"], point, ids[0], model]]

        def few(n: Annotated[int, annotated_types.Ge(0), pydantic.Field(le=5)]) -> int:
            return n

        async with self.host.session(tools=[kinds, few]) as session:
            result = await session.run(
                "text(await tools.kinds({ pair: { at: '2026-01-01T00:00:00Z', path: '/tmp' }, point: { x: 1 },"
                " ids: ['12345678-1234-5678-1234-567812345678', 1], model: {} }));"
                " text(await tools.few({ n: 99 }).catch((e) => 'refused'))"
            )
        self.assertEqual(result.text, '["datetime","PosixPath","Point","UUID","Model"]\nrefused', result)

    async def test_who_decides_about_a_call_sees_the_input_that_the_tool_gets(self) -> None:
        asked: list[Any] = []

        def pay(to: str, amount: int = 1000) -> int:
            return amount

        def ask(calls: Any) -> str:
            asked.extend((call.namespace, call.name, call.input) for call in calls)
            return "not today"

        tools = [Tool(pay, namespace="bank", needs_approval=lambda given: given["amount"] > 100)]
        async with self.host.session(tools=tools, approve=ask) as session:
            result = await session.run(
                "for (const more of [{}, { amount: 5 }]) text(await tools.bank__pay({ to: 'eve', ...more }).catch((e) => e.message))"
            )
        self.assertEqual(result.text, "not today\n5")
        self.assertEqual(asked, [("bank", "pay", {"to": "eve", "amount": 1000})])

    async def test_what_partial_has_bound_no_program_can_choose(self) -> None:
        def query(text: str, tenant: str) -> str:
            "Asks."
            return f"{text} for {tenant}"

        async with self.host.session(tools=[functools.partial(query, tenant="acme")]) as session:
            result = await session.run(
                "text(await tools.query({ text: 's' })); text(await tools.query({ text: 's', tenant: 'b' }).catch(() => 'refused'))"
            )
        self.assertEqual(result.text, "s for acme\nrefused")

    async def test_a_function_in_a_thread_can_see_that_nobody_waits_for_it(self) -> None:
        seen = threading.Event()

        def slow(context: ToolContext) -> None:
            if context.cancelled.wait(20):
                seen.set()

        async with self.host.session(tools=[slow]) as session:
            begun = await session.exec("await tools.slow({})", yield_time=0.05)
            await session.terminate(begun.cell_id)
            self.assertTrue(await asyncio.to_thread(seen.wait, 20))

    async def test_events_have_the_ids_of_calls_and_an_observer_may_be_asynchronous(self) -> None:
        events: list[Any] = []
        ids: list[str] = []

        async def observe(event: Any) -> None:
            await asyncio.sleep(0)
            events.append(event)

        def seen(context: ToolContext) -> None:
            ids.extend([context.call_id, context.tool_call_id])

        async with self.host.session(tools=[seen], on_event=observe) as session:
            await session.run("await tools.seen({})")
        by_type = {event["type"]: event for event in events}
        self.assertEqual([by_type["call/finished"]["call_id"], by_type["cell/started"]["tool_call_id"]], ids)
        self.assertEqual(by_type["cell/ended"]["stats"].calls, 1)

    async def test_the_budget_of_a_run_is_for_all_of_its_output(self) -> None:
        code = "text('a'); yield_control(); await new Promise((done) => setTimeout(done, 50)); text('x'.repeat(4000))"
        async with self.host.session() as session:
            result = await session.run(code, max_output_tokens=10)
        self.assertLess(len(result.text), 200)

    async def test_numbers_that_python_does_not_read_cost_their_call_alone(self) -> None:
        def count(n: int = 0) -> str:
            return str(n)

        def anything(**all: Any) -> str:
            return type(all["n"]).__name__

        many = "JSON.rawJSON('9'.repeat(5000))"
        async with self.host.session(tools=[count, anything]) as session:
            result = await session.run(
                f"text(await tools.anything({{ n: {many} }}).catch(() => 'refused'));"
                f"text(await tools.count({{ n: {many}, evil: 1 }}).catch(() => 'refused'));"
                "text(await tools.count({ n: JSON.rawJSON('1e999'), evil: 1 }).catch(() => 'refused'));"
                f"text(await tools.count({{ n: JSON.rawJSON('7.0') }})); store('n', {many})"
            )
            self.assertEqual(result.text, "refused\nrefused\nrefused\n7", result)
            self.assertIn("n", await session.stored())

    async def test_no_hint_lets_another_type_through(self) -> None:
        @dataclasses.dataclass
        class Read:
            kind: Literal["read"]

        @dataclasses.dataclass
        class Delete:
            kind: Literal["delete"]

        @dataclasses.dataclass
        class Node:
            value: int
            next: "Optional[Node]" = None

        # Its own names are resolved where the functions are.
        Node.__annotations__["next"] = Optional[Node]

        def do(what: Read | Delete) -> str:
            return type(what).__name__

        def sums(node: Node) -> int:
            return node.value + (node.next.value if node.next else 0)

        def pick(by: dict[Colour, int], flag: Literal[1] | bool, **extra: int) -> list[str]:
            return [type(next(iter(by))).__name__, type(flag).__name__]

        async with self.host.session(tools=[do, sums, pick], check_inputs=False) as session:
            result = await session.run(
                "const told = async (call) => text(await call.catch(() => 'refused'));"
                "await told(tools.do({ what: { kind: 'delete' } })); await told(tools.do({ what: { kind: 'x' } }));"
                "await told(tools.sums({ node: { value: 1, next: 'EVIL' } })); await told(tools.sums({ node: { value: '1' } }));"
                "await told(tools.pick({ by: { red: 1 }, flag: true })); await told(tools.pick({ by: { blue: 1 }, flag: 1 }));"
                "await told(tools.pick({ by: {}, flag: 1, other: 'EVIL' }));"
            )
        said = ["Delete", "refused", "refused", "refused", '["Colour","bool"]', "refused", "refused"]
        self.assertEqual(result.text.split("\n"), said, result)

    async def test_what_partial_has_bound_stays_bound_with_any_keywords(self) -> None:
        def secret(a: int, token: str, **more: Any) -> str:
            return token

        tools = [Tool(functools.partial(secret, token="BOUND"), name="named"), Tool(functools.partial(secret, 1, "BOUND"), name="placed")]
        async with self.host.session(tools=tools) as session:
            result = await session.run(
                "text(await tools.named({ a: 1, token: 'EVIL' }).catch(() => 'refused')); text(await tools.named({ a: 1 }));"
                "text(await tools.placed({ token: 'EVIL' }).catch(() => 'refused')); text(await tools.placed({ x: 1 }))"
            )
        self.assertEqual(result.text, "refused\nBOUND\nrefused\nBOUND", result)

    async def test_an_approver_sees_fields_that_their_model_hides(self) -> None:
        import pydantic

        class Command(pydantic.BaseModel):
            line: str
            hidden: str = pydantic.Field("", exclude=True)
            secret: pydantic.SecretStr = pydantic.SecretStr("")

            @pydantic.field_serializer("line")
            def short(self, line: str) -> str:
                return line[:3]

        asked: list[Any] = []

        def ask(calls: Any) -> bool:
            asked.extend(call.input for call in calls)
            return False

        def runs(command: Command) -> None: ...

        async with self.host.session(tools=[runs], approve=ask) as session:
            await session.run("await tools.runs({ command: { line: 'rm -rf /', hidden: 'h', secret: 's' } }).catch(() => {})")
        self.assertEqual(asked, [{"command": {"line": "rm -rf /", "hidden": "h", "secret": "s"}}])

    async def test_a_wait_that_is_cancelled_loses_no_output(self) -> None:
        async with self.host.session() as session:
            for pause in range(8):
                begun = await session.exec("yield_control(); text('PRECIOUS'); await new Promise((done) => setTimeout(done, 300))")
                waiting = asyncio.create_task(session.wait(begun.cell_id))
                await asyncio.sleep(pause / 1000)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                said = ""
                while "PRECIOUS" not in said:
                    last = await session.wait(begun.cell_id, yield_time=5)
                    said += last.text
                    self.assertNotEqual(last.status, "failed", last)

    async def test_calls_that_a_program_gives_up_leave_nothing(self) -> None:
        async def slow() -> None:
            await asyncio.sleep(60)

        async with self.host.session(tools=[slow]) as session:
            for _ in range(5):
                await session.run("for (let i = 0; i < 50; i++) tools.slow({}); exit()")
            wire = session._open_wire()
            for _ in range(100):
                if not wire._calls:
                    break
                await asyncio.sleep(0.02)
            self.assertEqual([len(wire._calls), len(wire._cancelled)], [0, 0])

    def test_closing_a_sync_host_fails_what_other_threads_wait_for(self) -> None:
        host = CodeModeSync()
        session = host.session()
        ends: list[str] = []

        def hammer() -> None:
            try:
                while True:
                    session.exec("text(1)")
            except Exception as error:
                ends.append(type(error).__name__)

        threads = [threading.Thread(target=hammer, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        host.close()
        for thread in threads:
            thread.join(20)
        self.assertEqual(len(ends), 8, ends)

    async def test_what_does_not_greet_is_no_host_and_is_ended(self) -> None:
        for script in ["printf 'hello world'; exec sleep 60", "printf '\\4\\0\\0\\0null'; exec sleep 60"]:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "program")
                with open(path, "w") as file:
                    file.write(f"#!/bin/sh\n{script}\n")
                os.chmod(path, 0o755)
                with self.assertRaises(StartError):
                    await asyncio.wait_for(CodeMode(program=path).start(), 20)
        host = CodeMode()
        with self.assertRaises(asyncio.TimeoutError):
            await asyncio.wait_for(host.start(), 0.001)
        await host.close()


class Processes(unittest.TestCase):
    def test_a_tool_that_exits_or_never_ends_does_not_keep_the_program(self) -> None:
        source = (
            "import sys, time\nfrom code_mode import CodeModeSync\n"
            "def leave() -> None:\n    sys.exit(3)\n"
            "def sleep() -> None:\n    time.sleep(1000)\n"
            "with CodeModeSync() as host, host.session(tools=[leave, sleep]) as session:\n"
            "    print(session.run('await tools.leave({})').error.kind)\n"
            "    cell = session.exec('await tools.sleep({})', yield_time=0.2).cell_id\n"
            "    print(session.terminate(cell).status)\n"
        )
        done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stdout, "script_error\nterminated\n", done.stderr)

    def test_a_host_serves_one_event_loop_after_the_other_and_says_that_it_is_closed(self) -> None:
        host = CodeMode()

        async def use() -> str:
            async with host.session() as session:
                return (await session.run("text(1)")).text

        self.assertEqual([asyncio.run(use()), asyncio.run(use())], ["1", "1"])
        asyncio.run(host.close())
        sync = CodeModeSync()
        sync.close()
        with self.assertRaises(HostLostError):
            sync.session()

    def test_the_same_without_await(self) -> None:
        def double(n: int) -> int:
            return 2 * n

        with CodeModeSync() as host, host.session(tools=[double, add]) as session:
            result = session.run("text(await tools.double({ n: 20 }) + await tools.add({ a: 2 }))")
            self.assertEqual(result.text, "82")

    def test_a_program_that_forgets_to_close_leaves_no_process_behind(self) -> None:
        for ending in ("", "import os; os._exit(3)", "import os; os.kill(os.getpid(), 9)"):
            source = (
                "from code_mode import CodeModeSync\n"
                "host = CodeModeSync(); session = host.session(); session.run('text(1)')\n"
                "print(host.pid(), flush=True)\n" + ending
            )
            done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60)
            pid = int(done.stdout)
            while True:
                try:
                    os.kill(pid, 0)
                except ProcessLookupError:
                    break
                time.sleep(0.01)


if __name__ == "__main__":
    unittest.main()
