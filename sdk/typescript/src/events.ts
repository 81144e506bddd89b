// Events of a session, as its observer gets them.
import { stats, type CellStats } from "./results.js";

/** What happens in a session. `callId` and `toolCallId` are those of `ToolCall`. */
export type SessionEvent =
  | { readonly type: "cell/started"; readonly cellId: string; readonly toolCallId: string }
  | {
      /** The program will not run again; its result may not have been observed yet. */
      readonly type: "cell/ended";
      readonly cellId: string;
      readonly toolCallId: string;
      readonly outcome: "completed" | "exited" | "script_error" | "limit" | "terminated" | "lost" | "shut_down";
      readonly stats: CellStats | undefined;
    }
  | {
      /** Its result was observed, or never will be: the cell's id means nothing any more. */
      readonly type: "cell/closed";
      readonly cellId: string;
    }
  | {
      readonly type: "call/started";
      readonly cellId: string;
      readonly callId: string;
      readonly name: string;
      readonly namespace: string | undefined;
    }
  | {
      readonly type: "call/finished";
      readonly cellId: string;
      readonly callId: string;
      readonly name: string;
      readonly namespace: string | undefined;
      /** `refused`: the input did not fit; `blocked`: the call was not approved; `unknown`: it may have run. */
      readonly outcome: "succeeded" | "failed" | "refused" | "blocked" | "unknown" | "cancelled";
      readonly durationMs: number;
      /** The size of the answer, where it succeeded. */
      readonly bytes: number | undefined;
    }
  | {
      /** A program called `notify`. */
      readonly type: "notification";
      readonly cellId: string;
      readonly text: string;
    };

/** An event of the wire, in this SDK's words; `undefined` for one that is not known here. */
export function event(wire: Record<string, any>): SessionEvent | undefined {
  const cellId: string = wire["cell_id"];
  const call = () => ({
    cellId,
    callId: wire["runtime_tool_call_id"] as string,
    name: wire["tool_name"].name as string,
    namespace: (wire["tool_name"].namespace ?? undefined) as string | undefined,
  });
  switch (wire["type"]) {
    case "cell/started":
      return { type: "cell/started", cellId, toolCallId: wire["call_id"] };
    case "cell/ended":
      return { type: "cell/ended", cellId, toolCallId: wire["call_id"], outcome: wire["outcome"].kind, stats: stats(wire["stats"]) };
    case "call/started":
      return { type: "call/started", ...call() };
    case "call/finished":
      return { type: "call/finished", ...call(), outcome: wire["outcome"], durationMs: wire["duration_ms"], bytes: wire["bytes"] };
    default:
      return undefined;
  }
}
