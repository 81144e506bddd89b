import { HostLostError, RequestError, ToolError } from "./errors.js";
import { joined, result, type CellResult } from "./results.js";
import { definition, failed, messageOf, run, type Tool, type ToolCall, type ToolContext, type Tools } from "./tools.js";
import { toJson, type Json, type SessionHandler, type Wire } from "./wire.js";

/** The decision about a call: whether it runs, or why not. */
export type Decision = boolean | { readonly allow: boolean; readonly reason?: string };

/** What happens in a session. */
export type SessionEvent = { readonly type: string } & Readonly<Record<string, unknown>>;

/** What cells of a session may use; what is left out is the host's own limit, which is also the most. */
export interface Limits {
  readonly maxHeapBytes?: number;
  readonly maxCpuTimeMs?: number;
  readonly maxWallTimeMs?: number;
  readonly maxYieldTimeMs?: number;
  readonly maxOutputBytes?: number;
  readonly maxLiveCells?: number;
  readonly maxPendingToolCalls?: number;
  readonly maxStoredBytes?: number;
}

export interface SessionOptions {
  /** The tools that programs may call. */
  readonly tools?: Tools;
  /**
   * Asked before calls run: for all that wait at that moment, in one array. It answers for all
   * (`true`, `false`) or for each. Clocks of their programs stand still meanwhile.
   */
  readonly approve?: (calls: readonly ToolCall[]) => Decision | readonly Decision[] | Promise<Decision | readonly Decision[]>;
  /** Told of cells and calls: `cell/started`, `cell/ended`, `call/started`, `call/finished`, and of `notification`s of programs. */
  readonly onEvent?: (event: SessionEvent) => void;
  /** Values that programs find stored. */
  readonly stored?: Readonly<Record<string, Json>>;
  readonly limits?: Limits;
  /** Whether inputs are checked against the schemas before a tool runs. Default true. */
  readonly checkInputs?: boolean;
  /** Whether a tool whose schema cannot be read is left out. Default false. */
  readonly requireReadableSchemas?: boolean;
  /** How long the tools' part of `instructions` may be, in tokens. Default 4,000. */
  readonly instructionsTokens?: number;
}

export interface ExecOptions {
  /** How long this observation lasts before the result is `running`, in milliseconds. Default 10,000. */
  readonly yieldTimeMs?: number;
  /** The most tokens of output. Default: nothing is cut. */
  readonly maxOutputTokens?: number;
  /** The name of the model's call; tools and events carry it. */
  readonly toolCallId?: string;
  /** Globals that the program finds. */
  readonly constants?: Readonly<Record<string, Json>>;
  /** Terminates the program when it is aborted. */
  readonly signal?: AbortSignal;
  /** The span that the program descends from, as W3C Trace Context has it. */
  readonly traceparent?: string;
  readonly tracestate?: string;
}

export interface WaitOptions {
  readonly yieldTimeMs?: number;
  readonly maxOutputTokens?: number;
  /** Ends the observation, and leaves the program running. */
  readonly signal?: AbortSignal;
}

/** Calls that come this soon after each other are put to a person together. */
const ASKED_TOGETHER_MS = 10;

/** The decision about one call: true, or why not. Every other value is a refusal. */
function decision(decided: unknown, index: number): true | string {
  const refused = "the call was not approved";
  try {
    const own: unknown = Array.isArray(decided) ? decided[index] : decided;
    if (own === true) return true;
    const { allow, reason } = own as { allow?: unknown; reason?: unknown };
    if (allow === true) return true;
    return typeof reason === "string" ? reason : refused;
  } catch {
    return refused;
  }
}

let sessions = 0;
let execs = 0;

/** One agent's programs, and the values that they store. */
export class Session implements SessionHandler {
  readonly #wire: Wire;
  readonly #id = `s${++sessions}`;
  readonly #options: SessionOptions;
  readonly #tools = new Map<string, Tool<any>>();
  /** What `enabled_tools` of every exec is, in JSON. */
  #definitions = "[]";
  #asked: { call: ToolContext; decide(decision: true | string): void }[] = [];
  #isOpen = false;
  #lost: HostLostError | undefined;

