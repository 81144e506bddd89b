#!/usr/bin/env python3
"""A host that runs nothing: it answers what compare_hosts.py sends with what is
prepared. Its times are those of the client and the pipes, which are in every row:

    tests/compare_hosts.py "target/x86_64-unknown-linux-gnu/dist/code-mode serve" "python3 tests/empty_host.py"

The rows of memory mean nothing here.
"""
import fcntl
import json
import os
import re
import struct
import sys

PAYLOAD = 8 << 20
PIECE = 256 << 10
F_SETPIPE_SZ = 1031


def receive(size):
    content = bytearray()
    while len(content) < size:
        piece = os.read(0, size - len(content))
        if not piece:
            sys.exit()
        content += piece
    return content


def send(content):
    left = memoryview(struct.pack("<I", len(content)) + content)
    while left:
        left = left[os.write(1, left[:PIECE]) :]


def result(request, text):
    return (
        '{"type":"execute/initialResponse","id":%d,"result":{"status":"ok","value":{"Result":'
        '{"cell_id":"1","content_items":[{"type":"input_text","text":"%s"}],"error_text":null}}}}' % (request, text)
    ).encode()


def call(number, value):
    return (
        '{"type":"delegate/request","id":%d,"sessionId":"s","request":{"type":"tool/invoke",'
        '"invocation":{"cell_id":"1","tool_name":{"name":"echo","namespace":null},"input":%s}}}' % (number, value)
    ).encode()


LARGE_CALL = call(1, json.dumps({"s": "x" * PAYLOAD}))
LARGE_TEXT = "y" * PAYLOAD


class Cell:
    """The rest of the one script that may call tools at a time."""

    def __init__(self, request, source):
        self.request, self.large = request, "repeat" in source
        count = re.search(r"(?:i < |length: )(\d+)", source)
        self.calls = int(count.group(1)) if count else 1
        self.answered, self.sent = 0, 0
        at_once = self.calls if "Promise.all" in source else 1
        while self.sent < at_once:
            self.next_call()

    def next_call(self):
        self.sent += 1
        send(LARGE_CALL if self.large else call(self.sent, '{"i":1}'))

    def answer(self):
        self.answered += 1
        if self.answered == self.calls:
            send(result(self.request, LARGE_TEXT if self.large else "done"))
        elif self.sent < self.calls:
            self.next_call()


def main():
    try:
        # As much as a host can do for a client that reads a pipe.
        fcntl.fcntl(1, F_SETPIPE_SZ, 1 << 20)
    except OSError:
        pass
    cell = None
    while True:
        (length,) = struct.unpack("<I", receive(4))
        message = json.loads(receive(length))
        if message["type"] == "connection/hello":
            send(b'{"type":"connection/ready","selectedVersion":1,"capabilities":[]}')
        elif message["type"] == "delegate/response":
            cell.answer()
        elif message["type"] == "operation/request":
            request, operation = message["id"], message["request"]
            started = {"type": "operation/response", "id": request, "result": {"status": "ok", "value": {}}}
            send(json.dumps(started).encode())
            if operation["method"] == "session/execute":
                source = operation["request"]["source"]
                if "tools." in source:
                    cell = Cell(request, source)
                else:
                    send(result(request, "hi"))


if __name__ == "__main__":
    main()
