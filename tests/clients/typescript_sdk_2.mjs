// The TypeScript SDK, 2.x.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { scenario, server, texts } from "./scenario.mjs";

const open = async () => {
  const client = new Client({ name: "scenario", version: "1" });
  await client.connect(new StdioClientTransport(server));
  return client;
};
const first = await open();
await first.listTools();
await first.close();
const client = await open();
await scenario(
  async () => (await client.listTools()).tools.map((tool) => tool.name),
  async (name, args, signal) => texts((await client.callTool({ name, arguments: args }, { signal })).content),
);
await client.close();
