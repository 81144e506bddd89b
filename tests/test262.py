"""Runs test262 in cells: test/language and test/built-ins of a checkout.

    python3 tests/test262.py CHECKOUT [PROGRAM]

Each test is a cell of its own, through `PROGRAM serve` (target/release/code-mode), and runs
as a script: by an indirect eval, in both modes where the test asks for both. What is expected
to fail, and why, stands in tests/fixtures/test262_expected.txt. Exit status 1: a test failed
that is not in that list, or one in it passed and should leave it.
"""
import asyncio
import json
import os
import re
import sys

from stdio_client import Host

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


async def run_cell(host, source):
    """The cell's texts and its error."""
    result = await host.execute(source)
    if result["status"] != "ok":
        return "", result["message"]
    (kind, value), = result["value"].items()
    if kind != "Result":
        return "", "it did not end"
    return "".join(item.get("text", "") for item in value["content_items"]), value["error_text"]


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


async def verdict(host, script, negative, is_async):
    """None where it passes, else the reason."""
    run = f"(0, eval)({json.dumps(script)});"
    if negative:
        cell = PREPARE + f"let name = 'nothing'; try {{ {run} }} catch (e) {{ name = e?.constructor?.name ?? typeof e }} say(name);"
    elif is_async:
        cell = PREPARE + run + " say(await asked);"
    else:
        cell = PREPARE + run + " say('passed');"
    said, error = await run_cell(host, cell)
    if error is not None:
        return error.splitlines()[0][:200]
    wanted = negative or "passed"
    return None if said == wanted else f"said {said[:200]!r} instead of {wanted!r}"


def expected():
    """Features and paths whose tests may fail, and whether one of them did."""
    with open(EXPECTED) as file:
        lines = [line.split("#")[0].strip() for line in file]
    return {line: False for line in lines if line}


async def main():
    checkout = sys.argv[1]
    program = sys.argv[2] if len(sys.argv) > 2 else "target/release/code-mode"
    harness = {}
    for folder, _, names in os.walk(os.path.join(checkout, "harness")):
        for name in names:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                path = os.path.relpath(os.path.join(folder, name), os.path.join(checkout, "harness"))
                harness[path] = file.read()
    work = []
    for part in ("language", "built-ins"):
        for folder, _, names in os.walk(os.path.join(checkout, "test", part)):
            work += [os.path.join(folder, name) for name in names if name.endswith(".js") and "_FIXTURE" not in name]
    counts, failures = {"passed": 0, "failed": 0, "modules": 0, "shell": 0}, {}

    async def one(host, path):
        with open(path, encoding="utf-8", newline="") as file:
            source = file.read()
        flags, includes, features, negative = front_matter(source)
        texts = [source, *(harness.get(name, "") for name in includes)]
        if "module" in flags or "CanBlockIsFalse" in flags or any(map(SHELL_ONLY.search, texts)):
            counts["modules" if "module" in flags else "shell"] += 1
            return
        wrong = {}
        for mode, script in programs(source, flags, includes, harness).items():
            said = await verdict(host, script, negative, "async" in flags)
            if said:
                wrong[mode] = said
        counts["failed" if wrong else "passed"] += 1
        if wrong:
            name = os.path.relpath(path, os.path.join(checkout, "test"))
            failures[name] = (wrong, [f"feature {feature}" for feature in features])

    async def drain():
        async with Host([program, "serve", "--listen", "stdio", "--max-cpu-time", "30000"]) as host:
            while work:
                await one(host, work.pop())

    await asyncio.gather(*(drain() for _ in range(os.cpu_count() or 1)))
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


asyncio.run(main())
