#!/usr/bin/env python3
"""The official MCP conformance suite against `code-mode mcp` as a client.

    python3 tests/mcp_conformance.py PROGRAM [SCENARIO ...]   runs scenarios, all by default, and prints a table

It installs the suite, and the Node.js that the suite wants, into target/conformance. The suite starts
this file with `client` and the address of its server. That client makes the calls that the scenario names,
or calls every tool of the server, from one cell; it logs in where the server wants it, and once more where a call wants more scopes; its browser
is this file with `browse`, which follows redirects.
"""
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "target" / "conformance"
SUITE = "@modelcontextprotocol/conformance"
VERSION = "0.2.0-alpha.12"
# What the suite takes for the address of this client's metadata document.
CIMD = "https://conformance-test.local/client-metadata.json"

CELL = """
const inputs = { add_numbers: { a: 5, b: 3 }, valid_tool: { region: 'eu' } };
const names = ALL_TOOLS.map(({ name }) => name).filter((name) => name.startsWith('c__'));
const all = names.map((name) => ({ name, arguments: inputs[name.slice(3)] ?? {} }));
const wanted = WANTED?.map((call) => ({ ...call, name: `c__${call.name}` }));
for (const { name, arguments: input } of wanted ?? all) {
  try { text(await tools[name](input)); } catch (error) { text(`${name}: ${error.message}`); }
}
"""


def client(url):
    program = os.environ["CODE_MODE"]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
    known = {"clientId": context.get("client_id"), "clientSecret": context.get("client_secret")}
    oauth = {"clientMetadataUrl": CIMD, **{key: value for key, value in known.items() if value}}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        servers, cell, browser = folder / "servers.json", folder / "cell.js", folder / "browser"
        servers.write_text(json.dumps({"mcpServers": {"c": {"url": url, "oauth": oauth}}}))
        wanted = json.dumps(context.get("toolCalls"))
        cell.write_text(f"const WANTED = {wanted};" + CELL)
        browser.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{Path(__file__).resolve()}' browse \"$1\"\n")
        browser.chmod(0o700)
        own = {**os.environ, "XDG_STATE_HOME": str(folder), "BROWSER": str(browser)}

        def run(*arguments):
            ran = subprocess.run([program, *arguments], env=own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=25)
            sys.stdout.write(ran.stdout + ran.stderr)
            return ran.stdout + ran.stderr

        def cell_says():
            return run("run", "--mcp-config", str(servers), str(cell))

        said = cell_says()
        for _ in range(4):
            wanted = re.search(r"`code-mode mcp login c((?: --scope \S+)*)`", said)
            if not wanted:
                break
            did = run("mcp", "login", "--config", str(servers), "c", *wanted[1].split())
            if "logged in to" not in did:
                return 1
            said = cell_says()
    return 0


def browse(address):
    try:
        urllib.request.urlopen(address, timeout=20).read()
    except urllib.error.URLError as error:
        print(error, file=sys.stderr)


def main(program, wanted):
    HOME.mkdir(parents=True, exist_ok=True)
    (HOME / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", "--silent", f"{SUITE}@{VERSION}", "node@24"], cwd=HOME, check=True)
    node = HOME / "node_modules" / "node" / "bin" / "node"
    suite = [str(node), str(HOME / "node_modules" / SUITE / "dist" / "index.js")]
    listed = subprocess.run([*suite, "list", "--client"], capture_output=True, text=True, check=True).stdout
    scenarios = re.findall(r"^ +- (\S+) \[(.*)\]$", listed, re.M)
    own = {**os.environ, "CODE_MODE": str(Path(program).resolve())}
    command = f"{sys.executable} {Path(__file__).resolve()} client"
    print("| scenario | protocol | passed | failed |")
    print("| --- | --- | ---: | --- |")
    failed = 0
    for scenario, versions in scenarios:
        if wanted and scenario not in wanted:
            continue
        # The newest that the scenario is for.
        version = versions.split(",")[-1]
        spec = [] if version == "extension" else ["--spec-version", version]
        ran = subprocess.run(
            [*suite, "client", "--command", command, "--scenario", scenario, *spec, "--output-dir", str(HOME / "results")],
            env=own, capture_output=True, text=True, timeout=200, cwd=HOME,
        )
        said = ran.stdout + ran.stderr
        (HOME / f"{scenario.replace('/', '-')}.log").write_text(said)
        passed = re.search(r"Passed: (\d+)/(\d+)", said)
        wrong = sorted(set(re.findall(r"^ +- ([\w-]+): ", said, re.M)))
        is_failed = ran.returncode != 0
        failed += is_failed
        print(f"| `{scenario}` | {version} | {'/'.join(passed.groups()) if passed else '?'} | {', '.join(wrong) if is_failed else ''} |", flush=True)
    print(f"\n{failed} scenarios failed", file=sys.stderr)


if sys.argv[1] == "client":
    sys.exit(client(sys.argv[-1]))
elif sys.argv[1] == "browse":
    browse(sys.argv[2])
else:
    main(sys.argv[1], sys.argv[2:])
