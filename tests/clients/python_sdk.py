"""The Python SDK, 1.x and 2.x."""

import asyncio

from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from scenario import ARGUMENTS, PROGRAM, scenario, texts

SERVER = StdioServerParameters(command=PROGRAM, args=ARGUMENTS)


async def main():
    # A client that lists and goes at once.
    async with stdio_client(SERVER) as streams, ClientSession(*streams) as session:
        await session.initialize()
        await session.list_tools()
    async with stdio_client(SERVER) as streams, ClientSession(*streams) as session:
        await session.initialize()

        async def tools():
            return [tool.name for tool in (await session.list_tools()).tools]

        async def call(name, arguments):
            return texts((await session.call_tool(name, arguments)).content)

        await scenario(tools, call)


asyncio.run(main())
