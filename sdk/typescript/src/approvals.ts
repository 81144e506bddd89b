// Questions whether calls may run.
import { createHash } from "node:crypto";
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

/**
 * Where the questions of a durable session are kept: a call that waits for an answer has not run, and is made
 * again after a restart.
 */
export interface KeptQuestions {
  /** The definition of a call's tool. */
  definition(call: ToolContext): string;
  /** Keeps a question, with what it is about and its text; what is decided already, if it is. */
  asked(call: ToolContext, subject: string, text: string): Promise<boolean | undefined>;
  /** Keeps a decision; the one that stands. */
  decided(call: ToolContext, allowed: boolean): Promise<boolean>;
}

/** The longest text of a kept question, in characters. */
const MOST_TEXT = 4000;

/** The questions of one session. */
export class Approvals {
  readonly #approve: Approve | undefined;
  /** Lets the clocks of a cell stand still. */
  readonly #pause: (cellId: string) => Promise<() => Promise<void>>;
  readonly #kept: KeptQuestions | undefined;
  #asked: { call: ToolContext; decide(decision: true | string): void }[] = [];

  constructor(approve: Approve | undefined, pause: (cellId: string) => Promise<() => Promise<void>>, kept?: KeptQuestions) {
    this.#approve = approve;
    this.#pause = pause;
    this.#kept = kept;
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
      const decision = await this.#decision(call);
      if (decision !== true) throw blocked(decision);
    }
  }

  /** The decision about a call, which is kept before it runs. */
  async #decision(call: ToolContext): Promise<true | string> {
    if (!this.#kept) return this.#ask(call);
    const refused = "the call was not approved";
    const passed = JSON.stringify(call.input) ?? "null";
    const subject = createHash("sha256").update(this.#kept.definition(call)).update("\0").update(passed).digest("hex");
    const known = await this.#kept.asked(call, subject, `${call.name} with ${passed}`.slice(0, MOST_TEXT));
    if (known !== undefined) return known || refused;
    const decision = await this.#ask(call);
    const stands = await this.#kept.decided(call, decision === true);
    if (stands === (decision === true)) return decision;
    return stands || refused;
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
