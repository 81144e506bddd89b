// The two tools by which a model runs programs.
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

/** Runs a program; the answer is for the model, also where it failed. */
export async function runExec(
  session: Session,
  input: ExecInput,
  call: { toolCallId?: string | undefined; signal?: AbortSignal | undefined } = {},
): Promise<string> {
  const result = await session.exec(input.code, {
    ...(input.yield_time_ms !== undefined && { yieldTimeMs: input.yield_time_ms }),
    ...(call.toolCallId !== undefined && { toolCallId: call.toolCallId }),
    ...(call.signal !== undefined && { signal: call.signal }),
  });
  return result.forModel();
}

/** Waits for a program, or stops it. */
export async function runWait(session: Session, input: WaitInput, call: { signal?: AbortSignal | undefined } = {}): Promise<string> {
  if (input.terminate) return (await session.terminate(input.cell_id)).forModel();
  const result = await session.wait(input.cell_id, {
    ...(input.yield_time_ms !== undefined && { yieldTimeMs: input.yield_time_ms }),
    ...(call.signal !== undefined && { signal: call.signal }),
  });
  return result.forModel();
}
