// Durable sessions: what was begun continues after the host was killed.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { CodeMode, RequestError } from "../dist/index.js";

const PROGRAM = `
const read = await tools.read({});
const sent = await tools.send({ to: "all" });
text([read, sent]);
`;

/** A folder for a journal, and the calls that ran. */
async function withJournal(work) {
  const folder = await mkdtemp(join(tmpdir(), "code-mode-"));
  const journal = join(folder, "sessions.journal");
  const ran = [];
  const tool = (name) => ({ needsApproval: name === "send", execute: async (_, { attempt }) => (ran.push([name, attempt]), name) });
  const options = (approve) => ({ tools: { read: tool("read"), send: tool("send") }, approve, durable: "work" });
  // A host lets its process end where nobody waits for an answer of it.
  const stays = setInterval(() => {}, 1000);
  try {
    await work({ journal, ran, options });
  } finally {
    clearInterval(stays);
    await rm(folder, { recursive: true });
  }
}

/** The cell of a host that was killed while its person was asked. */
async function killedWhileItAsks({ journal, ran, options }) {
  const host = await CodeMode.start({ journal });
  let asked;
  const isAsked = new Promise((resolve) => (asked = resolve));
  const session = await host.session(options(() => (asked(), new Promise(() => {}))));
  const { cellId } = await session.exec(PROGRAM, { yieldTimeMs: 1 });
  await isAsked;
  assert.deepEqual(ran, [["read", 1]]);
  process.kill(await host.pid(), "SIGKILL");
  await host.close();
  return cellId;
}

async function ended(session, cell) {
  let result;
  do result = await session.wait(cell);
  while (result.status === "running");
  return result;
}

test("a call that waited for a person is asked about again and runs once", () =>
  withJournal(async (place) => {
    const cell = await killedWhileItAsks(place);
    const host = await CodeMode.start({ journal: place.journal });
    const session = await host.session(place.options(() => true));
    assert.deepEqual(await session.cells(), [cell]);
    const result = await ended(session, cell);
    assert.equal(result.text, '["read","send"]');
    assert.deepEqual(place.ran, [["read", 1], ["send", 2]]);
    await session.close();
    await host.close();
  }));

test("what a person refuses after a restart does not run", () =>
  withJournal(async (place) => {
    const cell = await killedWhileItAsks(place);
    const host = await CodeMode.start({ journal: place.journal });
    const session = await host.session(place.options(() => "not today"));
    const result = await ended(session, cell);
    assert.match(result.error.message, /not today/);
    assert.deepEqual(place.ran, [["read", 1]]);
    await session.close();
    await host.close();
  }));

test("without a journal a durable session is refused", async () => {
  const host = await CodeMode.start();
  await assert.rejects(host.session({ durable: "work" }), (error) => error instanceof RequestError && /journal/.test(error.message));
  await host.close();
});