  /** The text for a model, about the tool by which it runs programs. */
  instructions = "";

  /** @internal */
  constructor(wire: Wire, options: SessionOptions) {
    this.#wire = wire;
    this.#options = options;
  }

  /** @internal */
  async open(): Promise<this> {
    const { tools = {}, stored = {}, limits = {}, checkInputs = true, requireReadableSchemas = false } = this.#options;
    for (const [name, tool] of Object.entries(tools)) this.#tools.set(`${tool.namespace ?? ""}\0${name}`, tool);
    const definitions = await Promise.all(Object.entries(tools).map(([name, tool]) => definition(name, tool)));
    this.#definitions = toJson(definitions);
    this.#wire.register(this.#id, this);
    this.#isOpen = true;
    const events = this.#options.onEvent !== undefined;
    const guided = { checkInputs, requireReadableSchemas, stored, limits, events };
    const opened = this.#request({ method: "session/open", sessionId: this.#id, guided });
    const described = this.#request({
      method: "session/describe",
      sessionId: this.#id,
      enabledTools: definitions,
      ...(this.#options.instructionsTokens !== undefined && { budgetTokens: this.#options.instructionsTokens }),
    });
    const [, description] = await Promise.all([opened, described]);
    this.instructions = description["text"];
    return this;
  }

  async #request(request: Record<string, unknown>): Promise<Record<string, any>> {
    return this.#wire.request(request).answer;
  }

  #check(): void {
    if (this.#lost) throw this.#lost;
    if (!this.#isOpen) throw new RequestError("the session is closed");
  }

  /** Runs a program until it ends or `yieldTimeMs` is over. */
  async exec(code: string, options: ExecOptions = {}): Promise<CellResult> {
    this.#check();
    const { signal, constants = {}, traceparent, tracestate } = options;
    signal?.throwIfAborted();
    const request = toJson({
      tool_call_id: options.toolCallId ?? `exec-${++execs}`,
      source: code,
      yield_time_ms: options.yieldTimeMs ?? 10_000,
      max_output_tokens: options.maxOutputTokens ?? null,
      guided: { constants, ...(traceparent && { traceparent }), ...(tracestate && { tracestate }) },
    });
    const execute = `{"method":"session/execute","sessionId":"${this.#id}","request":{"enabled_tools":${this.#definitions},${request.slice(1)}}`;
    let cell: string | undefined;
    const stop = () => {
      if (cell !== undefined) void this.terminate(cell).catch(() => {});
    };
    const { answer } = this.#wire.request(execute, (started) => {
      cell = started["cellId"];
      if (signal?.aborted) stop();
    });
    signal?.addEventListener("abort", stop, { once: true });
    try {
      return result(await answer);
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Waits for more of a program that is still running. */
  async wait(cellId: string, options: WaitOptions = {}): Promise<CellResult> {
    this.#check();
    const { id, answer } = this.#wire.request({
      method: "session/wait",
      sessionId: this.#id,
      request: { cell_id: cellId, yield_time_ms: options.yieldTimeMs ?? 10_000 },
      maxOutputTokens: options.maxOutputTokens ?? null,
    });
    const { signal } = options;
    const stop = () => this.#wire.yieldNow(id);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    try {
      return this.#outcome(await answer);
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  /** Runs a program to its end, however often it yields. */
  async run(code: string, options: ExecOptions = {}): Promise<CellResult> {
    let last = await this.exec(code, options);
    const observed = [last];
    const { signal } = options;
    const stop = () => void this.terminate(last.cellId).catch(() => {});
    signal?.addEventListener("abort", stop, { once: true });
    if (signal?.aborted && last.status === "running") stop();
    try {
      while (last.status === "running") {
        last = await this.wait(last.cellId);
        observed.push(last);
      }
    } finally {
      signal?.removeEventListener("abort", stop);
    }
    return joined(observed);
  }

  /** Stops a program, and waits until it has stopped. */
  async terminate(cellId: string): Promise<CellResult> {
    this.#check();
    return this.#outcome(await this.#request({ method: "session/terminate", sessionId: this.#id, cellId }));
  }

  #outcome(answer: Record<string, any>): CellResult {
    return result(Object.values(answer["outcome"])[0] as Record<string, unknown>);
  }

  /** The values that programs have stored. */
  async stored(): Promise<Record<string, Json>> {
    this.#check();
    return (await this.#request({ method: "session/stored", sessionId: this.#id }))["values"];
  }

  /** Lets the deadlines of one program, or of all, stand still until the returned function is called. */
  async pause(cellId?: string): Promise<() => Promise<void>> {
    this.#check();
    const about = { sessionId: this.#id, ...(cellId !== undefined && { cellId }) };
    await this.#request({ method: "session/pause", ...about });
    let isHeld = true;
    return async () => {
      if (!isHeld || !this.#isOpen) return;
      isHeld = false;
      // A program that has ended meanwhile needs no resuming.
      await this.#request({ method: "session/resume", ...about }).catch(() => {});
    };
  }

  /** Stops every program, and forgets the stored values. */
  async close(): Promise<void> {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    try {
      await this.#request({ method: "session/shutdown", sessionId: this.#id });
    } catch (error) {
      if (!(error instanceof HostLostError)) throw error;
    } finally {
      this.#wire.forget(this.#id);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @internal */
  async call(invocation: Record<string, any>, signal: AbortSignal): Promise<string> {
    const { name, namespace } = invocation["tool_name"];
    const tool = this.#tools.get(`${namespace ?? ""}\0${name}`);
    if (!tool) return failed(new ToolError(`the tool ${name} does not exist`));
    const context: ToolContext = {
      name,
      input: invocation["input"],
      cellId: invocation["cell_id"],
      callId: invocation["runtime_tool_call_id"],
      toolCallId: invocation["call_id"],
      site: invocation["site"],
      traceparent: invocation["traceparent"],
      tracestate: invocation["tracestate"],
      signal,
    };
    try {
      if (await this.#needsApproval(tool, context)) {
        const decision = await this.#ask(context);
        if (decision !== true) throw new ToolError(decision, { failure: "blocked" });
      }
    } catch (error) {
      return failed(error);
    }
    return run(tool, context);
  }

  async #needsApproval(tool: Tool<any>, context: ToolContext): Promise<boolean> {
    const { needsApproval } = tool;
    const needs = typeof needsApproval === "function" ? await needsApproval(context.input) : needsApproval;
    if (needs === true && !this.#options.approve) {
      throw new ToolError("the call needs an approval, and this session has no `approve`", { failure: "blocked" });
    }
    return this.#options.approve !== undefined && needs !== false;
  }

  /** Asks about this call, together with those that come in the same moment. */
  async #ask(call: ToolContext): Promise<true | string> {
    const resume = await this.pause(call.cellId);
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
      decided = await this.#options.approve!(asked.map(({ call }) => call));
    } catch (error) {
      decided = { allow: false, reason: `the approval failed: ${messageOf(error)}` };
    }
    asked.forEach(({ decide }, index) => decide(decision(decided, index)));
  }

  /** @internal */
  notify(text: string, cellId: string): void {
    this.event({ type: "notification", text, cell_id: cellId });
  }

  /** @internal */
  event(event: Record<string, any>): void {
    // What an observer throws is its own, now or later.
    try {
      const seen: unknown = this.#options.onEvent?.(event as SessionEvent);
      if (seen instanceof Promise) seen.catch(() => {});
    } catch {}
  }

  /** @internal */
  cellClosed(cellId: string): void {
    this.event({ type: "cell/closed", cell_id: cellId });
  }

  /** @internal */
  lost(error: HostLostError): void {
    this.#lost = error;
    this.#isOpen = false;
  }
}
