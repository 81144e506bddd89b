import { RequestError, ToolError } from "./errors.js";
import { parsed, toJsonSchema, type InferSchema, type Schema } from "./schema.js";
import type { Json } from "./wire.js";

/** One call of a tool by a program. */
export interface ToolCall {
  /** The tool's name. */
  readonly name: string;
  /** The tool's namespace, where it has one: with `name` it says which tool is meant. */
  readonly namespace: string | undefined;
  /** The input that `execute` gets: what the program passed, with the schema's defaults and transformations. */
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
  /** 1, and one more each time that a durable session makes the call again after a restart. */
  readonly attempt: number;
}

/** What a tool's function gets beside its input. */
export interface ToolContext extends ToolCall {
  /** Aborted when nobody waits for the answer any more. */
  readonly signal: AbortSignal;
}

/** A tool that programs may call. */
export interface Tool<S extends Schema = Schema> {
  /** Its name. Default: the key under which it is given. */
  readonly name?: string;
  /** What it does, for the model. */
  readonly description?: string;
  /**
   * What it takes: a schema of zod or another library of Standard Schema, or JSON Schema. The host checks
   * inputs against the JSON Schema first, so that a coercion of the library sees values of the right type only.
   */
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
  /**
   * A second run does no harm: a durable session runs the tool again where nobody knows whether it ran
   * before a restart. Other calls of that kind fail. Default false.
   */
  readonly idempotent?: boolean;
  /**
   * Whether `approve` is asked before a call. Default: it is, where the session has an `approve`. The
   * function gets the input that `execute` would get.
   */
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
  const schema = async (given: Schema | null | undefined) => {
    if (given === undefined || given === null) return null;
    try {
      return (await toJsonSchema(given)) ?? null;
    } catch (error) {
      throw new RequestError(`the schema of the tool ${name}: ${messageOf(error)}`);
    }
  };
  const full = tool.namespace ? `${tool.namespace}__${name}` : name;
  return {
    name: full,
    tool_name: { name, namespace: tool.namespace ?? null },
    description: tool.description ?? "",
    input_schema: await schema(tool.inputSchema),
    output_schema: await schema(tool.outputSchema),
    deferred: tool.deferred ?? false,
    hidden: tool.hidden ?? false,
    idempotent: tool.idempotent ?? false,
  };
}

/** The input that a tool gets for what a program passed. */
export function inputOf(tool: Tool<any>, passed: unknown): Promise<unknown> {
  return parsed(tool.inputSchema, passed ?? {});
}

/** Runs a tool; the answer as the wire has it, in JSON. */
export async function run(tool: Tool<any>, context: ToolContext): Promise<string> {
  const result = json(await tool.execute(context.input, context));
  return `{"status":"ok","value":{"type":"tool/result","result":${result}}}`;
}

/** A failure as the wire has it, in JSON. It never throws, whatever was thrown. */
export function failed(error: unknown): string {
  const told: Record<string, unknown> = { status: "error", message: messageOf(error) };
  if (!(error instanceof ToolError)) return JSON.stringify(told);
  if (Number.isSafeInteger(error.code)) told["code"] = error.code;
  if (error.failure === "blocked" || error.failure === "unknown") told["failure"] = error.failure;
  const text = JSON.stringify(told);
  if (error.data === undefined) return text;
  try {
    return `${text.slice(0, -1)},"data":${json(error.data)}}`;
  } catch {
    // The message says enough.
    return text;
  }
}

/** What a thrown value says. It never throws. */
export function messageOf(error: unknown): string {
  try {
    if (error instanceof Error) return String(error.message || error.name);
    return String(error);
  } catch {
    return "something was thrown that has no text";
  }
}

/** A value as JSON; throws where JSON cannot hold it. */
function json(value: unknown): string {
  if (value instanceof Uint8Array) {
    const resource = { uri: "data:,", mimeType: "application/octet-stream", blob: base64(value) };
    return JSON.stringify({ type: "resource", resource });
  }
  // Undefined, a function and a symbol have no JSON.
  return JSON.stringify(value) ?? "null";
}
