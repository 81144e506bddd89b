"""Runs test262 in cells: test/language and test/built-ins of a checkout.

    python3 tests/test262.py CHECKOUT [PROGRAM]

Each test is a cell of its own, through `PROGRAM serve` (target/release/code-mode), and runs
as a script: by an indirect eval, in both modes where the test asks for both. What is expected
to fail, and why, stands in tests/fixtures/test262_expected.txt. Exit status 1: a test failed
that is not in that list, or one in it passed and should leave it.
"""
import json, os, queue, re, struct, subprocess, sys, threading

HERE = os.path.dirname(os.path.abspath(__file__))
EXPECTED = os.path.join(HERE, "fixtures", "test262_expected.txt")
# What only a shell of an engine offers.
SHELL_ONLY = re.compile(r"\$262\.(createRealm|agent|gc|IsHTMLDDA|AbstractModuleSource)|\bIsHTMLDDA\b")
PREPARE = """
const say = text;
globalThis.$262 = {
  global: globalThis,
  evalScript: (source) => (0, eval)(source),
  detachArrayBuffer: (buffer) => { if (!buffer.detached) buffer.transfer(); },
};
let told; const asked = new Promise((resolve) => { told = resolve; });
globalThis.$DONE = (error) => told(error ? 'failed: ' + (error.stack ?? error) : 'passed');
globalThis.print = () => {};
"""


