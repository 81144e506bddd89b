// The same work through this project's SDK, its bare wire, and what its users have instead. Prints medians
// as JSON. Called by tests/compare_sdks.py.
import { spawn } from "node:child_process";
import { performance } from "node:perf_hooks";

import { CodeMode } from "../../sdk/typescript/dist/index.js";

const [program] = process.argv.slice(2);
const ROUNDS = 150;
const add = ({ a, b }) => a + b;

const programs = {
  "one tool call": (call) => `await ${call}`,
  "100 calls in sequence": (call) => `for (let i = 0; i < 100; i++) await ${call};`,
  "100 calls at once": (call) => `await Promise.all(Array.from({ length: 100 }, () => ${call}));`,
};

/** Each way: how it runs a program that calls `add`, and how it begins and ends. */
const ways = {
  "SDK for TypeScript": async () => {
    const host = await CodeMode.start({ program });
    const open = () => host.session({ tools: { add: { execute: add } }, checkInputs: false });
    const session = await open();
    const work = async (on, code) => {
      const { error } = await on.exec(code);
      if (error) throw new Error(error.message);
    };
    return {
      call: "tools.add({ a: 1, b: 2 })",
      run: (code) => work(session, code),
      fresh: async (code) => {
        const one = await open();
        await work(one, code);
        await one.close();
      },
      end: () => host.close(),
    };
  },
  "bare wire in Node": async () => {
    const child = spawn(program, ["serve", "--listen", "stdio"], { stdio: ["pipe", "pipe", "inherit"] });
    let buffer = Buffer.alloc(0);
    let id = 0;
    const waiting = new Map();
    const send = (message) => {
      const content = Buffer.from(JSON.stringify(message));
      const head = Buffer.alloc(4);
      head.writeUInt32LE(content.length);
      child.stdin.write(Buffer.concat([head, content]));
    };
    child.stdout.on("data", (chunk) => {
      buffer = buffer.length === 0 ? chunk : Buffer.concat([buffer, chunk]);
      while (buffer.length >= 4 && buffer.length >= 4 + buffer.readUInt32LE()) {
        const size = buffer.readUInt32LE();
        const message = JSON.parse(buffer.subarray(4, 4 + size).toString());
        buffer = buffer.subarray(4 + size);
        if (message.type === "delegate/request") {
          const result = add(message.request.invocation.input);
          send({ type: "delegate/response", id: message.id, result: { status: "ok", value: { type: "tool/result", result } } });
        } else {
          waiting.get(message.type === "connection/ready" ? 0 : message.id)?.(message);
        }
      }
    });
    const until = (key, isLast = () => true) =>
      new Promise((done) => waiting.set(key, (message) => isLast(message) && (waiting.delete(key), done(message))));
    const ready = until(0);
    const requiredCapabilities = ["delegate-capacity-4096", "guided-sessions-v1"];
    send({ type: "connection/hello", supportedVersions: [1], requiredCapabilities });
    await ready;
    const request = (request, isLast) => {
      const answer = until(++id, isLast);
      send({ type: "operation/request", id, request });
      return answer;
    };
    let sessions = 0;
    const open = async () => {
      const sessionId = `s${++sessions}`;
      await request({ method: "session/open", sessionId, guided: { checkInputs: false } });
      return sessionId;
    };
    const work = async (sessionId, source) => {
      const body = { tool_call_id: "c", enabled_tools: [{ name: "add" }], source, yield_time_ms: 60_000, max_output_tokens: null, guided: {} };
      const isLast = (message) => message.type === "execute/initialResponse";
      const answer = await request({ method: "session/execute", sessionId, request: body }, isLast);
      if (answer.result.value.Result.error_text) throw new Error(answer.result.value.Result.error_text);
    };
    const session = await open();
    return {
      call: "tools.add({ a: 1, b: 2 })",
      run: (code) => work(session, code),
      fresh: async (code) => {
        const one = await open();
        await work(one, code);
        await request({ method: "session/shutdown", sessionId: one });
      },
      end: () => child.stdin.end(),
    };
  },
  "run (QuickJS)": async () => {
    const { run } = await import("run");
    const work = async (source) => {
      const result = await run({ source, hostFunctions: { tools: { add } } });
      if (result.status !== "completed") throw new Error(JSON.stringify(result));
    };
    return { call: "tools.add({ a: 1, b: 2 })", run: work, fresh: work, end: () => {} };
  },
  "isolated-vm": async () => {
    const { default: ivm } = await import("isolated-vm");
    const work = async (code) => {
      const isolate = new ivm.Isolate({ memoryLimit: 128 });
      const context = await isolate.createContext();
      await context.global.set("_add", new ivm.Reference(async (input) => add(input)));
      const prelude = "const tools = { add: (input) => _add.apply(undefined, [input], { arguments: { copy: true }, result: { promise: true, copy: true } }) };";
      await context.eval(`(async () => { ${prelude} ${code} })()`, { promise: true });
      isolate.dispose();
    };
    return { call: "tools.add({ a: 1, b: 2 })", run: work, fresh: work, end: () => {} };
  },
};

const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
const made = [];
for (const [name, make] of Object.entries(ways)) made.push([name, await make()]);
const times = Object.fromEntries(made.map(([name]) => [name, {}]));
const time = async (name, what, work) => {
  const start = performance.now();
  await work();
  (times[name][what] ??= []).push(performance.now() - start);
};
for (let round = 0; round < ROUNDS + 5; round++) {
  // The ways take turns, so that what disturbs the machine disturbs all.
  for (const [name, way] of made) {
    for (const [what, code] of Object.entries(programs)) {
      // The first rounds warm it up.
      if (round < 5) await way.run(code(way.call));
      else await time(name, what, () => way.run(code(way.call)));
    }
    if (round >= 5 && round % 8 === 0) {
      const code = programs["one tool call"](way.call);
      await time(name, "20 sessions, a call in each", () => Promise.all(Array.from({ length: 20 }, () => way.fresh(code))));
    }
  }
}
for (const [, way] of made) await way.end();
const result = {};
for (const [name, all] of Object.entries(times)) {
  result[name] = Object.fromEntries(Object.entries(all).map(([what, values]) => [what, median(values)]));
}
console.log(JSON.stringify(result));
