/** A piece of a program's output. */
export type ContentItem =
  | { readonly type: "text"; readonly text: string; readonly note?: "log" | "warning" | "unfinished" }
  | { readonly type: "image"; readonly url: string }
  | { readonly type: "audio"; readonly url: string };

/** What a cell used. */
export interface CellStats {
  readonly wallMs: number;
  readonly processorMs: number;
  readonly queuedMs: number;
  readonly peakHeapBytes: number;
  readonly outputBytes: number;
  readonly calls: number;
  readonly callsFailed: number;
  readonly callsCancelled: number;
}

/** Why a program failed. */
export interface CellError {
  /** The message, with the line it points at and help where there is some: for the model. */
  readonly message: string;
  /** `script_error`, `limit`, `exited` (with a status that is not 0), `lost` (the process died) or `missing` (no such cell). */
  readonly kind: "script_error" | "limit" | "exited" | "lost" | "missing";
  readonly position: { readonly line: number; readonly column: number } | undefined;
  /** The limit that was hit. */
  readonly limit: { readonly name: string; readonly value: number; readonly unit: string } | undefined;
  /** What the program called `exit` with. */
  readonly exitStatus: number | undefined;
}

/** What one observation of a cell gave: `error` where its `status` is `failed`. */
export type CellResult = Observed &
  (
    | { readonly status: "failed"; readonly error: CellError }
    | {
        /** `running`: `wait` for more. */
        readonly status: "running" | "completed" | "terminated";
        readonly error: undefined;
      }
  );

interface Observed {
  readonly cellId: string;
  /** Output since the last observation. */
  readonly content: readonly ContentItem[];
  /** The texts that the program put out by `text`, joined by newlines; lines of its console are in `content` alone. */
  readonly text: string;
  /** What the cell used, once it has ended. */
  readonly stats: CellStats | undefined;
  /** The output and the error as one text, for a model. It tells of images and sounds, which are in `content`. */
  forModel(): string;
}

type Wire = Record<string, any>;

function item(wire: Wire): ContentItem {
  switch (wire["type"]) {
    case "input_image":
      return { type: "image", url: wire["image_url"] };
    case "input_audio":
      return { type: "audio", url: wire["audio_url"] };
    default:
      return wire["note"] ? { type: "text", text: wire["text"], note: wire["note"] } : { type: "text", text: wire["text"] };
  }
}

export function stats(wire: Wire | undefined): CellStats | undefined {
  return (
    wire && {
      wallMs: wire["wall_ms"],
      processorMs: wire["processor_ms"],
      queuedMs: wire["queued_ms"],
      peakHeapBytes: wire["peak_heap_bytes"],
      outputBytes: wire["output_bytes"],
      calls: wire["calls"],
      callsFailed: wire["calls_failed"],
      callsCancelled: wire["calls_cancelled"],
    }
  );
}

/** The result that a response of the wire is: `{"Result": {...}}`, `{"Yielded": ...}` or `{"Terminated": ...}`. */
export function result(response: Wire): CellResult {
  const [kind, observed] = Object.entries(response)[0] as [string, Wire];
  const content = (observed["content_items"] as Wire[]).map(item);
  const outcome = (observed["outcome"] ?? {}) as Wire;
  const isFailure = !["completed", "terminated", "shut_down"].includes(outcome["kind"]) && !(outcome["kind"] === "exited" && !outcome["status"]);
  const status =
    kind === "Yielded" ? "running" : kind === "Terminated" || outcome["kind"] === "shut_down" ? "terminated" : isFailure ? "failed" : "completed";
  const error: CellError | undefined =
    status !== "failed"
      ? undefined
      : {
          message: observed["error_text"] ?? `the program called exit(${outcome["status"]})`,
          kind: outcome["kind"],
          position: observed["error_position"],
          limit: outcome["limit"],
          exitStatus: outcome["status"],
        };
  const ending = error ? { status: "failed" as const, error } : { status: status as Exclude<typeof status, "failed">, error: undefined };
  return made({ ...ending, cellId: observed["cell_id"], content, stats: stats(observed["stats"]) });
}

/** The last result of a cell, with the output of all of its observations. */
export function joined(observed: readonly CellResult[]): CellResult {
  const last = observed.at(-1)!;
  return made({ ...last, content: observed.flatMap((one) => one.content) });
}

type Facts = Pick<CellResult, "cellId" | "content" | "stats"> & Pick<CellResult, "status" | "error">;

/** A result with the texts that follow from its content. */
function made(facts: Facts): CellResult {
  const { status, cellId, content, error } = facts;
  const texts = content.filter((one) => one.type === "text");
  return {
    ...facts,
    text: texts.filter((one) => !one.note).map((one) => one.text).join("\n"),
    forModel() {
      const parts = content.map((one) => (one.type === "text" ? one.text : `(${one.type === "image" ? "an image" : "a sound"})`));
      if (error) parts.push(`error: ${error.message}`);
      if (status === "running") parts.push(`(the program is still running: wait for cell ${cellId})`);
      if (status === "terminated") parts.push("(the program was terminated)");
      return parts.join("\n");
    },
  } as CellResult;
}
