#!/usr/bin/env python3
"""Kills durable programs at random moments until they have ended, and checks that each tool ran once, that no
output is missing, and that no call ran which a person denied.

    python3 tests/durable_kills.py target/debug/code-mode 20 [SEED]

20 scripts of `code-mode run --durable`, killed alone or with their whole process group; and a fifth as many programs of
`code-mode mcp --durable`, whose calls wait for `code-mode approvals`, which is killed as well.

The script calls tools at once and one after the other, sets timers and races, catches errors and stores values. Its tools
append a line to a file. A tool whose call had no answer at a kill fails in the script, and may be in the file or not.
"""
import collections, json, os, pathlib, random, re, select, signal, subprocess, sys, tempfile, time

SCRIPT = """
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const call = async (n) => {
  try { return await tools.once({ n: String(n) }); } catch (error) { return 'failed ' + n; }
};
for (let i = 0; i < 8; i++) {
  const raced = call(3 * i + 2);
  await Promise.all([call(3 * i), call(3 * i + 1), Promise.race([raced, sleep(5)])]);
  await raced;
  text('round ' + i + '\\n');
  store('round', i);
  await sleep(Math.random() * 30);
}
text('end\\n');
"""
TOOLS = """
[[tool]]
name = "once"
command = ["sh", "-c", 'echo "$0" >> {log}; echo "$0"', "{{n}}"]
"""

