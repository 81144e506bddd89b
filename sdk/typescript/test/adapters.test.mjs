// Each adapter with its framework and a model that is scripted: a program calls two tools at once,
// the answer comes back; a program that fails; an approval; a cancellation.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { CodeMode, image } from "../dist/index.js";
import { codeModeTools as aiTools } from "../dist/adapters/ai.js";
import { CodeModeExecutor } from "../dist/adapters/cloudflare.js";
import { codeModeTools as agentTools } from "../dist/adapters/openai-agents.js";
import { codeModeDriver } from "../dist/adapters/tanstack.js";

const TWO = "const [a, b] = await Promise.all([tools.add({ a: 1, b: 2 }), tools.add({ a: 3, b: 4 })]); text(a * b)";
const SHOT = "image(await tools.shot({}))";
const FAILS = "await tools.nothing({})";

let host;
before(async () => {
  host = await CodeMode.start();
});
after(() => host.close());

/** A tool that waits until its call is cancelled; `called` and `cancelled` say when. */
function waiting() {
  const slow = {};
  slow.called = new Promise((called) => {
    slow.cancelled = new Promise((cancelled) => {
      slow.execute = (_, { signal }) => {
        called();
        return new Promise((_, fail) => signal.addEventListener("abort", () => (cancelled(), fail(signal.reason))));
      };
    });
  });
  return slow;
}

function session(asked, slow = waiting()) {
  const tools = {
    slow,
    add: { description: "Sum", execute: ({ a, b }) => a + b },
    shot: { execute: () => image(new Uint8Array([1, 2]), "image/png") },
  };
  const approve = asked && ((calls) => calls.map((call) => { asked.push(call.name); return call.input.a !== 3; }));
  return host.session({ tools, ...(approve && { approve }) });
}

test("the AI SDK", async () => {
  const { generateText, stepCountIs } = await import("ai");
  const test = await import("ai/test");
  const Mock = test.MockLanguageModelV4 ?? test.MockLanguageModelV3 ?? test.MockLanguageModelV2;
  /** A model that writes this program, and then says what came of it. */
  const writing = (code) => {
    let said;
    const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 }, totalTokens: 2 };
    const model = new Mock({
      doGenerate: async ({ prompt, tools }) => {
        const last = prompt.at(-1);
        if (last.role !== "tool") {
          assert.match(tools[0].description, /add\(args/);
          const call = { type: "tool-call", toolCallId: "call-1", toolName: "exec", input: JSON.stringify({ code }) };
          return { content: [call], finishReason: { unified: "tool-calls" }, usage, warnings: [] };
        }
        const { type, value } = last.content[0].output;
        said = type === "content" ? value.map((part) => part.text ?? `${part.mediaType} ${part.data.data}`).join(" ") : value;
        return { content: [{ type: "text", text: String(said) }], finishReason: { unified: "stop" }, usage, warnings: [] };
      },
    });
    return model;
  };
  const asked = [];
  for (const [code, expected, of] of [
    [TWO, /^21$/, undefined],
    [FAILS, /error: .*tools\.nothing/s, undefined],
    [TWO, /not approved/, asked],
    [SHOT, /^\(an image\) image\/png AQI=$/, undefined],
  ]) {
    const open = await session(of);
    const { text } = await generateText({ model: writing(code), tools: aiTools(open), prompt: "go", stopWhen: stepCountIs(3) });
    assert.match(text, expected);
    await open.close();
  }
  assert.deepEqual(asked, ["add", "add"]);
  const slow = waiting();
  const open = await session(undefined, slow);
  const controller = new AbortController();
  const generated = generateText({ model: writing("await tools.slow({})"), tools: aiTools(open), prompt: "go", abortSignal: controller.signal, stopWhen: stepCountIs(3) });
  await slow.called;
  controller.abort();
  await Promise.all([generated.catch(() => {}), slow.cancelled]);
  await open.close();
});

