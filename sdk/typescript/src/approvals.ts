// Questions whether calls may run.
import { ToolError } from "./errors.js";
import { messageOf, type Tool, type ToolCall, type ToolContext } from "./tools.js";

/** The decision about a call: whether it runs, or why not. */
export type Decision = boolean | string | { readonly allow: boolean; readonly reason?: string };

/** Asked before calls run: for all that wait at that moment. It answers for all, or for each. */
export type Approve = (calls: readonly ToolCall[]) => Decision | readonly Decision[] | Promise<Decision | readonly Decision[]>;

/** Calls that come this soon after each other are put to a person together. */
const ASKED_TOGETHER_MS = 10;

/** The decision about one call: true, or why not. Every other value is a refusal. */
function decisionOf(decided: unknown, index: number): true | string {
  const refused = "the call was not approved";
  try {
    const own: unknown = Array.isArray(decided) ? decided[index] : decided;
    if (own === true) return true;
    if (typeof own === "string") return own || refused;
    const { allow, reason } = own as { allow?: unknown; reason?: unknown };
    if (allow === true) return true;
    return (typeof reason === "string" && reason) || refused;
  } catch {
    return refused;
  }
}

/** The questions of one session. */
export class Approvals {
  readonly #approve: Approve | undefined;
  /** Lets the clocks of a cell stand still. */
  readonly #pause: (cellId: string) => Promise<() => Promise<void>>;
  #asked: { call: ToolContext; decide(decision: true | string): void }[] = [];

  constructor(approve: Approve | undefined, pause: (cellId: string) => Promise<() => Promise<void>>) {
    this.#approve = approve;
    this.#pause = pause;
  }

  /**
   * Returns when the call may run.
   *
   * @throws ToolError where it may not.
   */
  async check(tool: Tool<any>, call: ToolContext): Promise<void> {
    const { needsApproval } = tool;
    // A function that forgets to answer must not let a call run.
    const needs = typeof needsApproval === "function" ? ((await needsApproval(call.input)) ?? true) : needsApproval;
    const blocked = (why: string) => new ToolError(why, { failure: "blocked" });
    if (!this.#approve) {
      if (needs !== undefined && needs !== false) throw blocked("the call needs an approval, and this session has no `approve`");
    } else if (needs !== false) {
      const decision = await this.#ask(call);
      if (decision !== true) throw blocked(decision);
    }
  }

  /** Asks about this call, together with those that come in the same moment. */
  async #ask(call: ToolContext): Promise<true | string> {
    const resume = await this.#pause(call.cellId);
    try {
      return await new Promise<true | string>((decide, reject) => {
        const cancelled = () => reject(new ToolError("the call was cancelled"));
        if (call.signal.aborted) return cancelled();
        call.signal.addEventListener("abort", cancelled, { once: true });
        this.#asked.push({ call, decide });
        if (this.#asked.length === 1) setTimeout(() => void this.#askAll(), ASKED_TOGETHER_MS);
      });
    } finally {
      await resume();
    }
  }

  async #askAll(): Promise<void> {
    const asked = this.#asked.filter(({ call }) => !call.signal.aborted);
    this.#asked = [];
    if (asked.length === 0) return;
    let decided: Decision | readonly Decision[];
    try {
      decided = await this.#approve!(asked.map(({ call }) => call));
    } catch (error) {
      // Its text is for the developer: the reason goes to the model.
      process.emitWarning(`approve failed: ${messageOf(error)}`, "CodeModeWarning");
      decided = "the approval failed";
    }
    asked.forEach(({ decide }, index) => decide(decisionOf(decided, index)));
  }
}
