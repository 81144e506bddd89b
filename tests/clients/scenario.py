"""The scenario of every Python client, its results as figures in JSON on standard output."""

import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path

PROGRAM, CONFIG = sys.argv[1:3]
ARGUMENTS = ["mcp", "--linger", "0ms", "--config", CONFIG]
CODE = json.loads((Path(__file__).parent / "scenario.json").read_text().replace("SLOW", os.environ["SLOW_SECONDS"]))


async def scenario(tools, call):
    """`tools()` gives names; `call(name, arguments)` gives blocks as (type, text)."""
    began = time.monotonic()
    seen = {"tools": sorted(await tools()), "list_ms": round((time.monotonic() - began) * 1000)}

    async def program(name):
        return await call("exec", {"code": CODE[name]})

    for name in ["five", "error", "image", "number", "megabyte", "store", "load", "approval"]:
        seen[name] = await program(name)
    seen["two"] = list(await asyncio.gather(program("five"), program("load")))
    began = time.monotonic()
    blocks = await program("slow")
    seen["first_answer_ms"] = round((time.monotonic() - began) * 1000)
    waits = 0
    while (running := re.search(r"cell_id: (\S+)", blocks[0][1])) and "late" not in json.dumps(blocks) and waits < 20:
        waits += 1
        blocks = await call("wait", {"cell_id": running.group(1)})
    seen["slow"], seen["waits"] = blocks, waits
    try:
        await asyncio.wait_for(program("endless"), 2)
    except (TimeoutError, asyncio.TimeoutError):
        pass
    seen["after"] = await program("after")
    for name, blocks in seen.items():
        if isinstance(blocks, list) and blocks and isinstance(blocks[0], (list, tuple)) and len(blocks[0]) == 2:
            seen[name] = [(kind, text if len(text) < 4000 else f"{text[:200]}... {len(text)}") for kind, text in blocks]
    print("SEEN " + json.dumps(seen))


def texts(content):
    """Blocks of the protocol as (type, text)."""
    return [(block.type, getattr(block, "text", "")) for block in content]
