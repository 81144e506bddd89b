// Schemas of whatever library, as JSON Schema.
import type { Json } from "./wire.js";

/** The part of Standard Schema that is used: validation, and JSON Schema where the library offers it. */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly "~standard": {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => StandardResult<Output> | Promise<StandardResult<Output>>;
    readonly types?: { readonly input: Input; readonly output: Output } | undefined;
    readonly jsonSchema?: { readonly input: (options: { target: string }) => Record<string, unknown> };
  };
}

type StandardResult<Output> =
  | { readonly value: Output; readonly issues?: undefined }
  | { readonly issues: ReadonlyArray<StandardIssue> };

interface StandardIssue {
  readonly message: string;
  readonly path?: ReadonlyArray<PropertyKey | { readonly key: PropertyKey }> | undefined;
}

/** A schema of zod, valibot, ArkType or another library of Standard Schema; JSON Schema itself; or a schema of the AI SDK. */
export type Schema<T = unknown> =
  | StandardSchema<any, T>
  | { readonly jsonSchema: unknown; readonly validate?: unknown }
  | JsonSchema;

export type JsonSchema = boolean | { readonly [keyword: string]: unknown };

/** What a tool's function gets for a schema. */
export type InferSchema<S> = S extends { readonly "~standard": { readonly types?: infer T } }
  ? NonNullable<T> extends { readonly output: infer Output }
    ? Output
    : any
  : any;

function isStandard(schema: object): schema is StandardSchema {
  return "~standard" in schema;
}

/** The schema as JSON Schema; `undefined` where its library has no way to say it. */
export async function toJsonSchema(given: Schema): Promise<Json | undefined> {
  const schema = whole(given);
  if (typeof schema === "boolean") return schema;
  if (typeof schema !== "object" && typeof schema !== "function") throw new TypeError("a schema is an object");
  if (isStandard(schema)) {
    const standard = schema["~standard"].jsonSchema;
    if (standard) return standard.input({ target: "draft-2020-12" }) as Json;
    if ("_zod" in schema) {
      // zod before it had Standard JSON Schema.
      const zod = (await import("zod" as string)) as { toJSONSchema(schema: unknown, options: object): Json };
      return zod.toJSONSchema(schema, { io: "input" });
    }
    const own = (schema as unknown as { toJsonSchema?: () => Json }).toJsonSchema;
    return typeof own === "function" ? own.call(schema) : undefined;
  }
  if ("jsonSchema" in schema) return (await schema.jsonSchema) as Json;
  return schema as Json;
}

/** A schema of the AI SDK may be a function that makes it. */
function whole(schema: Schema): Schema {
  const isLazy = typeof schema === "function" && !isStandard(schema);
  return isLazy ? (schema as unknown as () => Schema)() : schema;
}

/** The value that a schema makes of an input, with its defaults and transformations. */
export async function parsed(given: Schema | undefined, input: unknown): Promise<unknown> {
  if (!given || (typeof given !== "object" && typeof given !== "function")) return input;
  const schema = whole(given);
  if (typeof schema !== "object" && typeof schema !== "function") return input;
  if (!isStandard(schema)) {
    if (!("jsonSchema" in schema) || typeof schema.validate !== "function") return input;
    const checked = (await schema.validate(input)) as { success: boolean; value?: unknown; error?: Error };
    if (checked.success) return checked.value;
    throw new Error(`the input does not fit: ${checked.error?.message ?? "its schema refuses it"}`);
  }
  const result = await schema["~standard"].validate(input);
  if (!result.issues) return result.value;
  const said = result.issues.map((issue) => {
    const path = (issue.path ?? []).map((part) => String(typeof part === "object" ? part.key : part));
    return path.length > 0 ? `${path.join(".")}: ${issue.message}` : issue.message;
  });
  throw new Error(`the input does not fit: ${said.join("; ")}`);
}
