// The AI SDK.
import { createMCPClient } from "@ai-sdk/mcp";
import { Experimental_StdioMCPTransport as StdioTransport } from "@ai-sdk/mcp/mcp-stdio";
import { scenario, server, texts } from "./scenario.mjs";

const client = await createMCPClient({ transport: new StdioTransport(server) });
const tools = await client.tools();
await scenario(
  async () => Object.keys(tools),
  async (name, args, abortSignal) => {
    const result = await tools[name].execute(args, { toolCallId: "1", messages: [], abortSignal });
    return texts(result.content);
  },
);
await client.close();
