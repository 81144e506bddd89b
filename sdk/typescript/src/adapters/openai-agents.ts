/**
 * A session as tools of the OpenAI Agents SDK.
 *
 * @module
 */
import { tool } from "@openai/agents";

import type { Session } from "../session.js";
import { EXEC_SCHEMA, runExec, runWait, WAIT_DESCRIPTION, WAIT_SCHEMA, type ExecInput, type WaitInput } from "./model-tools.js";

/** The tools `exec` and `wait`, for `new Agent({ tools })`. `needsApproval` asks for whole programs. */
export function codeModeTools(session: Session, options: { needsApproval?: boolean } = {}) {
  // The schemas are fixed ones, and say nothing of additional properties that strict mode wants.
  const loose = (schema: object) => ({ ...schema, additionalProperties: true }) as never;
  return [
    tool({
      name: "exec",
      description: session.instructions,
      parameters: loose(EXEC_SCHEMA),
      strict: false,
      needsApproval: options.needsApproval ?? false,
      execute: (input: unknown, _context: unknown, details?: { signal?: AbortSignal }) =>
        runExec(session, input as ExecInput, { signal: details?.signal }),
    }),
    tool({
      name: "wait",
      description: WAIT_DESCRIPTION,
      parameters: loose(WAIT_SCHEMA),
      strict: false,
      execute: (input: unknown, _context: unknown, details?: { signal?: AbortSignal }) =>
        runWait(session, input as WaitInput, { signal: details?.signal }),
    }),
  ];
}
