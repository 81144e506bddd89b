// Kills hosts at random moments under load: `node test/kills.mjs [COUNT]`. No call may hang, no answer may
// be another call's, and no process may be left.
import { execFileSync } from "node:child_process";

import { CodeMode, HostLostError } from "../dist/index.js";

const count = Number(process.argv[2] ?? 300);
const host = await CodeMode.start();
const pids = new Set();
let answered = 0;
let lost = 0;

function inTime(promise, what) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`${what} hangs`)), 30_000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function exec(session, name) {
  try {
    const code = `const all = await Promise.all([1, 2, 3].map((n) => tools.echo({ n: ${JSON.stringify(name)} + n }))); text(all)`;
    const result = await inTime(session.exec(code), name);
    if (result.status !== "completed") throw new Error(`${name}: ${result.error?.message}`);
    const expected = JSON.stringify([1, 2, 3].map((n) => name + n));
    if (result.text !== expected) throw new Error(`${name}: ${result.text}`);
    answered++;
  } catch (error) {
    if (!(error instanceof HostLostError)) throw error;
    lost++;
  }
}

for (let kill = 0; kill < count; kill++) {
  const pid = await inTime(host.pid(), "pid");
  pids.add(pid);
  const echo = { execute: async ({ n }) => (await new Promise((done) => setTimeout(done, Math.random() * 4)), n) };
  const work = [1, 2, 3].map(async (s) => {
    try {
      const session = await inTime(host.session({ tools: { echo } }), "session");
      await Promise.all([1, 2, 3, 4].map((e) => exec(session, `k${kill}s${s}e${e}-`)));
      await inTime(session.close(), "close");
    } catch (error) {
      if (!(error instanceof HostLostError) && error.name !== "StartError") throw error;
      lost++;
    }
  });
  await new Promise((done) => setTimeout(done, Math.random() * 300));
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It was killed before, and nobody has noticed yet.
  }
  await Promise.all(work);
}
await inTime(host.close(), "close");
const left = () => [...pids].filter((pid) => {
  try {
    // Workers are children of their hosts, in the same group.
    execFileSync("pgrep", ["-g", String(pid)]);
    return true;
  } catch {
    return false;
  }
});
const until = Date.now() + 30_000;
while (left().length > 0) {
  if (Date.now() > until) throw new Error(`left behind: ${left()}`);
  await new Promise((done) => setTimeout(done, 50));
}
console.log(`${count} hosts killed: ${answered} programs answered rightly, ${lost} calls lost with a HostLostError, nothing hung, nothing left`);