class Host:
    """One session of one program; a test at a time."""

    def __init__(self, program):
        self.process = subprocess.Popen(
            [program, "serve", "--listen", "stdio", "--max-cpu-time-ms", "30000"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.send({"type": "connection/hello", "supportedVersions": [1],
                   "requiredCapabilities": [], "optionalCapabilities": []})
        assert self.receive()["type"] == "connection/ready"
        self.number = 1
        self.request({"method": "session/open", "sessionId": "s"})
        self.receive()

    def send(self, message):
        body = json.dumps(message).encode()
        self.process.stdin.write(struct.pack("<I", len(body)) + body)
        self.process.stdin.flush()

    def receive(self):
        (length,) = struct.unpack("<I", self.process.stdout.read(4))
        return json.loads(self.process.stdout.read(length))

    def request(self, request):
        self.number += 1
        self.send({"type": "operation/request", "id": self.number, "request": request})

    def run(self, source):
        """The cell's texts and its error."""
        self.request({"method": "session/execute", "sessionId": "s", "request": {
            "tool_call_id": "t", "enabled_tools": [], "source": source,
            "yield_time_ms": 60000, "max_output_tokens": None}})
        while True:
            message = self.receive()
            if message["type"] != "execute/initialResponse":
                continue
            result = message["result"]
            if result["status"] != "ok":
                return "", result["message"]
            (kind, value), = result["value"].items()
            if kind != "Result":
                self.request({"method": "session/terminate", "sessionId": "s", "cellId": value["cell_id"]})
                return "", "did not end"
            said = "".join(item.get("text", "") for item in value["content_items"])
            return said, value["error_text"]


def front_matter(source):
    found = re.search(r"/\*---(.*?)---\*/", source, re.S)
    text = re.sub("\r\n?", "\n", found.group(1)) if found else ""

    def names(key):
        inline = re.search(rf"^\s*{key}:\s*\[(.*?)\]", text, re.M | re.S)
        if inline:
            return [name.strip() for name in inline.group(1).split(",") if name.strip()]
        lines = re.search(rf"^\s*{key}:[ \t]*\n((?:\s+-\s.*\n?)+)", text, re.M)
        return [line.strip()[1:].strip() for line in lines.group(1).splitlines()] if lines else []

    negative = re.search(r"^\s*negative:[^\S\n]*\n(?:\s+phase:\s*(\w+)\s*\n)?(?:\s+type:\s*(\w+))", text, re.M)
    return names("flags"), names("includes"), names("features"), negative and negative.group(2)


def programs(source, flags, includes, harness):
    """The scripts to be run of one test, by mode."""
    if "raw" in flags:
        return {"raw": source}
    files = ["assert.js", "sta.js", *includes]
    before = "\n".join(harness[name] for name in files)
    modes = {"sloppy": before + "\n" + source, "strict": '"use strict";\n' + before + "\n" + source}
    if "onlyStrict" in flags:
        del modes["sloppy"]
    if "noStrict" in flags:
        del modes["strict"]
    return modes


def verdict(host, script, negative, is_async):
    """None where it passes, else what was wrong."""
    run = f"(0, eval)({json.dumps(script)});"
    if negative:
        cell = PREPARE + f"let name = 'nothing'; try {{ {run} }} catch (e) {{ name = e?.constructor?.name ?? typeof e }} say(name);"
    elif is_async:
        cell = PREPARE + run + " say(await asked);"
    else:
        cell = PREPARE + run + " say('passed');"
    said, error = host.run(cell)
    if error is not None:
        return error.splitlines()[0][:200]
    wanted = negative or "passed"
    return None if said == wanted else f"said {said[:200]!r} instead of {wanted!r}"


def expected():
    """Features and paths whose tests may fail, and whether one of them did."""
    with open(EXPECTED) as file:
        lines = [line.split("#")[0].strip() for line in file]
    return {line: False for line in lines if line}


def main():
    checkout = sys.argv[1]
    program = sys.argv[2] if len(sys.argv) > 2 else "target/release/code-mode"
    harness = {}
    for folder, _, names in os.walk(os.path.join(checkout, "harness")):
        for name in names:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                path = os.path.relpath(os.path.join(folder, name), os.path.join(checkout, "harness"))
                harness[path] = file.read()
    work = queue.SimpleQueue()
    for part in ("language", "built-ins"):
        for folder, _, names in os.walk(os.path.join(checkout, "test", part)):
            for name in names:
                if name.endswith(".js") and "_FIXTURE" not in name:
                    work.put(os.path.join(folder, name))
    lock, counts, failures = threading.Lock(), {"passed": 0, "failed": 0, "modules": 0, "shell": 0}, {}

    def drain():
        host = Host(program)
        while True:
            try:
                path = work.get_nowait()
            except queue.Empty:
                return
            with open(path, encoding="utf-8", newline="") as file:
                source = file.read()
            flags, includes, features, negative = front_matter(source)
            name = os.path.relpath(path, os.path.join(checkout, "test"))
            needs_shell = SHELL_ONLY.search(source) or any(SHELL_ONLY.search(harness.get(i, "")) for i in includes)
            if "module" in flags or needs_shell or "CanBlockIsFalse" in flags:
                with lock:
                    counts["modules" if "module" in flags else "shell"] += 1
                continue
            wrong = {}
            for mode, script in programs(source, flags, includes, harness).items():
                try:
                    said = verdict(host, script, negative, "async" in flags)
                except (BrokenPipeError, struct.error):
                    said, host = "the program went", Host(program)
                if said:
                    wrong[mode] = said
            with lock:
                counts["failed" if wrong else "passed"] += 1
                if wrong:
                    failures[name] = (wrong, [f"feature {name}" for name in features])

    threads = [threading.Thread(target=drain) for _ in range(os.cpu_count() or 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    listed, unknown = expected(), []
    for name, (_, features) in sorted(failures.items()):
        reasons = [line for line in (name, *features) if line in listed]
        for reason in reasons:
            listed[reason] = True
        if not reasons:
            unknown.append(name)
    for name in unknown:
        print(f"FAIL {name}: {failures[name][0]}")
    gone = [line for line, seen in listed.items() if not seen]
    for line in gone:
        print(f"PASSES NOW {line}: take it off the list")
    print(json.dumps(counts), f"{len(unknown)} failures not in the list")
    sys.exit(bool(unknown or gone))


main()