# What runs behind the gateway: a server whose tool appends a line to a file.
SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or {}
    if "id" not in message:
        continue
    result = {}
    if method == "initialize":
        result = {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": {"name": "kills", "version": "1"}}
    elif method == "tools/list":
        schema = {"type": "object", "properties": {"n": {"type": "string"}}}
        result = {"tools": [{"name": "once", "inputSchema": schema}]}
    elif method == "tools/call":
        with open(sys.argv[1], "a") as log:
            log.write(params["arguments"]["n"] + "\\n")
        result = {"content": [{"type": "text", "text": "done"}]}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
PROGRAM = """
const call = async (n) => {
  try { await tools.kills__once({ n: String(n) }); return 'ok ' + n; } catch (error) { return 'failed ' + n; }
};
for (let i = 0; i < 15; i++) text((await Promise.all([call(2 * i), call(2 * i + 1)])).join(' '));
text('end');
"""


def end(child, rng):
    """Ends a process, alone or with its group."""
    by = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
    if by == signal.SIGKILL and rng.random() < 0.5:
        os.killpg(child.pid, by)
    else:
        child.send_signal(by)
    child.wait()


def parks(rng):
    """In half of the processes a program that waits leaves its worker soon."""
    return rng.choice([[], ["--park-after", "20ms"]])


def one(program, rng):
    """Runs the script to its end through kills. Returns how many kills it took."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "script.js").write_text(SCRIPT)
        (folder / "tools.toml").write_text(TOOLS.format(log=folder / "log"))
        command = [program, "run", "--durable", "kills", "--journal", folder / "journal", "--tools", folder / "tools.toml", folder / "script.js"]
        shown, kills = [], 0
        while True:
            with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
                child = subprocess.Popen([*command, *parks(rng)], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
                try:
                    # Each life is longer than the one before, so that the last one reaches the end.
                    child.wait(rng.uniform(0.02, 0.2 + 0.05 * kills))
                except subprocess.TimeoutExpired:
                    end(child, rng)
                    kills += 1
            shown += (folder / "out").read_text().splitlines()
            if child.returncode == 0:
                break
            listed = subprocess.run([program, "journal", "ls", "--journal", folder / "journal"], capture_output=True, text=True).stdout
            if "end" in shown and "0 running, 0 ended" in listed:
                # The kill came after the end, and before the process could exit.
                break
            said = (folder / "err").read_text()
            assert child.returncode in (-signal.SIGKILL, 130, 143), f"exit status {child.returncode}: {said}"
        calls = collections.Counter((folder / "log").read_text().split())
        twice = [call for call, times in calls.items() if times > 1]
        assert not twice, f"called twice: {twice}"
        # Lines that were shown at a kill may be shown again, in order.
        expected = [f"round {i}" for i in range(8)] + ["end"]
        for line in expected:
            assert line in shown, f"missing: {line}: {shown}"
        last = -1
        for line in shown:
            at = expected.index(line)
            assert at <= last + 1, f"out of order: {shown}"
            last = max(last, at)
        return kills


class Gateway:
    """A gateway with one client, which reads and writes lines of JSON."""

    def __init__(self, command, env):
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env, start_new_session=True)
        self.last, self.rest = 0, b""

    def send(self, method, **params):
        self.last += 1
        message = {"jsonrpc": "2.0", "id": self.last, "method": method, "params": params}
        self.child.stdin.write(json.dumps(message).encode() + b"\n")
        self.child.stdin.flush()
        return self.last

    def answer(self, id, until):
        """The answer to a request; nothing where it does not come in time."""
        while True:
            line, newline, rest = self.rest.partition(b"\n")
            if newline:
                self.rest = rest
                message = json.loads(line)
                if message.get("id") == id and "method" not in message:
                    return message["result"]
                continue
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.child.stdout], [], [], left)[0]:
                return None
            more = os.read(self.child.stdout.fileno(), 1 << 16)
            if not more:
                return None
            self.rest += more

    def call(self, until, tool, **arguments):
        result = self.answer(self.send("tools/call", name=tool, arguments=arguments), until)
        return None if result is None else [block["text"] for block in result["content"]]


def asked(program, rng):
    """Runs a program of the gateway to its end through kills and questions. Returns how many kills it took."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        (folder / "server.py").write_text(SERVER)
        (folder / "policy.json").write_text(json.dumps({"ask": ["kills/once"], "terminal_may_answer": True}))
        (folder / "log").write_text("")
        env = {**os.environ, **{name: str(folder) for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME")}}
        command = [program, "mcp", "--private", "--durable", folder / "durable", "--policy", folder / "policy.json",
                   "--server", f"kills={sys.executable} {folder / 'server.py'} {folder / 'log'}"]
        approvals = [program, "approvals", "--durable", folder / "durable"]
        cell, shown, denied, kills, lives = None, [], set(), 0, 0
        while "end" not in shown:
            lives += 1
            gateway = Gateway([*command, *parks(rng)], env)
            # The first one lives until its program has a name.
            until = time.monotonic() + (30 if cell is None else rng.uniform(0.2, 0.7 + 0.1 * kills))
            gateway.answer(gateway.send("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "kills", "version": "1"}), until)
            if cell is None:
                status = gateway.call(until, "exec", code=PROGRAM, yield_time_ms=1)[0]
                cell = re.search(r"cell_id: (\S+)", status).group(1)
                # It begins when its server has started, and is kept from then on.
                while "has not begun" in status:
                    status = gateway.call(until, "wait", cell_id=cell, yield_time_ms=50)[0]
                until = time.monotonic() + rng.uniform(0.02, 0.4)
            while time.monotonic() < until and "end" not in shown:
                answering = subprocess.Popen([*approvals, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
                waiting = answering.communicate()[0]
                for question in json.loads(waiting or b"[]"):
                    n = re.search(r'n: "(\d+)"', question["question"]["text"]).group(1)
                    word = "deny" if rng.random() < 0.2 else "allow"
                    giving = subprocess.Popen([*approvals, word, str(question["number"])], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
                    if rng.random() < 0.2:
                        time.sleep(rng.uniform(0, 0.05))
                        giving.kill()
                    said = giving.communicate()[0]
                    if b"denied" in said:
                        denied.add(n)
                texts = gateway.call(until, "wait", cell_id=cell, yield_time_ms=50)
                if texts is not None:
                    assert "no cell" not in texts[0], texts
                    shown += texts[1:]
            if gateway.child.poll() is None:
                end(gateway.child, rng)
                kills += "end" not in shown
            assert lives < 200, f"it does not end: {shown}"
        calls = collections.Counter((folder / "log").read_text().split())
        twice = [call for call, times in calls.items() if times > 1]
        assert not twice, f"called twice: {twice}"
        assert not denied & calls.keys(), f"denied and called: {denied & calls.keys()}"
        words = " ".join(shown).split()
        for n in map(str, range(30)):
            outcomes = {word for word, number in zip(words, words[1:]) if number == n and word in ("ok", "failed")}
            assert len(outcomes) == 1, f"{n} ended as {outcomes}: {shown}"
            assert "ok" not in outcomes or n in calls, f"{n} is ok and was not called"
        return kills


def main():
    program, rounds = os.path.abspath(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns()
    print(f"seed {seed}", flush=True)
    rng = random.Random(seed)
    kills = sum(one(program, rng) for _ in range(rounds))
    print(f"{rounds} scripts ended after {kills} kills: each tool ran once, and no output is missing", flush=True)
    programs = max(1, rounds // 5)
    kills = sum(asked(program, rng) for _ in range(programs))
    print(f"{programs} programs of a gateway ended after {kills} kills: each tool ran once, and none that was denied")


main()
