// What goes wrong around a host, in tools and in those that are asked: each costs its own call or
// request, and nothing waits for ever.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { CodeMode, HostLostError, StartError, ToolError } from "../dist/index.js";

/** The error that a program of its user ends with; it must not end this process. */
const startError = async (program) => {
  const error = await CodeMode.start({ program }).then(() => assert.fail("it started"), (error) => error);
  assert.ok(error instanceof StartError, String(error));
  return error.message;
};

test("a program that is not a host is named", async () => {
  const folder = mkdtempSync(join(tmpdir(), "code-mode-"));
  const program = join(folder, "other");
  for (const body of ["echo hello world", "exit 5", "cat"]) {
    writeFileSync(program, `#!/bin/sh\n${body}\n`, { mode: 0o755 });
    assert.match(await startError(program), new RegExp(program), body);
  }
  assert.match(await startError("a\0b"), /does not start/);
  rmSync(folder, { recursive: true });
});

test("descriptors that have run out are an error and not the end of the process", { skip: process.platform === "win32" }, () => {
  const source = `
    const { openSync } = await import("node:fs");
    const { CodeMode, StartError } = await import(${JSON.stringify(new URL("../dist/index.js", import.meta.url).href)});
    try { for (;;) openSync("/dev/null"); } catch {}
    const error = await CodeMode.start().catch((error) => error);
    setTimeout(() => process.stdout.write(String(error instanceof StartError)), 100);`;
  const command = `ulimit -n 64; exec "$0" --input-type=module -e "$1"`;
  const done = spawnSync("sh", ["-c", command, process.execPath, source], { encoding: "utf8" });
  // Where the runtime itself needs a descriptor, it may say so; it is never ended by an event.
  assert.doesNotMatch(done.stderr, /Unhandled 'error' event/);
});

test("half of a character costs that character alone", async () => {
  const host = await CodeMode.start();
  const fail = { execute: () => { throw new ToolError("cut \ud83d", { code: 7, data: { a: "\ud83d", b: "\\ud83d" } }); } };
  const session = await host.session({ tools: { fail } });
  const source = "try { await tools.fail() } catch (e) { text([e.message, e.code, e.data.a, e.data.b].join(' ')) } // \ud83d";
  assert.equal((await session.run(source)).text, "cut \ufffd 7 \ufffd \\ud83d");
  await host.close();
});

test("what an approval throws stays with the developer, and a forgotten answer approves nothing", async () => {
  const host = await CodeMode.start();
  const ran = [];
  const act = { execute: () => void ran.push(1) };
  const throwing = await host.session({ tools: { act }, approve: () => { throw new Error("postgres://u:PASSWORD@host"); } });
  const refused = await throwing.run("await tools.act()");
  assert.match(refused.error.message, /the approval failed/);
  assert.doesNotMatch(refused.forModel(), /PASSWORD/);
  const empty = await host.session({ tools: { act }, approve: () => ({ allow: false, reason: "" }) });
  assert.match((await empty.run("await tools.act()")).error.message, /not approved/);
  const forgetting = await host.session({ tools: { act: { ...act, needsApproval: () => {} } } });
  assert.equal((await forgetting.run("await tools.act()")).status, "failed");
  assert.deepEqual(ran, []);
  await host.close();
});

test("numbers that are none are refused", async () => {
  const host = await CodeMode.start();
  for (const maxWallTimeMs of [Number.NaN, Number.POSITIVE_INFINITY, -1, "5"]) {
    await assert.rejects(host.session({ limits: { maxWallTimeMs } }), /maxWallTimeMs/);
  }
  const session = await host.session();
  await assert.rejects(session.exec("1", { yieldTimeMs: Number.NaN }), /yieldTimeMs/);
  await host.close();
});

test("a host that stands still is lost, and whoever waits for it is told", { skip: process.platform === "win32" }, async () => {
  const host = await CodeMode.start();
  const session = await host.session();
  const pid = await host.pid();
  const signal = AbortSignal.timeout(300);
  const running = session.run("await new Promise((r) => setTimeout(r, 1e6))", { signal, yieldTimeMs: 50 });
  await new Promise((r) => setTimeout(r, 150));
  process.kill(pid, "SIGSTOP");
  await assert.rejects(running, HostLostError);
  await session.close();
  await host.close();
});
