#!/usr/bin/env python3
"""A random mix of mad servers behind one gateway, with honest sessions in front.

    tests/mix.py [SECONDS [SESSIONS]]      default 600 and 100

Every honest call must be right, the gateway's memory must stay below a bound, and nothing may be
left behind. The program is target/debug/code-mode, or the one that CODE_MODE names.
"""

import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fixtures"))
import mad_upstream  # noqa: E402

ROOT = Path(__file__).parent.parent
PROGRAM = os.environ.get("CODE_MODE", str(ROOT / "target/debug/code-mode"))
MAD = str(ROOT / "tests/fixtures/mad_upstream.py")
SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 600
SESSIONS = int(sys.argv[2]) if len(sys.argv) > 2 else 100
# Resident memory of the gateway's own process. One mad message may have 64 MiB, is read into
# values and given to a cell; several servers send such ones at once.
BOUND_MIB = 2048


def resident_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024


def descendants(pid):
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                children = [int(child) for child in task.read_text().split()]
            except OSError:
                continue
            found += children
            todo += children
    return found


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


class Client:
    """A session over streamable HTTP."""

    def __init__(self, address):
        self.address = address
        self.session = None
        self.number = 0
        self.request("initialize", {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "mix", "version": "1"}})
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def post(self, message):
        connection = http.client.HTTPConnection(self.address, timeout=150)
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.session:
            headers["Mcp-Session-Id"] = self.session
        connection.request("POST", "/mcp", json.dumps(message), headers)
        answer = connection.getresponse()
        self.session = self.session or answer.getheader("Mcp-Session-Id")
        text = answer.read().decode()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{answer.status} {text[:200]}")
        return text

    def request(self, method, params):
        self.number += 1
        text = self.post({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        for line in text.splitlines():
            if line.startswith("data:") and line[5:].strip():
                message = json.loads(line[5:])
                if message.get("id") == self.number:
                    return message
        raise RuntimeError(f"no answer: {text[:200]}")

    def exec(self, code, to_its_end=True):
        """What a program puts out, however often it must be waited for; or its first answer."""
        tool, arguments, said = "exec", {"code": code}, []
        while True:
            answer = self.request("tools/call", {"name": tool, "arguments": arguments})
            status, *more = [block.get("text", "") for block in answer["result"]["content"]]
            if not status.startswith("status: "):
                raise RuntimeError(f"no status first: {status[:200]}")
            said += more if status.startswith(("status: completed", "status: running")) else [status, *more]
            running = re.search(r"^cell_id: (\S+)", status, re.MULTILINE)
            if not running or not to_its_end:
                return said
            tool, arguments = "wait", {"cell_id": running.group(1)}


def main():
    web = subprocess.Popen([sys.executable, MAD, "http"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    port = int(web.stdout.readline())
    servers = {"good": {"command": sys.executable, "args": [MAD, "stdio", "plain"]}}
    for kind in mad_upstream.STDIO:
        servers[f"stdio_{kind}"] = {"command": sys.executable, "args": [MAD, "stdio", kind], "timeout": 5}
    for kind in mad_upstream.HTTP:
        servers[f"http_{kind}"] = {"type": "http", "url": f"http://127.0.0.1:{port}/{kind}", "timeout": 5}
        servers[f"sse_{kind}"] = {"type": "sse", "url": f"http://127.0.0.1:{port}/sse/{kind}", "timeout": 5}
    config = Path(f"/tmp/mix-{os.getpid()}.json")
    config.write_text(json.dumps({"mcpServers": servers}))
    gateway = subprocess.Popen(
        [PROGRAM, "mcp", "--config", str(config), "--http", "127.0.0.1:0"], stderr=subprocess.PIPE, text=True)
    address = None
    while address is None:
        line = gateway.stderr.readline()
        if "listens on http://" in line:
            address = line.split("http://")[1].split("/")[0]
    threading.Thread(target=lambda: [None for _ in gateway.stderr], daemon=True).start()
    until = time.monotonic() + SECONDS
    wrong, done, mad_done, peak = [], 0, 0, 0
    lock = threading.Lock()

    def honest(number):
        nonlocal done
        try:
            client = Client(address)
            rounds = 0
            while time.monotonic() < until and not wrong:
                rounds += 1
                code = f"""
                    const all = await Promise.all([1, 2, 3].map((n) => tools.good__t({{ n: n * {rounds} }})));
                    store('sum', (load('sum') ?? 0) + all.reduce((sum, one) => sum + one.n, 0));
                    text(all.map((one) => one.n).join()); text(load('sum'))"""
                said = client.exec(code)
                expected = [f"{rounds},{2 * rounds},{3 * rounds}", str(3 * rounds * (rounds + 1))]
                if said != expected:
                    wrong.append(f"session {number}, round {rounds}: {said}, not {expected}")
                with lock:
                    done += 3
                time.sleep(random.random())
        except Exception as error:  # noqa: BLE001
            wrong.append(f"session {number}: {error!r}")

    def mad():
        nonlocal mad_done
        names = [f"{name}__t" for name in servers if name != "good"]
        client = Client(address)
        while time.monotonic() < until and not wrong:
            name = random.choice(names)
            try:
                client.exec(f"try {{ await tools.{name}({{ a: 1 }}) }} catch (error) {{ text(error.message) }}", False)
            except Exception as error:  # noqa: BLE001
                wrong.append(f"{name}: {error!r}")
                return
            with lock:
                mad_done += 1

    threads = [threading.Thread(target=honest, args=(number,)) for number in range(SESSIONS)]
    threads += [threading.Thread(target=mad) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        try:
            peak = max(peak, resident_mib(gateway.pid))
        except (OSError, StopIteration):
            wrong.append("the gateway is gone")
            break
        time.sleep(0.2)
    below = descendants(gateway.pid)
    gateway.send_signal(signal.SIGTERM)
    try:
        gateway.wait(15)
    except subprocess.TimeoutExpired:
        wrong.append("the gateway did not end")
        gateway.kill()
    time.sleep(1)
    left = [pid for pid in below if is_running(pid)]
    web.stdin.close()
    config.unlink()
    if left:
        wrong.append(f"left behind: {left}")
    if peak > BOUND_MIB:
        wrong.append(f"{peak} MiB of memory, more than {BOUND_MIB}")
    print(f"{SECONDS:.0f} s, {SESSIONS} sessions: {done} honest calls right, {mad_done} mad calls answered, "
          f"at most {peak} MiB, {len(below)} processes ended")
    for what in wrong[:20]:
        print("wrong:", what)
    sys.exit(1 if wrong else 0)


main()
