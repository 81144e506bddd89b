"""Each adapter with its framework and a model that is scripted: a program calls two tools at once, the
answer comes back; a program that fails; an approval; a cancellation."""

import asyncio
import json
import unittest
from typing import Any, AsyncIterator

from code_mode import CodeMode, Session, image

TWO = "const [a, b] = await Promise.all([tools.add({ a: 1, b: 2 }), tools.add({ a: 3, b: 4 })]); text(a * b)"
FAILS = "await tools.nothing({})"
SHOT = "image(await tools.shot({}))"
SLOW = "await tools.slow({})"


class Adapters(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.host = CodeMode()
        self.cancelled, self.began = asyncio.Event(), asyncio.Event()
        self.asked: list[str] = []

    async def asyncTearDown(self) -> None:
        await self.host.close()

    def session(self, approves: bool) -> Session:
        async def add(a: int, b: int) -> int:
            "Sum"
            return a + b

        async def slow() -> None:
            self.began.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()

        async def shot() -> Any:
            return image(bytes([1, 2]), "image/png")

        async def approve(calls: Any) -> list[bool]:
            self.asked += [call.name for call in calls]
            return [call.input["a"] != 3 for call in calls]

        return self.host.session(tools=[add, slow, shot], approve=approve if approves else None)

    async def scenario(self, ask: Any) -> None:
        """`ask(session, code)` has the framework run an agent whose model writes this program; it gives
        the model's last words, which are what came of the program."""
        for code, approves, expected in [(TWO, False, "21"), (FAILS, False, "tools.nothing"), (TWO, True, "not approved"), (SHOT, False, "image/png")]:
            async with self.session(approves) as session:
                self.assertIn(expected, await ask(session, code))
        self.assertEqual(self.asked, ["add", "add"])
        # Whatever a model passes, it gets an answer.
        async with self.session(False) as session:
            for given, said in [({}, "needs a program"), ({"code": 5}, "needs a program"), ({"code": "text(1)", "yield_time_ms": "soon", "x": 1}, "1")]:
                self.assertIn(said, await ask(session, given))
        async with self.session(False) as session:
            running = asyncio.create_task(ask(session, SLOW))
            await self.began.wait()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await asyncio.wait_for(self.cancelled.wait(), 20)

    async def test_pydantic_ai(self) -> None:
        from pydantic_ai import Agent
        from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
        from pydantic_ai.models.function import FunctionModel

        from code_mode.adapters.pydantic_ai import code_mode_toolset

        async def ask(session: Session, code: str) -> str:
            def model(messages: Any, info: Any) -> ModelResponse:
                last = messages[-1].parts
                if any(isinstance(part, ToolReturnPart) for part in last):
                    return ModelResponse(parts=[TextPart(str([part.content for part in last]))])
                assert "add(args" in info.function_tools[0].description
                return ModelResponse(parts=[ToolCallPart("exec", code if isinstance(code, dict) else {"code": code})])

            agent = Agent(FunctionModel(model), toolsets=[code_mode_toolset(session)])
            return (await agent.run("go")).output

        await self.scenario(ask)

    async def test_langchain(self) -> None:
        from langchain_core.messages import AIMessage, ToolMessage

        from code_mode.adapters.langchain import code_mode_tools

        async def ask(session: Session, code: str) -> str:
            tools = {tool.name: tool for tool in code_mode_tools(session)}
            assert "add(args" in tools["exec"].description
            call = {"name": "exec", "args": code if isinstance(code, dict) else {"code": code}, "id": "call-1", "type": "tool_call"}
            message = AIMessage("", tool_calls=[call])
            answer = await tools["exec"].ainvoke(message.tool_calls[0])
            assert isinstance(answer, ToolMessage)
            return str(answer.content)

        await self.scenario(ask)

    async def test_openai_agents(self) -> None:
        from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
        from openai.types.responses import (
            ResponseFunctionToolCall,
            ResponseOutputMessage,
            ResponseOutputText,
        )

        from code_mode.adapters.openai_agents import code_mode_tools

        set_tracing_disabled(True)

        class Writing(Model):
            def __init__(self, code: str) -> None:
                self.code = code

            async def get_response(self, system_instructions: Any, input: Any, *_: Any, **__: Any) -> ModelResponse:
                last = input[-1] if isinstance(input, list) else {}
                item: Any
                if last.get("type") == "function_call_output":
                    text = ResponseOutputText(text=str(last["output"]), type="output_text", annotations=[])
                    item = ResponseOutputMessage(id="m", content=[text], role="assistant", status="completed", type="message")
                else:
                    arguments = json.dumps(self.code if isinstance(self.code, dict) else {"code": self.code})
                    item = ResponseFunctionToolCall(arguments=arguments, call_id="call-1", name="exec", type="function_call")
                return ModelResponse(output=[item], usage=Usage(), response_id=None)

            async def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
                raise NotImplementedError
                yield

        async def ask(session: Session, code: str) -> str:
            agent = Agent(name="a", model=Writing(code), tools=list(code_mode_tools(session)))
            return str((await Runner.run(agent, "go")).final_output)

        await self.scenario(ask)


if __name__ == "__main__":
    unittest.main()
