"""An honest MCP server at the standard streams, with the tools that the scenario of clients needs."""

import base64
import json
import struct
import sys
import threading
import time
import zlib


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# A picture of one white pixel.
PIXEL = base64.b64encode(
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0\xff\xff\xff")) + chunk(b"IEND", b"")).decode()
OBJECT = {"type": "object"}
NUMBERS = {**OBJECT, "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": ["a", "b"]}
TOOLS = [
    {"name": "add", "description": "Adds two numbers.", "inputSchema": NUMBERS, "annotations": {"readOnlyHint": True}},
    {"name": "fail", "description": "Fails.", "inputSchema": OBJECT, "annotations": {"readOnlyHint": True}},
    {"name": "shot", "description": "Takes a picture.", "inputSchema": OBJECT, "annotations": {"readOnlyHint": True}},
    {"name": "slow", "description": "Takes its time.", "annotations": {"readOnlyHint": True},
     "inputSchema": {**OBJECT, "properties": {"seconds": {"type": "number"}}, "required": ["seconds"]}},
    {"name": "pay", "description": "Pays.", "inputSchema": OBJECT, "annotations": {"destructiveHint": True}},
]
writing = threading.Lock()


def send(message):
    with writing:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def called(name, arguments):
    if name == "add":
        return {"content": [{"type": "text", "text": json.dumps(arguments["a"] + arguments["b"])}]}
    if name == "fail":
        return {"content": [{"type": "text", "text": "it failed deliberately"}], "isError": True}
    if name == "shot":
        return {"content": [{"type": "text", "text": "Taken."}, {"type": "image", "data": PIXEL, "mimeType": "image/png"}]}
    if name == "slow":
        time.sleep(arguments["seconds"])
    return {"content": [{"type": "text", "text": f"{name} done"}]}


def answer(message):
    method, id = message["method"], message["id"]
    if method == "initialize":
        result = {
            "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
            "serverInfo": {"name": "scenario", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": TOOLS}
    elif method == "tools/call":
        result = called(message["params"]["name"], message["params"].get("arguments") or {})
    elif method == "ping":
        result = {}
    else:
        return send({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "unknown"}})
    send({"jsonrpc": "2.0", "id": id, "result": result})


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message and "method" in message:
        threading.Thread(target=answer, args=(message,), daemon=True).start()
