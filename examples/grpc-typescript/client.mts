// Runs a cell with two tools of this program over gRPC: npx tsx client.mts HOST:PORT
//
// Needs @grpc/grpc-js and @grpc/proto-loader, and the interface, code_mode.proto, beside it.
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

// Called at the same time where the cell does not wait for one before it calls the other.
const tools: Record<string, (input: any) => Promise<unknown>> = {
  add: async (numbers: number[]) => numbers.reduce((a, b) => a + b),
  page: async ({ length }) => "x".repeat(length),
};

const proto = fileURLToPath(new URL("code_mode.proto", import.meta.url));
const definition: any = loadPackageDefinition(loadSync(proto, { keepCase: true, oneofs: true }));
const { CodeModeHost } = definition.codex.code_mode.v1;
// The host takes messages of 64 MiB; gRPC's own default is 4.
const most = 64 << 20;
const host = new CodeModeHost(process.argv[2], credentials.createInsecure(), {
  "grpc.max_receive_message_length": most, "grpc.max_send_message_length": most,
});

// The lease must be read as long as the session lives: it tells what happens to its cells.
const lease = host.OpenSession({});
lease.on("error", () => {});
const session_id: string = await new Promise((opened) =>
  lease.on("data", (event: any) => event.opened && opened(event.opened.session_id)));

const calls = host.SubscribeToToolCalls({ session_id });
calls.on("error", () => {});
calls.on("data", async (call: any) => {
  const answer = { session_id, invocation_id: call.invocation_id };
  try {
    const output = await tools[call.tool_name.name](JSON.parse(call.input_json));
    const succeeded = { output_json: Buffer.from(JSON.stringify(output)) };
    host.CompleteToolCall({ ...answer, succeeded }, () => {});
  } catch (error) {
    host.CompleteToolCall({ ...answer, failed: { message: String(error) } }, () => {});
  }
});
await new Promise((stands) => calls.on("metadata", stands));

const cell = host.Execute({
  session_id, execution_id: "1", tool_call_id: "call-1",
  source: `const [sum, page] = await Promise.all([tools.add([19, 23]), tools.page({ length: 5_000_000 })]);
           text(sum); text(page.length)`,
  enabled_tools: Object.keys(tools).map((name) => (
    { name, tool_name: { name }, description: name, kind: "TOOL_KIND_FUNCTION" })),
});
for await (const event of cell) {
  for (const item of event.outcome?.content_items ?? []) console.log(item.text.text);
}
await promisify(host.CloseSession).call(host, { session_id });
host.close();
