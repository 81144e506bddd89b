"""langchain-mcp-adapters, with one session for all calls."""

import asyncio

from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools

from scenario import ARGUMENTS, PROGRAM, scenario


def blocks(content):
    content = [content] if isinstance(content, (str, dict)) else content
    return [("text", one) if isinstance(one, str) else (one["type"], one.get("text", "")) for one in content]


async def main():
    client = MultiServerMCPClient({"code": {"transport": "stdio", "command": PROGRAM, "args": ARGUMENTS}})
    # Lists in a separate session, and closes that at once.
    await client.get_tools()
    async with client.session("code") as session:
        known = {tool.name: tool for tool in await load_mcp_tools(session)}

        async def tools():
            return list(known)

        async def call(name, arguments):
            try:
                return blocks(await known[name].ainvoke(arguments))
            except Exception as error:  # noqa: BLE001
                return [("text", str(error))]

        await scenario(tools, call)


asyncio.run(main())
