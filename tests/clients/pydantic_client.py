"""pydantic-ai, which raises where a tool fails."""

import asyncio

from fastmcp.client.transports import StdioTransport
from pydantic_ai import BinaryContent
from pydantic_ai.mcp import MCPToolset

from scenario import ARGUMENTS, PROGRAM, scenario


def blocks(result):
    parts = result if isinstance(result, list) else [result]
    return [("image", "") if isinstance(part, BinaryContent) else ("text", str(part)) for part in parts]


async def main():
    async with MCPToolset(StdioTransport(PROGRAM, ARGUMENTS)) as server:
        async def tools():
            return [tool.name for tool in await server.list_tools()]

        async def call(name, arguments):
            try:
                return blocks(await server.direct_call_tool(name, arguments))
            except Exception as error:  # noqa: BLE001
                return [("text", str(error))]

        await scenario(tools, call)


asyncio.run(main())
