// Runs a cell with a tool of this program over gRPC: npx tsx client.ts HOST:PORT
//
// Needs @grpc/grpc-js and @grpc/proto-loader, and the interface:
// code-mode-protocol/proto/code_mode.proto.
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { promisify } from "node:util";

const proto = new URL("../../code-mode-protocol/proto/code_mode.proto", import.meta.url).pathname;
const definition: any = loadPackageDefinition(loadSync(proto, { keepCase: true, oneofs: true }));
const { CodeModeHost } = definition.codex.code_mode.v1;
const host = new CodeModeHost(process.argv[2], credentials.createInsecure());

// The lease must be read as long as the session lives: it tells what happens to its cells.
const lease = host.OpenSession({});
lease.on("error", () => {});
const session_id: string = await new Promise((opened) =>
  lease.on("data", (event: any) => event.opened && opened(event.opened.session_id)));

const calls = host.SubscribeToToolCalls({ session_id });
calls.on("error", () => {});
calls.on("data", (call: any) => {
  const sum = JSON.parse(call.input_json).reduce((a: number, b: number) => a + b);
  const succeeded = { output_json: Buffer.from(JSON.stringify(sum)) };
  host.CompleteToolCall({ session_id, invocation_id: call.invocation_id, succeeded }, () => {});
});
await new Promise((stands) => calls.on("metadata", stands));

const cell = host.Execute({
  session_id, execution_id: "1", tool_call_id: "call-1",
  source: "text(await tools.add([19, 23]))",
  enabled_tools: [{
    name: "add", tool_name: { name: "add" }, description: "The sum of numbers", kind: "TOOL_KIND_FUNCTION",
  }],
});
for await (const event of cell) {
  for (const item of event.outcome?.content_items ?? []) console.log(item.text.text);
}
await promisify(host.CloseSession).call(host, { session_id });
host.close();
