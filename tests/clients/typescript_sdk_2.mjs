// The TypeScript SDK, 2.x.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";
import { sdk } from "./scenario.mjs";

await sdk(Client, StdioClientTransport, (client, params, signal) => client.callTool(params, { signal }));
