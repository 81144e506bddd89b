// The TypeScript SDK, 1.x.
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { sdk } from "./scenario.mjs";

await sdk(Client, StdioClientTransport, (client, params, signal) => client.callTool(params, undefined, { signal }));
