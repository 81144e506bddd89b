// What every TypeScript client is asked to do, as figures in JSON on standard output.
import { readFileSync } from "node:fs";

const [program, config] = process.argv.slice(2);
export const server = { command: program, args: ["mcp", "--linger", "0ms", "--config", config] };
const text = readFileSync(new URL("./scenario.json", process.env.CLIENTS), "utf8");
const CODE = JSON.parse(text.replaceAll("SLOW", process.env.SLOW_SECONDS));

// Blocks of the protocol as [type, text].
export const texts = (content) => content.map((block) => [block.type, block.text ?? ""]);

// `tools()` gives names; `call(name, arguments, signal)` gives blocks as [type, text].
export async function scenario(tools, call) {
  let began = performance.now();
  const seen = { tools: (await tools()).sort() };
  seen.list_ms = Math.round(performance.now() - began);
  const exec = (name, signal) => call("exec", { code: CODE[name] }, signal);
  for (const name of ["five", "error", "image", "number", "megabyte", "store", "load", "approval"]) {
    seen[name] = await exec(name);
  }
  seen.two = await Promise.all([exec("five"), exec("load")]);
  began = performance.now();
  let blocks = await exec("slow");
  seen.first_answer_ms = Math.round(performance.now() - began);
  seen.waits = 0;
  for (let running; (running = /cell_id: (\S+)/.exec(blocks[0][1])) && seen.waits < 20; seen.waits++) {
    if (JSON.stringify(blocks).includes("late")) break;
    blocks = await call("wait", { cell_id: running[1] });
  }
  seen.slow = blocks;
  await exec("endless", AbortSignal.timeout(2000)).catch(() => {});
  seen.after = await exec("after");
  const short = (text) => (text.length < 4000 ? text : `${text.slice(0, 200)}... ${text.length}`);
  seen.megabyte = seen.megabyte.map(([type, text]) => [type, short(text)]);
  console.log(`SEEN ${JSON.stringify(seen)}`);
}

// The scenario with a client of one of the SDKs, after a first one has only listed the tools.
export async function sdk(Client, Transport, call) {
  const open = async () => {
    const client = new Client({ name: "scenario", version: "1" });
    await client.connect(new Transport(server));
    return client;
  };
  const first = await open();
  await first.listTools();
  await first.close();
  const client = await open();
  await scenario(
    async () => (await client.listTools()).tools.map((tool) => tool.name),
    async (name, args, signal) => texts((await call(client, { name, arguments: args }, signal)).content),
  );
  await client.close();
}