test("OpenAI Agents", async () => {
  const { Agent, run, setTracingDisabled, Usage } = await import("@openai/agents");
  setTracingDisabled(true);
  const writing = (code) => ({
    async getResponse({ input }) {
      const last = typeof input === "string" ? undefined : input.at(-1);
      const usage = new Usage({ requests: 1, inputTokens: 1, outputTokens: 1, totalTokens: 2 });
      if (last?.type !== "function_call_result") {
        const call = { type: "function_call", callId: "call-1", name: "exec", arguments: JSON.stringify({ code }), status: "completed" };
        return { usage, output: [call] };
      }
      const parts = [last.output].flat().map((part) => part.text ?? (part.image ? JSON.stringify(part.image) : part));
      const text = parts.join(" ");
      return { usage, output: [{ type: "message", role: "assistant", status: "completed", content: [{ type: "output_text", text }] }] };
    },
    async *getStreamedResponse() {},
  });
  const asked = [];
  for (const [code, expected, of] of [
    [TWO, /^21$/, undefined],
    [FAILS, /error: .*tools\.nothing/s, undefined],
    [TWO, /not approved/, asked],
    [SHOT, /^\(an image\) .*AQI=/, undefined],
  ]) {
    const open = await session(of);
    const agent = new Agent({ name: "a", model: writing(code), tools: agentTools(open) });
    assert.match((await run(agent, "go")).finalOutput, expected);
    await open.close();
  }
  assert.deepEqual(asked, ["add", "add"]);
  const slow = waiting();
  const open = await session(undefined, slow);
  const controller = new AbortController();
  const agent = new Agent({ name: "a", model: writing("await tools.slow({})"), tools: agentTools(open) });
  const ran = run(agent, "go", { signal: controller.signal });
  await slow.called;
  controller.abort();
  await Promise.all([ran.catch(() => {}), slow.cancelled]);
  await open.close();
});

test("the Executor of @cloudflare/codemode", async () => {
  const executor = new CodeModeExecutor(host);
  const add = async ({ a, b }) => a + b;
  const code = "async () => { console.log('two'); const all = await Promise.all([codemode.add({ a: 1, b: 2 }), codemode.add({ a: 3, b: 4 })]); return { sum: all }; }";
  assert.deepEqual(await executor.execute(code, { add }), { result: { sum: [3, 7] }, logs: ["two"] });
  const named = await executor.execute("async () => math.add({ a: 1, b: 2 })", [{ name: "math", fns: { add } }]);
  assert.equal(named.result, 3);
  const failed = await executor.execute("async () => { await codemode.fails(); }", { fails: async () => { throw new Error("no luck"); } });
  assert.match(failed.error, /no luck/);
  const endless = new CodeModeExecutor(host, { maxCpuTimeMs: 100 });
  assert.match((await endless.execute("async () => { for (;;); }", {})).error, /CPU time limit/);
  // The interface has no cancellation; a limit ends a program that waits, too.
  const waits = new CodeModeExecutor(host, { maxWallTimeMs: 100 });
  assert.match((await waits.execute("async () => codemode.never()", { never: () => new Promise(() => {}) })).error, /time limit/);
});

test("the IsolateDriver of @tanstack/ai-code-mode", async () => {
  const execute = async ({ a, b }) => a + b;
  const bindings = { external_add: { name: "add", description: "Sum", inputSchema: {}, execute } };
  const context = await codeModeDriver(host).createContext({ bindings, timeout: 500 });
  const code = "const all = await Promise.all([external_add({ a: 1, b: 2 }), external_add({ a: 3, b: 4 })]);\nreturn all;";
  assert.deepEqual(await context.execute(code), { success: true, value: [3, 7], logs: [] });
  const failed = await context.execute("throw new Error('bad')");
  assert.equal(failed.success, false);
  assert.match(failed.error.message, /bad/);
  assert.equal((await context.execute("for (;;);")).error.name, "LimitError");
  await context.dispose();
  assert.equal((await context.execute("return 1")).error.name, "DisposedError");
});

test("disposing of an isolate context terminates the program that runs in it", async () => {
  let context;
  const never = { name: "never", description: "", inputSchema: {}, execute: () => (void context.dispose(), new Promise(() => {})) };
  context = await codeModeDriver(host).createContext({ bindings: { external_never: never } });
  const ended = await context.execute("await external_never({});");
  assert.deepEqual([ended.success, ended.error.code], [false, "terminated"]);
});
