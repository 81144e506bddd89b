// What the SDK promises, against the program that CODE_MODE_BIN names: `node --test test/session.test.mjs`.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { z } from "zod";

import { CodeMode, HostLostError, RequestError, StartError, ToolError, image, tool } from "../dist/index.js";

let host;
before(async () => {
  host = await CodeMode.start();
});
after(() => host.close());

async function inSession(options, work) {
  const session = await host.session(options);
  try {
    return await work(session);
  } finally {
    await session.close();
  }
}

/** Runs a program of a user's in a process of its own: its status, and what it printed. */
async function inProcess(source) {
  const folder = await mkdtemp(join(tmpdir(), "code-mode-"));
  const file = join(folder, "user.mjs");
  const sdk = new URL("../dist/index.js", import.meta.url);
  await writeFile(file, `import { CodeMode } from ${JSON.stringify(sdk)};\n${source}`);
  const runtime = process.versions.deno ? ["run", "--allow-all", file] : [file];
  const child = spawn(process.execPath, runtime, { stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  child.stdout.on("data", (text) => (said += text));
  const [status] = await once(child, "close");
  await rm(folder, { recursive: true });
  return [status, said];
}

const add = tool({
  description: "Sum",
  inputSchema: z.object({ a: z.number(), b: z.number().default(40) }),
  execute: async ({ a, b }) => a + b,
});

test("a program calls functions of ours and its output comes back", () =>
  inSession({ tools: { add } }, async (session) => {
    assert.match(session.instructions, /\/\*\* Sum \*\/\nadd\(args: \{ a: number;/);
    const result = await session.run("console.log('note'); text(await tools.add({ a: 2 }))");
    assert.equal(result.status, "completed");
    assert.equal(result.text, "42");
    assert.deepEqual(result.content[0], { type: "text", text: "[log] note", note: "log" });
    assert.equal(result.stats.calls, 1);
    assert.ok(result.stats.processorMs > 0);
  }));

test("an input that does not fit never reaches the function", () =>
  inSession({ tools: { add } }, async (session) => {
    const { error, status } = await session.run("\nawait tools.add({ a: 'x' })");
    assert.equal(status, "failed");
    assert.equal(error.kind, "script_error");
    assert.equal(error.position.line, 2);
    assert.match(error.message, /tools\.add does not fit/);
  }));

test("an error of a tool reaches the program with its message, code and data", () =>
  inSession(
    { tools: { fails: { execute: () => { throw new ToolError("no file", { code: 7, data: { path: "/x" } }); } } } },
    async (session) => {
      const { text } = await session.run("try { await tools.fails({}) } catch (e) { text([e.message, e.code, e.data]) }");
      assert.equal(text, '["no file",7,{"path":"/x"}]');
    },
  ));

test("a program that is still running is waited for, and one that is given up is terminated", () =>
  inSession({}, async (session) => {
    let result = await session.exec("text(1); await new Promise((done) => setTimeout(done, 200)); text(2)", { yieldTimeMs: 1 });
    assert.equal(result.status, "running");
    while (result.status === "running") result = await session.wait(result.cellId);
    assert.equal(result.text, "2");
    const controller = new AbortController();
    const endless = session.exec("for (;;);", { signal: controller.signal });
    controller.abort();
    assert.equal((await endless).status, "terminated");
  }));

test("cancelling a program aborts the calls that it waits for", () =>
  inSession(
    {
      tools: {
        slow: {
          execute: (_, { signal }) => new Promise((_, fail) => signal.addEventListener("abort", () => { aborted = true; fail(signal.reason); })),
        },
      },
    },
    async (session) => {
      const running = await session.exec("await tools.slow({})", { yieldTimeMs: 1 });
      assert.equal((await session.terminate(running.cellId)).status, "terminated");
      assert.equal(aborted, true);
    },
  ));
let aborted = false;

test("calls that wait together are approved together, and the clocks stand still", () => {
  const asked = [];
  const approve = async (calls) => {
    asked.push(calls.map((call) => call.input.a));
    await new Promise((done) => setTimeout(done, 300));
    return calls.map((call) => (call.input.a === 2 ? { allow: false, reason: "not two" } : true));
  };
  return inSession({ tools: { add }, approve, limits: { maxWallTimeMs: 250 } }, async (session) => {
    const { text } = await session.run(
      "const all = await Promise.allSettled([1, 2].map((a) => tools.add({ a }))); text(all.map((one) => one.value ?? one.reason.message))",
    );
    assert.deepEqual(asked, [[1, 2]]);
    assert.equal(text, '[41,"not two"]');
  });
});

test("who decides about a call sees the input that the tool gets, and which tool it is", async () => {
  const asked = [];
  const inputSchema = z.object({ to: z.string(), amount: z.number().default(1000) });
  const pay = tool({ name: "pay", namespace: "bank", inputSchema, needsApproval: ({ amount }) => amount > 100, execute: ({ amount }) => amount });
  const game = { name: "pay", namespace: "game", needsApproval: ({ n }) => n === undefined, execute: () => 0 };
  const approve = (calls) => {
    asked.push(...calls.map(({ namespace, name, input }) => [namespace, name, input]));
    return "not today";
  };
  await inSession({ tools: { pay, game }, approve }, async (session) => {
    const { text } = await session.run(`
      for (const call of [() => tools.bank__pay({ to: 'eve' }), () => tools.bank__pay({ to: 'eve', amount: 5 }), () => tools.game__pay()])
        text(await call().catch((e) => e.message));`);
    assert.equal(text, "not today\n5\nnot today");
  });
  assert.deepEqual(asked, [["bank", "pay", { to: "eve", amount: 1000 }], ["game", "pay", {}]]);
  const twice = host.session({ tools: { a: { name: "t", execute: add.execute }, b: { name: "t", execute: add.execute } } });
  await assert.rejects(twice, /two tools have the name t/);
});

test("a signal terminates its program also after exec has returned", () =>
  inSession({}, async (session) => {
    const controller = new AbortController();
    const begun = await session.exec("await new Promise((done) => setTimeout(done, 60_000))", { yieldTimeMs: 50, signal: controller.signal });
    assert.equal(begun.status, "running");
    const waiting = session.wait(begun.cellId);
    controller.abort();
    assert.equal((await waiting).status, "terminated");
  }));

test("the budget of a run is for all of its output", () =>
  inSession({}, async (session) => {
    const code = "text('a'); yield_control(); await new Promise((done) => setTimeout(done, 50)); text('x'.repeat(4000))";
    const { text } = await session.run(code, { maxOutputTokens: 10 });
    assert.ok(text.length < 200, text);
  }));

/** A host that opens sessions, describes none, and writes each request's method into a file. */
const HOST = `#!/usr/bin/env node
const fs = require("node:fs");
let input = Buffer.alloc(0);
const send = (message) => {
  const text = Buffer.from(JSON.stringify(message));
  const size = Buffer.alloc(4);
  size.writeUInt32LE(text.length);
  process.stdout.write(Buffer.concat([size, text]));
};
process.stdin.on("data", (chunk) => {
  for (input = Buffer.concat([input, chunk]); input.length >= 4 && input.length >= 4 + input.readUInt32LE(); ) {
    const { type, id, request } = JSON.parse(input.subarray(4, 4 + input.readUInt32LE()));
    input = input.subarray(4 + input.readUInt32LE());
    if (type === "connection/hello") send({ type: "connection/ready", selectedVersion: 1, capabilities: [] });
    else {
      fs.appendFileSync(__filename + ".log", request.method + " ");
      const ok = request.method !== "session/describe";
      send({ type: "operation/response", id, result: ok ? { status: "ok", value: {} } : { status: "error", message: "no" } });
    }
  }
});
`;

test("a session that cannot be opened is closed, and says why", async () => {
  const folder = await mkdtemp(join(tmpdir(), "code-mode-"));
  const program = join(folder, "program.cjs");
  await writeFile(program, HOST, { mode: 0o755 });
  const own = await CodeMode.start({ program });
  await assert.rejects(own.session(), RequestError);
  await own.close();
  assert.equal(await readFile(program + ".log", "utf8"), "session/open session/describe session/shutdown ");
  await rm(folder, { recursive: true });
  const dates = { when: { inputSchema: z.object({ at: z.date() }), execute: add.execute } };
  await assert.rejects(host.session({ tools: dates }), /the schema of the tool when: /);
});

test("limits end a program with their name and the line", () =>
  inSession({ limits: { maxCpuTimeMs: 100 } }, async (session) => {
    const { error } = await session.run("let n = 0;\nfor (;;) n++;");
    assert.equal(error.kind, "limit");
    assert.deepEqual(error.limit, { name: "CPU time", value: 100, unit: "ms" });
    assert.equal(error.position.line, 2);
  }));

test("stored values go in and come out, constants are globals, and images are content", () =>
  inSession({ stored: { a: 1 }, tools: { shot: { execute: () => image(new Uint8Array([1, 2]), "image/png") } } }, async (session) => {
    const { content, error } = await session.run("store('b', load('a') + GIVEN); image(await tools.shot({}))", { constants: { GIVEN: 2 } });
    assert.equal(error, undefined);
    assert.deepEqual(await session.stored(), { a: 1, b: 3 });
    assert.deepEqual(content[0], { type: "image", url: "data:image/png;base64,AQI=" });
  }));

test("events tell of cells, calls and notifications, and an observer that throws costs nothing", async () => {
  const types = [];
  const ids = new Set();
  const onEvent = (event) => {
    types.push(event.type);
    if (event.callId) ids.add(event.callId);
    if (event.toolCallId) ids.add(event.toolCallId);
    throw new Error("mine");
  };
  const seen = tool({ execute: (_, { callId, toolCallId }) => [callId, toolCallId] });
  const { text } = await inSession({ tools: { seen }, onEvent }, (session) => session.run("text(await tools.seen({})); notify('x')"));
  assert.deepEqual(ids, new Set(JSON.parse(text)));
  for (const type of ["cell/started", "call/started", "call/finished", "notification", "cell/ended", "cell/closed"]) {
    assert.ok(types.includes(type), `${type} of ${types}`);
  }
});

test("results that are no JSON fail their call alone, and a closed session says so", async () => {
  const cycle = {};
  cycle.cycle = cycle;
  const session = await host.session({ tools: { cycle: { execute: () => cycle }, big: { execute: () => 1n } } });
  const { text } = await session.run("for (const name of ['cycle', 'big']) await tools[name]({}).catch((e) => text(typeof e.message))");
  assert.equal(text, "string\nstring");
  await session.close();
  await session.close();
  await assert.rejects(session.exec("1"), RequestError);
});

test("a host that dies fails what is pending, and the next session has a new one", async () => {
  const own = await CodeMode.start();
  const session = await own.session({ tools: { never: { execute: () => new Promise(() => {}) } } });
  const pending = [session.exec("await tools.never({})"), session.exec("for (;;);")];
  const failed = pending.map((one) => assert.rejects(one, HostLostError));
  await new Promise((done) => setTimeout(done, 200));
  process.kill(await own.pid(), "SIGKILL");
  await Promise.all(failed);
  await assert.rejects(session.exec("1"), HostLostError);
  const next = await own.session();
  assert.equal((await next.run("text('again')")).text, "again");
  await own.close();
  await assert.rejects(own.session(), HostLostError);
});

test("a program that is not there, or no host, is an error that says so", async () => {
  await assert.rejects(CodeMode.start({ program: "/no/such/program" }), StartError);
  await assert.rejects(CodeMode.start({ program: "/bin/true" }), StartError);
  await assert.rejects(CodeMode.start({ args: ["--no-such-option"] }), /no-such-option/);
});

test("a tool runs only while somebody waits for it, and where it is approved", async () => {
  const ran = [];
  const controller = new AbortController();
  const tools = {
    late: { execute: () => void ran.push("late"), needsApproval: true },
    odd: { execute: () => void ran.push("odd"), needsApproval: () => "yes" },
  };
  const approve = async (calls) => {
    controller.abort();
    await new Promise((done) => setTimeout(done, 100));
    return calls.map(() => true);
  };
  await inSession({ tools: { late: tools.late }, approve }, (session) => session.run("await tools.late({})", { signal: controller.signal }));
  await inSession({ tools: { odd: tools.odd } }, async (session) => {
    assert.match((await session.run("await tools.odd({})")).error.message, /needs an approval/);
  });
  await new Promise((done) => setTimeout(done, 200));
  assert.deepEqual(ran, []);
});

test("numbers that no number type holds are refused", () =>
  inSession({ tools: { n: tool({ inputSchema: { type: "object", properties: { a: { type: "integer", maximum: 1 } } }, execute: () => "reached" }) } }, async (session) => {
    for (const number of ["1e999", "-1e999", "9".repeat(400)]) {
      const { text } = await session.run(`text(await tools.n({ a: "x", b: JSON.rawJSON("${number}") }).catch(() => "refused"))`);
      assert.equal(text, "refused");
    }
  }));

test("schemas of the AI SDK check inputs, also where a function makes them", async () => {
  const { jsonSchema } = await import("ai");
  const validate = (value) => (value.n === 1 ? { success: true, value: { n: "one" } } : { success: false, error: new Error("not one") });
  const inputSchema = jsonSchema({ type: "object" }, { validate });
  const tools = { own: { inputSchema, execute: ({ n }) => n }, lazy: { inputSchema: () => inputSchema, execute: ({ n }) => n } };
  await inSession({ tools }, async (session) => {
    const { text } = await session.run("for (const t of [tools.own, tools.lazy]) for (const n of [1, 2]) text(await t({ n }).catch((e) => e.message))");
    assert.equal(text, "one\nthe input does not fit: not one\none\nthe input does not fit: not one");
  });
});

test("one signal may stand for many programs", async () => {
  const warnings = [];
  const warned = (warning) => warnings.push(warning.message);
  process.on("warning", warned);
  const controller = new AbortController();
  await inSession({}, async (session) => {
    const code = "await new Promise((done) => setTimeout(done, 60_000))";
    const running = Array.from({ length: 30 }, () => session.exec(code, { signal: controller.signal, yieldTimeMs: 60_000 }));
    await session.exec("1");
    controller.abort();
    for (const one of await Promise.all(running)) assert.equal(one.status, "terminated");
  });
  process.off("warning", warned);
  assert.deepEqual(warnings, []);
});

test("a host that closes its output, or sends what is no message, is lost", async () => {
  const folder = await mkdtemp(join(tmpdir(), "code-mode-"));
  const ends = {
    "closes": "fs.closeSync(1);",
    "calls nothing": 'send({ type: "delegate/request", id: 1, sessionId: "s1" });',
    "lists": "send([1]);",
  };
  for (const [name, ending] of Object.entries(ends)) {
    const program = join(folder, `${name}.cjs`);
    const source = HOST.replace('fs.appendFileSync(__filename + ".log", request.method + " ");', `if (request.method === "session/execute") { ${ending} return setInterval(() => {}, 1000); }`)
      .replace('request.method !== "session/describe"', "true")
      .replace("value: {}", 'value: { text: "t" }');
    await writeFile(program, source, { mode: 0o755 });
    const own = await CodeMode.start({ program });
    const session = await own.session();
    await assert.rejects(session.exec("1"), HostLostError, name);
    await own.close();
  }
  await rm(folder, { recursive: true });
});

test("only a ToolError says more than its message", () =>
  inSession({ tools: { fails: { execute: () => { throw Object.assign(new Error("no"), { code: 403, failure: "blocked" }); } } } }, async (session) => {
    assert.equal((await session.run("await tools.fails({}).catch((e) => text([e.message, e.code ?? null]))")).text, '["no",null]');
  }));

test("whatever a tool or an approver throws costs its call alone", async () => {
  const thrown = [
    null, Object.create(null), { toString() { throw new Error("x"); } },
    Object.defineProperty(new Error("x"), "message", { get() { throw new Error("y"); } }),
    Object.assign(new Error("x"), { message: 5 }), new Error("caf\udce9"), new ToolError("m", { code: 1.5, data: 1n }),
  ];
  const given = [{ toJSON() { return undefined; } }, () => 1, Symbol("s"), "\udce9", { toJSON() { throw null; } }];
  const tools = {};
  thrown.forEach((error, at) => (tools[`throws${at}`] = { execute: () => { throw error; } }));
  given.forEach((value, at) => (tools[`gives${at}`] = { execute: () => value }));
  await inSession({ tools }, async (session) => {
    const names = JSON.stringify(Object.keys(tools));
    const { text } = await session.run(`for (const name of ${names}) await tools[name]({}).then(() => text(1), (e) => text(typeof e.message))`);
    assert.equal(text.split("\n").length, thrown.length + given.length);
  });
  for (const approve of [() => null, () => 5, () => [], () => { throw Object.create(null); }, () => new Proxy({}, { get() { throw 1; } })]) {
    await inSession({ tools: { add }, approve }, async (session) => {
      const { text } = await session.run("await tools.add({ a: 1 }).catch((e) => text(e.message))");
      assert.match(text, /not approved|approval failed/);
    });
  }
});

test("wrong arguments fail their request alone", () =>
  inSession({}, async (session) => {
    for (const wrong of [
      () => session.exec("1", { yieldTimeMs: 1.5 }), () => session.exec("1", { yieldTimeMs: -1 }),
      () => session.exec(undefined), () => session.exec(5), () => session.wait(""), () => session.wait(undefined), () => session.terminate(""),
      () => session.pause(""), () => host.session({ limits: { maxHeapByte: 1 } }), () => host.session({ limits: { maxHeapBytes: -1 } }),
      () => host.session({ tools: { "a b": add, "a-b": add } }), () => host.session({ stored: null }),
    ]) {
      await assert.rejects(async () => wrong(), (error) => error instanceof RequestError || error instanceof TypeError, String(wrong));
    }
    assert.equal((await session.run("text(1)")).text, "1");
  }));

test("what does not greet is no host and is ended", async () => {
  const folder = await mkdtemp(join(tmpdir(), "code-mode-"));
  for (const script of ["printf 'hello world'; exec sleep 60", "printf '\\4\\0\\0\\0null'; exec sleep 60"]) {
    const program = join(folder, "program");
    await writeFile(program, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
    await assert.rejects(CodeMode.start({ program }), StartError);
  }
  await rm(folder, { recursive: true });
});

test("neither a tool that never ends nor calls that were given up keep a program running", async () => {
  const source = `
    const host = await CodeMode.start();
    const session = await host.session({ tools: { never: { execute: () => new Promise(() => {}) } } });
    const { cellId } = await session.exec("await tools.never({})", { yieldTimeMs: 100 });
    await session.terminate(cellId);
    const asking = await host.session({ tools: { t: { execute: () => 1 } }, approve: () => true, onEvent: async () => { throw 1; } });
    for (let i = 0; i < 20; i++) await asking.exec("tools.t({}); exit()");
    console.log("done");`;
  const [status, said] = await inProcess(source);
  assert.deepEqual([status, said], [0, "done\n"]);
});

test("a program that forgets to close ends, and leaves no process behind", async () => {
  const source = `
    const host = await CodeMode.start();
    const session = await host.session();
    await session.run("text(1)");
    console.log(await host.pid());`;
  const [status, said] = await inProcess(source);
  assert.equal(status, 0);
  const gone = async () => {
    for (;;) {
      try {
        process.kill(Number(said), 0);
      } catch {
        return;
      }
      await new Promise((done) => setTimeout(done, 10));
    }
  };
  await gone();
});
