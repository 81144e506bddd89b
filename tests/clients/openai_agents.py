"""The OpenAI Agents SDK, whose requests have five seconds."""

import asyncio

from agents.mcp import MCPServerStdio

from scenario import ARGUMENTS, PROGRAM, scenario, texts


async def main():
    async with MCPServerStdio(params={"command": PROGRAM, "args": ARGUMENTS}) as server:
        async def tools():
            return [tool.name for tool in await server.list_tools()]

        async def call(name, arguments):
            return texts((await server.call_tool(name, arguments)).content)

        await scenario(tools, call)


asyncio.run(main())
