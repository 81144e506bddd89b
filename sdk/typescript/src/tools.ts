import { ToolError } from "./errors.js";
import { parsed, toJsonSchema, type InferSchema, type Schema } from "./schema.js";
import type { Json } from "./wire.js";

/** One call of a tool by a program. */
export interface ToolCall {
  /** The name under which the tool was given. */
  readonly name: string;
  /** What the program passed. */
  readonly input: unknown;
  /** The calling cell. */
  readonly cellId: string;
  /** The call's place in the cell: `tool-1`, ... */
  readonly callId: string;
  /** The `toolCallId` of the exec. */
  readonly toolCallId: string;
  /** The line and column of the program that made the call. */
  readonly site: { readonly line: number; readonly column: number } | undefined;
  /** The span of the call, as W3C Trace Context has it, where the exec named one. */
  readonly traceparent: string | undefined;
  readonly tracestate: string | undefined;
}

/** What a tool's function gets beside its input. */
export interface ToolContext extends ToolCall {
  /** Aborted when nobody waits for the answer any more. */
  readonly signal: AbortSignal;
}

/** A tool that programs may call. */
export interface Tool<S extends Schema = Schema> {
  /** What it does, for the model. */
  readonly description?: string;
  /** What it takes: a schema of zod or another library of Standard Schema, or JSON Schema. */
  readonly inputSchema?: S;
  /** What it returns. */
  readonly outputSchema?: Schema;
  /** Does the work. What it returns is made JSON; an image is `image(bytes, "image/png")`. */
  execute(input: InferSchema<S>, context: ToolContext): unknown;
  /** The namespace, of which a program also reaches it: `tools.NAMESPACE.NAME`. */
  readonly namespace?: string;
  /** The text for the model leaves it out; programs find it by `search_tools`. Default false. */
  readonly deferred?: boolean;
  /** Nothing names it, and it can be called all the same. Default false. */
  readonly hidden?: boolean;
  /** Whether `approve` is asked before a call. Default: it is, where the session has an `approve`. */
  readonly needsApproval?: boolean | ((input: InferSchema<S>) => boolean | Promise<boolean>);
}

/** Tools by their names. */
export type Tools = Readonly<Record<string, Tool<any>>>;

/** Gives a tool whose `execute` knows the type of its input. */
export function tool<S extends Schema>(definition: Tool<S>): Tool<S> {
  return definition;
}

/** An image as the result of a tool; the program shows it with `image(result)`. */
export function image(bytes: Uint8Array | string, mimeType: string): Json {
  return { type: "image", data: base64(bytes), mimeType };
}

/** A sound as the result of a tool; the program plays it with `audio(result)`. */
export function audio(bytes: Uint8Array | string, mimeType: string): Json {
  return { type: "audio", data: base64(bytes), mimeType };
}

function base64(bytes: Uint8Array | string): string {
  return typeof bytes === "string" ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64");
}

/** A definition as the wire has it. */
export async function definition(name: string, tool: Tool<any>): Promise<Json> {
  const schema = async (given: Schema | undefined) => (given === undefined ? null : ((await toJsonSchema(given)) ?? null));
  const full = tool.namespace ? `${tool.namespace}__${name}` : name;
  return {
    name: full,
    tool_name: { name, namespace: tool.namespace ?? null },
    description: tool.description ?? "",
    input_schema: await schema(tool.inputSchema),
    output_schema: await schema(tool.outputSchema),
    deferred: tool.deferred ?? false,
    hidden: tool.hidden ?? false,
  };
}

/** Runs a tool; the answer as the wire has it. */
export async function run(tool: Tool<any>, context: ToolContext): Promise<Record<string, unknown>> {
  try {
    const input = await parsed(tool.inputSchema, context.input ?? {});
    return { status: "ok", value: { type: "tool/result", result: plain(await tool.execute(input, context)) } };
  } catch (error) {
    return failed(error);
  }
}

/** A failure as the wire has it. */
export function failed(error: unknown): Record<string, unknown> {
  const thrown = error instanceof Error ? error : new Error(String(error));
  const told: Record<string, unknown> = { status: "error", message: thrown.message || thrown.name };
  const { code, data, failure } = thrown as Partial<ToolError>;
  if (Number.isSafeInteger(code)) told["code"] = code;
  if (failure === "blocked" || failure === "unknown") told["failure"] = failure;
  if (error instanceof ToolError && data !== undefined) {
    try {
      told["data"] = plain(data);
    } catch {
      // The message says enough.
    }
  }
  return told;
}

/** A value as JSON has it; throws where JSON cannot have it. */
function plain(value: unknown): unknown {
  if (value === undefined || typeof value === "function" || typeof value === "symbol") return null;
  if (value instanceof Uint8Array) {
    const resource = { uri: "data:,", mimeType: "application/octet-stream", blob: base64(value) };
    return { type: "resource", resource };
  }
  // Errors are thrown here, where they fail the call alone.
  JSON.stringify(value);
  return value;
}
