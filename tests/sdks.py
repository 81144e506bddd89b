#!/usr/bin/env python3
"""The SDKs, as their users have them: built, typed, and run against the program.

    python3 tests/sdks.py PROGRAM [KILLS]

Builds the SDK for TypeScript and installs what its tests need, with Bun and Deno, which run its tests too;
makes an environment for the one for Python in target/sdks. Runs their tests, their adapters with the frameworks themselves, the type checkers as
users run them (`tsc --strict`, `mypy --strict`, `pyright`), and kills KILLS hosts (20) under load with
each.
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TYPESCRIPT, PYTHON = ROOT / "sdk" / "typescript", ROOT / "sdk" / "python"
HOME = ROOT / "target" / "sdks"
PACKAGES = ["langchain-core==1.7.2", "mypy==2.4.1", "openai-agents==0.24.0", "pydantic==2.14.3", "pydantic-ai-slim==2.68.0", "pyright==1.1.414"]

RUNTIMES = ["bun@1.4.5", "deno@2.9.6"]

#: A user's program, with the types that the SDK gives it.
USER_TS = """
import { z } from "zod";
import { CodeMode, tool, type CellResult } from "code-mode";
import { codeModeTools } from "code-mode/ai";

const host = await CodeMode.start();
const session = await host.session({
  tools: {
    add: tool({ inputSchema: z.object({ a: z.number(), b: z.number() }), execute: ({ a, b }, { signal }) => (signal.aborted ? 0 : a + b) }),
    any: { execute: async (input) => input },
  },
  approve: async (calls) => calls.map((call) => call.name === "add"),
  onEvent: (event) => void event.type,
});
const result: CellResult = await session.exec("1", { yieldTimeMs: 10 });
const line: number | undefined = result.error?.position?.line;
export const tools = codeModeTools(session);
export { line };
// @ts-expect-error: the option has another name
await session.exec("1", { yieldTime: 10 });
"""

USER_PYTHON = """
from code_mode import CellResult, CodeMode, CodeModeSync, Tool, ToolCall
from collections.abc import Sequence


async def add(a: int, b: int) -> int:
    return a + b


async def ask(calls: Sequence[ToolCall]) -> list[bool | str]:
    return [call.name == "add" or "no" for call in calls]


async def main() -> None:
    async with CodeMode(require_sandbox=True) as host:
        async with host.session(tools=[add, Tool(add, name="plus")], approve=ask) as session:
            result: CellResult = await session.exec("1", yield_time=0.1)
            if result.error is not None and result.error.position is not None:
                line: int = result.error.position.line
                print(line)


with CodeModeSync() as host, host.session(tools=[add]) as session:
    text: str = session.run("1").text
"""


#: What the agents in `examples` say, in both languages.
AGENT_SAYS = """\
  quote: succeeded
  quote: succeeded
  buy: succeeded
  buy: blocked
exec: completed
bought bolt
buy: more than 5.00 needs a signature
exec: running
2 quotes
(the program is still running: wait for cell 2)
wait: completed
done
"""


def run_agent(*command, cwd=ROOT, **env):
    done = subprocess.run([str(part) for part in command], cwd=cwd, check=True, text=True, stdout=subprocess.PIPE, env={**os.environ, **env})
    if done.stdout != AGENT_SAYS:
        sys.exit(f"{command[-1]} says:\n{done.stdout}")
    print(f"{command[-1]} says what it should", flush=True)


def run(*command, cwd=ROOT, **env):
    print("$", *[str(part).replace(str(ROOT) + "/", "") for part in command], flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, env={**os.environ, **env})


def typescript(program, kills):
    run("npm", "ci", "--silent", "--no-audit", "--no-fund", cwd=TYPESCRIPT)
    shutil.rmtree(TYPESCRIPT / "dist", ignore_errors=True)
    run("npx", "tsc", "-p", ".", cwd=TYPESCRIPT)
    run("node", "--test", "test/session.test.mjs", "test/durable.test.mjs", "test/hostile.test.mjs", "test/adapters.test.mjs", cwd=TYPESCRIPT, CODE_MODE_BIN=program)
    run("npm", "install", "--silent", "--no-audit", "--no-fund", "--no-save", "--prefix", HOME / "runtimes", *RUNTIMES)
    bun, deno = (HOME / "runtimes" / "node_modules" / ".bin" / name for name in ("bun", "deno"))
    run(bun, "test", "./test/session.test.mjs", cwd=TYPESCRIPT, CODE_MODE_BIN=program)
    run(deno, "test", "--allow-all", "--quiet", "test/session.test.mjs", cwd=TYPESCRIPT, CODE_MODE_BIN=program)
    run("node", "test/kills.mjs", kills, cwd=TYPESCRIPT, CODE_MODE_BIN=program)
    # As a user has it: the package by its name.
    user = TYPESCRIPT / "node_modules" / ".user"
    shutil.rmtree(user, ignore_errors=True)
    (user / "node_modules").mkdir(parents=True)
    (user / "node_modules" / "code-mode").symlink_to(TYPESCRIPT)
    (user / "user.ts").write_text(USER_TS)
    (user / "package.json").write_text('{"type": "module"}')
    options = ["--strict", "--noEmit", "--module", "nodenext", "--target", "es2022", "--skipLibCheck", "--types", "node"]
    run("npx", "tsc", *options, "user.ts", cwd=user)
    shutil.copy(ROOT / "examples" / "sdk-typescript" / "agent.mjs", user)
    run_agent("node", "agent.mjs", cwd=user, CODE_MODE_BIN=program)


def python(program, kills):
    HOME.mkdir(parents=True, exist_ok=True)
    own = HOME / "venv" / "bin" / "python"
    if not own.exists():
        run(sys.executable, "-m", "venv", HOME / "venv")
    run(own, "-m", "pip", "install", "-q", *PACKAGES)
    (HOME / "user.py").write_text(USER_PYTHON)
    env = {"CODE_MODE_BIN": program, "PYTHONPATH": str(PYTHON / "src"), "MYPYPATH": str(PYTHON / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    run(own, "-m", "mypy", "--strict", "src/code_mode", HOME / "user.py", cwd=PYTHON, **env)
    run(own, "-m", "pyright", "--pythonpath", own, "src/code_mode", HOME / "user.py", cwd=PYTHON, **env)
    run(own, "-m", "unittest", "discover", "-s", "tests", cwd=PYTHON, **env)
    run_agent(own, ROOT / "examples" / "sdk-python" / "agent.py", **env)
    run(own, "tests/kills.py", kills, cwd=PYTHON, **env)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    program = os.path.abspath(sys.argv[1])
    kills = sys.argv[2] if len(sys.argv) > 2 else "20"
    typescript(program, kills)
    python(program, kills)
