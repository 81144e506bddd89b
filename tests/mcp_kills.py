#!/usr/bin/env python3
"""Clients of one gateway, while gateways, servers and clients are killed.

    python3 tests/mcp_kills.py PROGRAM [KILLS]

Eight clients run programs, each of which outputs what a tool of a shared server was given. At random moments this
script kills the gateway, the server or a client, and starts a client where one is missing. It fails where a request gets
no answer or two, an answer that belongs to another, an error that does not say what was lost, or where a process
is left. The last line has the seed, which is the third argument of a run that repeats it.
"""
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

CLIENTS = 8
LIMIT = 60
SERVER = Path(__file__).resolve().parent / "fixtures" / "mad_server.py"
LOST = ("may have run", "it has ended", "cancelled", "cannot be called", "no tool is called", "session has ended", "down")


class Client:
    """A client over standard streams. A request's future has its answer."""

    async def start(program, folder):
        self = Client()
        environment = {**os.environ, "XDG_RUNTIME_DIR": folder, "XDG_CACHE_HOME": folder}
        command = [program, "mcp", "--linger", "0ms", "--server", f"mad={sys.executable} {SERVER} plain"]
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=environment, limit=1 << 24)
        self.answers, self.last = {}, 0
        self.reading = asyncio.create_task(self.read())
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "kills", "version": "1"}}
        answer = await self.request("initialize", hello)
        assert answer is None or "result" in answer, answer
        self.send({"method": "notifications/initialized"})
        return self

    async def read(self):
        async for line in self.process.stdout:
            message = json.loads(line)
            if "id" in message and "method" not in message:
                future = self.answers.pop(message["id"], None)
                assert future is not None, f"a second answer: {message}"
                future.set_result(message)
        for future in self.answers.values():
            future.set_result(None)

    def send(self, message):
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def request(self, method, params):
        self.last += 1
        future = self.answers[self.last] = asyncio.get_running_loop().create_future()
        self.send({"id": self.last, "method": method, "params": params})
        # `None` is the answer of a client that was killed.
        return await asyncio.wait_for(future, LIMIT)


async def work(client, counts):
    """Programs of one client until it is killed."""
    while True:
        token = f"{random.getrandbits(64):x}"
        code = f"text((await tools.mad__echo({{ token: '{token}' }})).with.token)"
        answer = await client.request("tools/call", {"name": "exec", "arguments": {"code": code}})
        if answer is None:
            return
        result = answer.get("result", {})
        texts = [block["text"] for block in result.get("content", [])]
        if "result" in answer and not result.get("isError"):
            assert texts[1:] == [token], (token, answer)
            counts["right"] += 1
        else:
            said = json.dumps(answer)
            assert any(lost in said for lost in LOST), said
            counts["lost"] += 1


def below(folder):
    """The processes that have the folder in their environment or their command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if folder.encode() in said:
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
    return found


async def status(program, folder):
    environment = {**os.environ, "XDG_RUNTIME_DIR": folder}
    asked = await asyncio.create_subprocess_exec(
        program, "mcp", "status", "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=environment)
    said, _ = await asked.communicate()
    return [one["gateway"] for one in json.loads(said or b"[]")]


async def main(program, kills, seed):
    random.seed(seed)
    counts = {"right": 0, "lost": 0, "gateways": 0, "servers": 0, "clients": 0}
    with tempfile.TemporaryDirectory() as folder:
        clients = {}

        async def add():
            client = await Client.start(program, folder)
            clients[client] = asyncio.create_task(work(client, counts))

        for _ in range(CLIENTS):
            await add()
        for _ in range(kills):
            await asyncio.sleep(random.uniform(0, 0.4))
            what = random.choice(["gateways", "servers", "clients"])
            victims = [client.process.pid for client in clients]
            if what != "clients":
                gateways = await status(program, folder)
                victims = [one["process"] for one in gateways]
                if what == "servers":
                    victims = [server["process"] for one in gateways for server in one["servers"] if server["process"]]
            if not victims:
                continue
            try:
                os.kill(random.choice(victims), signal.SIGKILL)
            except ProcessLookupError:
                continue
            counts[what] += 1
            for client, working in list(clients.items()):
                if client.process.returncode is not None or working.done():
                    await working
                    await client.reading
                    del clients[client]
            while len(clients) < CLIENTS:
                await add()
        for client, working in clients.items():
            # The last victim may be one of them.
            with contextlib.suppress(ProcessLookupError):
                client.process.kill()
            await working
            await client.reading
            await client.process.wait()
        for _ in range(LIMIT * 10):
            left = below(folder)
            if not left:
                break
            await asyncio.sleep(0.1)
        assert not left, left
    print(f"killed: {counts['gateways']} gateways, {counts['servers']} servers, {counts['clients']} clients; "
          f"{counts['right']} programs answered rightly, {counts['lost']} lost and said so, nothing left (seed {seed})")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(
        os.path.abspath(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 30,
        int(sys.argv[3]) if len(sys.argv) > 3 else random.SystemRandom().getrandbits(32)))
