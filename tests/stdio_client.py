"""A small client of the stdio wire for the scripts beside it."""
import asyncio
import json
import struct


class Host:
    """One host process with a session, "s"."""

    def __init__(self, command, answer=lambda invocation: invocation["input"]):
        self.command, self.answer = command, answer
        self.last_id, self.waiting, self.notifications = 0, {}, []

    async def __aenter__(self):
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, limit=1 << 20
        )
        self.send({"type": "connection/hello", "supportedVersions": [1], "requiredCapabilities": [],
                   "optionalCapabilities": ["delegate-capacity-4096"]})
        await self.receive()
        self.reader = asyncio.create_task(self.read())
        await self.request({"method": "session/open", "sessionId": "s"})
        return self

    async def __aexit__(self, *_):
        self.reader.cancel()
        self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), 5)
        except asyncio.TimeoutError:
            self.process.kill()
            await self.process.wait()

    def send(self, message):
        content = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
        self.process.stdin.write(struct.pack("<I", len(content)) + content)

    async def receive(self):
        (length,) = struct.unpack("<I", await self.process.stdout.readexactly(4))
        return json.loads(await self.process.stdout.readexactly(length))

    async def read(self):
        try:
            while True:
                message = await self.receive()
                kind = message["type"]
                if kind in ("operation/response", "execute/initialResponse"):
                    self.future(kind, message["id"]).set_result(message["result"])
                elif kind == "delegate/request":
                    asyncio.create_task(self.callback(message))
        except asyncio.IncompleteReadError:
            for future in self.waiting.values():
                if not future.done():
                    future.set_exception(ConnectionError("the host has ended"))

    async def callback(self, message):
        request = message["request"]
        if request["type"] == "notification/send":
            self.notifications.append(request["text"])
            result = {"status": "ok", "value": {"type": "notification/delivered"}}
        else:
            try:
                value = self.answer(request["invocation"])
                if asyncio.iscoroutine(value):
                    value = await value
                result = {"status": "ok", "value": {"type": "tool/result", "result": value}}
            except Exception as error:
                result = {"status": "error", "message": str(error)}
        self.send({"type": "delegate/response", "id": message["id"], "result": result})

    def future(self, kind, id):
        if (kind, id) not in self.waiting:
            self.waiting[kind, id] = asyncio.get_running_loop().create_future()
        return self.waiting[kind, id]

    def start(self, request):
        self.last_id += 1
        self.send({"type": "operation/request", "id": self.last_id, "request": request})
        return self.last_id

    async def request(self, request):
        id = self.start(request)
        return await self.future("operation/response", id)

    async def open(self, session):
        return await self.request({"method": "session/open", "sessionId": session})

    async def execute(self, source, tools=(), yield_ms=60_000, session="s"):
        """The first observation of a cell."""
        id = self.start({"method": "session/execute", "sessionId": session, "request": {
            "tool_call_id": "c", "enabled_tools": list(tools), "source": source,
            "yield_time_ms": yield_ms, "max_output_tokens": None}})
        started = await self.future("operation/response", id)
        if started["status"] != "ok":
            return started
        return await self.future("execute/initialResponse", id)

    async def wait(self, cell, yield_ms):
        return await self.request({"method": "session/wait", "sessionId": "s",
                                   "request": {"cell_id": cell, "yield_time_ms": yield_ms}})

    async def terminate(self, cell):
        return await self.request({"method": "session/terminate", "sessionId": "s", "cellId": cell})


def tool(name):
    return {"name": name, "tool_name": {"name": name, "namespace": None}, "kind": "function",
            "description": f"The tool {name} does something useful with its input",
            "input_schema": None, "output_schema": None}
