// What an agent does with a session, without a framework: it offers the model two tools, `exec` and
// `wait`, runs what the model asks for, and asks a person before money is spent. The model is scripted.
//
//     npm install code-mode && node agent.mjs
import { CodeMode } from "code-mode";

const host = await CodeMode.start();
const session = await host.session({
  tools: {
    quote: {
      description: "The price of a part in cents",
      inputSchema: { type: "object", properties: { part: { type: "string" } }, required: ["part"] },
      execute: async ({ part }) => ({ part, cents: part.length * 100 }),
      needsApproval: false,
    },
    buy: {
      description: "Buys a part",
      inputSchema: {
        type: "object",
        properties: { part: { type: "string" }, cents: { type: "integer" } },
        required: ["part", "cents"],
      },
      execute: async ({ part }, { signal }) => {
        signal.throwIfAborted();
        return `bought ${part}`;
      },
    },
  },
  // Calls that wait at the same time come together; the program's clocks stand still meanwhile.
  approve: (calls) => calls.map(({ name, input }) => input.cents <= 500 || `${name}: more than 5.00 needs a signature`),
  onEvent: (event) => {
    if (event.type === "call/finished") console.log(`  ${event.name}: ${event.outcome}`);
  },
  limits: { maxWallTimeMs: 60_000 },
});

/** What the model asks for, turn by turn; a real one reads `session.instructions` and the answers. */
const turns = [
  {
    tool: "exec",
    code: `const quotes = await Promise.all(["bolt", "turbine"].map((part) => tools.quote({ part })));
store("quotes", quotes);
for (const quote of quotes) text(await tools.buy(quote).catch((error) => error.message));`,
  },
  { tool: "exec", code: `text(load("quotes").length + " quotes");\nyield_control();\ntext("done");` },
  { tool: "wait" },
];
let last;
for (const turn of turns) {
  last = turn.tool === "exec" ? await session.exec(turn.code, { maxOutputTokens: 10_000 }) : await session.wait(last.cellId);
  console.log(`${turn.tool}: ${last.status}\n${last.forModel()}`);
}
await host.close();
