/**
 * A session as tools of the OpenAI Agents SDK.
 *
 * @module
 */
import { tool } from "@openai/agents";

import type { CellResult } from "../results.js";
import type { Session } from "../session.js";
import {
  EXEC_SCHEMA,
  execDescription,
  media,
  runExec,
  runWait,
  textOf,
  WAIT_DESCRIPTION,
  WAIT_SCHEMA,
  type ExecInput,
  type ModelToolOptions,
  type WaitInput,
} from "./model-tools.js";

/** The text for the model, with the images that it is shown; the SDK has no sounds. */
function output(result: CellResult, options: ModelToolOptions) {
  const images = media(result).filter(({ type }) => type === "image");
  if (images.length === 0) return textOf(result, options);
  const shown = images.map(({ mediaType, data }) => ({ type: "image" as const, image: { data, mediaType } }));
  return [{ type: "text" as const, text: textOf(result, options) }, ...shown];
}

interface Details {
  toolCall?: { callId?: string };
  signal?: AbortSignal;
}

/** The tools `exec` and `wait`, for `new Agent({ tools })`. Aborting the run terminates its programs. */
export function codeModeTools(session: Session, options: ModelToolOptions = {}) {
  // Where `strict` is false, the types want schemas that allow what they do not name.
  const loose = (schema: object) => ({ ...schema, additionalProperties: true }) as never;
  return [
    tool({
      name: "exec",
      description: execDescription(session),
      parameters: loose(EXEC_SCHEMA),
      strict: false,
      needsApproval: options.needsApproval ?? false,
      execute: async (input: unknown, _context: unknown, details?: Details) =>
        output(await runExec(session, input as ExecInput, options, { toolCallId: details?.toolCall?.callId, signal: details?.signal }), options),
    }),
    tool({
      name: "wait",
      description: WAIT_DESCRIPTION,
      parameters: loose(WAIT_SCHEMA),
      strict: false,
      execute: async (input: unknown, _context: unknown, details?: Details) =>
        output(await runWait(session, input as WaitInput, options, { signal: details?.signal }), options),
    }),
  ];
}
