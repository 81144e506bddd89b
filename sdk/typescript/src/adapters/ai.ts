/**
 * A session as tools of the Vercel AI SDK.
 *
 * @module
 */
import { jsonSchema, tool, type Tool } from "ai";

import type { Session } from "../session.js";
import { EXEC_SCHEMA, runExec, runWait, WAIT_DESCRIPTION, WAIT_SCHEMA, type ExecInput, type WaitInput } from "./model-tools.js";

/**
 * The tool by which a model runs a program. Aborting the generation terminates the program.
 * Calls within a program are approved by the session's `approve`; whole programs by `needsApproval`.
 */
export function codeModeTool(session: Session, options: { needsApproval?: boolean } = {}): Tool<ExecInput, string> {
  return tool({
    description: session.instructions,
    inputSchema: jsonSchema<ExecInput>(EXEC_SCHEMA as object),
    ...(options.needsApproval !== undefined && { needsApproval: options.needsApproval }),
    execute: (input: ExecInput, { toolCallId, abortSignal }: { toolCallId: string; abortSignal?: AbortSignal }) => runExec(session, input, { toolCallId, signal: abortSignal }),
  } as Tool<ExecInput, string>);
}

/** The tools `exec` and `wait`, for `generateText({ tools })`. */
export function codeModeTools(session: Session, options: { needsApproval?: boolean } = {}): { exec: Tool<ExecInput, string>; wait: Tool<WaitInput, string> } {
  return {
    exec: codeModeTool(session, options),
    wait: tool({
      description: WAIT_DESCRIPTION,
      inputSchema: jsonSchema<WaitInput>(WAIT_SCHEMA as object),
      execute: (input: WaitInput, { abortSignal }: { abortSignal?: AbortSignal }) => runWait(session, input, { signal: abortSignal }),
    } as Tool<WaitInput, string>),
  };
}
