/**
 * A session as tools of the Vercel AI SDK.
 *
 * @module
 */
import { jsonSchema, tool, type Tool } from "ai";

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

/** What the tools give: the text for the model, and the images and sounds that it is shown. */
export interface ToolOutput {
  readonly text: string;
  readonly media: readonly { readonly mediaType: string; readonly data: string }[];
}

interface Options {
  toolCallId: string;
  abortSignal?: AbortSignal;
}

const output = (result: CellResult, options: ModelToolOptions): ToolOutput => ({ text: textOf(result, options), media: media(result) });

function toModelOutput({ output }: { output: ToolOutput }) {
  if (output.media.length === 0) return { type: "text" as const, value: output.text };
  const files = output.media.map(({ mediaType, data }) => ({ type: "file" as const, data: { type: "data" as const, data }, mediaType }));
  return { type: "content" as const, value: [{ type: "text" as const, text: output.text }, ...files] };
}

/** The tools `exec` and `wait`, for `generateText({ tools })`. Aborting the generation terminates its programs. */
export function codeModeTools(
  session: Session,
  options: ModelToolOptions = {},
): { exec: Tool<ExecInput, ToolOutput>; wait: Tool<WaitInput, ToolOutput> } {
  return {
    exec: tool({
      description: execDescription(session),
      inputSchema: jsonSchema<ExecInput>(EXEC_SCHEMA as object),
      ...(options.needsApproval !== undefined && { needsApproval: options.needsApproval }),
      execute: async (input: ExecInput, { toolCallId, abortSignal }: Options) =>
        output(await runExec(session, input, options, { toolCallId, signal: abortSignal }), options),
      toModelOutput,
    } as Tool<ExecInput, ToolOutput>),
    wait: tool({
      description: WAIT_DESCRIPTION,
      inputSchema: jsonSchema<WaitInput>(WAIT_SCHEMA as object),
      execute: async (input: WaitInput, { abortSignal }: Options) => output(await runWait(session, input, options, { signal: abortSignal }), options),
      toModelOutput,
    } as Tool<WaitInput, ToolOutput>),
  };
}

/** The tool `exec` alone: for programs that end within `yield_time_ms`, or whose sessions limit them so. */
export function codeModeTool(session: Session, options: ModelToolOptions = {}): Tool<ExecInput, ToolOutput> {
  return codeModeTools(session, options).exec;
}
