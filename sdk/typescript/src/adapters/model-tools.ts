// The two tools by which a model runs programs.
import { RequestError } from "../errors.js";
import type { CellResult, ContentItem } from "../results.js";
import type { Session } from "../session.js";

export const EXEC_SCHEMA = {
  type: "object",
  properties: {
    code: { type: "string", description: "The program." },
    yield_time_ms: { type: "integer", description: "How long to wait for its end. Default 10000." },
  },
  required: ["code"],
  additionalProperties: false,
} as const;

export const WAIT_DESCRIPTION = "Waits for more of a program that is still running.";

export const WAIT_SCHEMA = {
  type: "object",
  properties: {
    cell_id: { type: "string" },
    yield_time_ms: { type: "integer" },
    terminate: { type: "boolean", description: "Stops the program instead." },
  },
  required: ["cell_id"],
  additionalProperties: false,
} as const;

export interface ExecInput {
  code: string;
  yield_time_ms?: number;
}

export interface WaitInput {
  cell_id: string;
  yield_time_ms?: number;
  terminate?: boolean;
}

/** How a framework's tools run programs. */
export interface ModelToolOptions {
  /** Whether a person is asked, by the framework's own mechanism, before a whole program runs. Default false. */
  readonly needsApproval?: boolean;
  /** The most tokens of output that one observation gives the model. Default 10,000. */
  readonly maxOutputTokens?: number;
}

const MAX_OUTPUT_TOKENS = 10_000;
/** About how many characters a token has. */
const TOKEN_CHARACTERS = 4;
/** What the host writes beside the output that it cuts. */
const MARKERS = 200;

interface Call {
  toolCallId?: string | undefined;
  signal?: AbortSignal | undefined;
}

/** What a model is told of the tool `exec`. */
export function execDescription(session: Session): string {
  if (!session.instructions) throw new RequestError("the session is not open");
  return session.instructions;
}

/** The text of a result for the model: no longer than the budget, whatever it is made of. */
export function textOf(result: CellResult, options: ModelToolOptions): string {
  const text = result.forModel();
  const most = Math.max(200, (options.maxOutputTokens ?? MAX_OUTPUT_TOKENS) * TOKEN_CHARACTERS + MARKERS);
  if (text.length <= most) return text;
  const half = Math.floor(most / 2);
  return `${text.slice(0, half)}\n(${text.length - 2 * half} characters left out)\n${text.slice(-half)}`;
}

/** Runs a program. `call.signal` terminates it, also after it has yielded. */
export async function runExec(session: Session, input: ExecInput, options: ModelToolOptions, call: Call = {}): Promise<CellResult> {
  return session.exec(input.code, {
    maxOutputTokens: options.maxOutputTokens ?? MAX_OUTPUT_TOKENS,
    ...(input.yield_time_ms !== undefined && { yieldTimeMs: input.yield_time_ms }),
    ...(call.toolCallId !== undefined && { toolCallId: call.toolCallId }),
    ...(call.signal !== undefined && { signal: call.signal }),
  });
}

/** Waits for a program, or stops it; so does `call.signal`. */
export async function runWait(session: Session, input: WaitInput, options: ModelToolOptions, call: Call = {}): Promise<CellResult> {
  const maxOutputTokens = options.maxOutputTokens ?? MAX_OUTPUT_TOKENS;
  if (input.terminate) return session.terminate(input.cell_id, { maxOutputTokens });
  const result = await session.wait(input.cell_id, {
    maxOutputTokens,
    ...(input.yield_time_ms !== undefined && { yieldTimeMs: input.yield_time_ms }),
    ...(call.signal !== undefined && { signal: call.signal }),
  });
  return call.signal?.aborted && result.status === "running" ? session.terminate(input.cell_id, { maxOutputTokens }) : result;
}

/** An image or a sound of a program's output. */
export interface Media {
  readonly type: "image" | "audio";
  readonly mediaType: string;
  /** Base64. */
  readonly data: string;
}

/** The images and sounds of a result that a model can be shown. */
export function media(result: CellResult): Media[] {
  return result.content.flatMap((item: ContentItem) => {
    if (item.type === "text") return [];
    const parts = /^data:((?:image|audio)\/[a-z0-9.+-]+)(?:;[^;,]*)*;base64,([a-z0-9+/]+={0,2})$/is.exec(item.url);
    if (!parts || parts[2]!.length % 4 !== 0) return [];
    return [{ type: item.type, mediaType: parts[1]!.toLowerCase(), data: parts[2]! }];
  });
}
