import { Approvals, type Approve, type KeptQuestions } from "./approvals.js";
import { HostLostError, RequestError, ToolError } from "./errors.js";
import { event, type SessionEvent } from "./events.js";
import { joined, result, type CellResult } from "./results.js";
import { definition, failed, inputOf, run, type Tool, type ToolContext, type Tools } from "./tools.js";
import { toJson, type Json, type SessionHandler, type Wire } from "./wire.js";

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
   * (`true`, `false`, or a reason why not) or for each. Clocks of their programs stand still meanwhile.
   */
  readonly approve?: Approve;
  /** Told of cells and calls, and of notifications of programs. */
  readonly onEvent?: (event: SessionEvent) => void;
  /** Values that programs find stored. */
  readonly stored?: Readonly<Record<string, Json>>;
  /**
   * The name by which the session is kept in the host's journal, and continues after whatever ended its
   * process: its programs, stored values and questions. Closing it then leaves its programs to whoever opens
   * it next; `cells` names them. Default: it is kept nowhere.
   */
  readonly durable?: string;
  readonly limits?: Limits;
  /** Whether inputs are checked against the schemas before a tool runs. Default true. */
  readonly checkInputs?: boolean;
  /** Whether a tool whose schema cannot be read is left out. Default false: its inputs are not checked. */
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
  /**
   * Terminates the program when it is aborted, also after `exec` has returned `running`; a pending
   * `exec` or `wait` then gives `terminated`. `exec` throws where it was aborted before.
   */
  readonly signal?: AbortSignal;
  /** The span that the program descends from, as W3C Trace Context has it. */
  readonly traceparent?: string;
  readonly tracestate?: string;
}

export interface WaitOptions {
  readonly yieldTimeMs?: number;
  readonly maxOutputTokens?: number;
  /** Ends the observation, which gives `running` then, and leaves the program running. */
  readonly signal?: AbortSignal;
}

/** About how many characters a token has, as the host counts when it cuts output. */
const TOKEN_CHARACTERS = 4;

/** How long a host may take to open a session: it may have to start processes on a busy machine. */
const OPENING_MS = 60_000;

/** How long an observation lasts. */
function milliseconds(given = 10_000): number {
  if (!Number.isSafeInteger(given) || given < 0) throw new RequestError(`yieldTimeMs is a whole number, and not ${given}`);
  return given;
}

let sessions = 0;
let execs = 0;

/** One agent's programs, and the values that they store. */
export class Session {
  readonly #wire: Wire;
  readonly #id = `s${++sessions}`;
  readonly #options: SessionOptions;
  readonly #tools = new Map<string, Tool<any>>();
  /** What `enabled_tools` of every exec is, in JSON. */
  #definitions = "[]";
  readonly #approvals: Approvals;
  /** The running cells of each exec with a signal, and how this session listens to it: once. */
  readonly #listening = new Map<AbortSignal, { cells: Set<string>; stop(): void }>();
  #instructions = "";
  #isOpen = false;
  #lost: HostLostError | undefined;

  /** @internal */
  constructor(wire: Wire, options: SessionOptions) {
    this.#wire = wire;
    this.#options = options;
    this.#approvals = new Approvals(options.approve, (cellId) => this.pause(cellId), options.durable === undefined ? undefined : this.#kept());
  }

  /** The text for a model: how it writes programs for a tool that runs them, and which tools they have. */
  get instructions(): string {
    return this.#instructions;
  }

  /** @internal */
  async open(): Promise<this> {
    const { tools = {}, stored = {}, limits = {}, checkInputs = true, requireReadableSchemas = false, durable } = this.#options;
    const named = Object.entries(tools).map(([key, tool]) => [tool.name ?? key, tool] as const);
    for (const [name, tool] of named) {
      const key = `${tool.namespace ?? ""}\0${name}`;
      if (this.#tools.has(key)) throw new RequestError(`two tools have the name ${name}`);
      this.#tools.set(key, tool);
    }
    const definitions = await Promise.all(named.map(([name, tool]) => definition(name, tool)));
    this.#definitions = toJson(definitions);
    this.#wire.register(this.#id, this.#handler());
    this.#isOpen = true;
    for (const [name, limit] of Object.entries(limits)) {
      if (limit !== undefined && !(Number.isFinite(limit) && limit >= 0)) throw new RequestError(`the limit ${name} is a number, and not ${limit}`);
    }
    const events = this.#options.onEvent !== undefined;
    const guided = { checkInputs, requireReadableSchemas, stored, limits, events, ...(durable !== undefined && { durable }) };
    const opened = this.#request({ method: "session/open", sessionId: this.#id, guided });
    const described = this.#request({
      method: "session/describe",
      sessionId: this.#id,
      enabledTools: definitions,
      ...(this.#options.instructionsTokens !== undefined && { budgetTokens: this.#options.instructionsTokens }),
    });
    const [open, description] = await Promise.allSettled([this.#wire.soon(opened, OPENING_MS), this.#wire.soon(described, OPENING_MS)]);
    if (open.status === "rejected") this.#forget();
    else if (description.status === "rejected") await this.close();
    if (open.status === "rejected") throw open.reason;
    if (description.status === "rejected") throw description.reason;
    this.#instructions = description.value["text"];
    return this;
  }

  #forget(): void {
    this.#isOpen = false;
    this.#wire.forget(this.#id);
    for (const [signal, { stop }] of this.#listening) signal.removeEventListener("abort", stop);
    this.#listening.clear();
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
      yield_time_ms: milliseconds(options.yieldTimeMs),
      max_output_tokens: options.maxOutputTokens ?? null,
      guided: { constants, ...(traceparent && { traceparent }), ...(tracestate && { tracestate }) },
    });
    const execute = `{"method":"session/execute","sessionId":"${this.#id}","request":{"enabled_tools":${this.#definitions},${request.slice(1)}}`;
    const { answer } = this.#wire.request(execute, (started) => {
      if (signal) this.#listen(signal, started["cellId"]);
    });
    return result(await answer);
  }

  /** Terminates a cell when a signal is aborted, until the cell is closed. */
  #listen(signal: AbortSignal, cell: string): void {
    const end = (one: string) => {
      // A host that does not answer is lost, so that the caller of `run` gets an error.
      if (this.#isOpen) void this.#wire.soon(this.#request({ method: "session/terminate", sessionId: this.#id, cellId: one })).catch(() => {});
    };
    if (signal.aborted) return end(cell);
    let listening = this.#listening.get(signal);
    if (!listening) {
      const cells = new Set<string>();
      listening = { cells, stop: () => cells.forEach(end) };
      this.#listening.set(signal, listening);
      signal.addEventListener("abort", listening.stop, { once: true });
    }
    listening.cells.add(cell);
  }

  #closed(cell: string): void {
    for (const [signal, { cells, stop }] of this.#listening) {
      cells.delete(cell);
      if (cells.size > 0) continue;
      signal.removeEventListener("abort", stop);
      this.#listening.delete(signal);
    }
  }

  /** Waits for more of a program that is still running. */
  async wait(cellId: string, options: WaitOptions = {}): Promise<CellResult> {
    this.#check();
    const { id, answer } = this.#wire.request({
      method: "session/wait",
      sessionId: this.#id,
      request: { cell_id: cellId, yield_time_ms: milliseconds(options.yieldTimeMs) },
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

  /** Runs a program to its end, however often it yields. `maxOutputTokens` is for all of its output. */
  async run(code: string, options: ExecOptions = {}): Promise<CellResult> {
    let last = await this.exec(code, options);
    const observed = [last];
    const { maxOutputTokens } = options;
    let left = maxOutputTokens;
    while (last.status === "running") {
      if (left !== undefined) {
        // Each text has a line, also an empty one.
        const characters = last.content.reduce((sum, item) => sum + (item.type === "text" ? item.text.length + 1 : 0), 0);
        left = Math.max(0, left - Math.ceil(characters / TOKEN_CHARACTERS));
      }
      last = await this.wait(last.cellId, left === undefined ? {} : { maxOutputTokens: left });
      // It was terminated by the signal before this wait.
      if (last.error?.kind === "missing" && options.signal?.aborted) last = { ...last, status: "terminated", error: undefined };
      observed.push(last);
    }
    return joined(observed);
  }

  /** Stops a program, and waits until it has stopped. */
  async terminate(cellId: string, options: Pick<WaitOptions, "maxOutputTokens"> = {}): Promise<CellResult> {
    this.#check();
    const maxOutputTokens = options.maxOutputTokens ?? null;
    return this.#outcome(await this.#request({ method: "session/terminate", sessionId: this.#id, cellId, maxOutputTokens }));
  }

  #outcome(answer: Record<string, any>): CellResult {
    return result(Object.values(answer["outcome"])[0] as Record<string, unknown>);
  }

  /**
   * The programs that have not ended, or whose result nobody has taken: in a durable session also those of
   * an earlier process, for `wait`.
   */
  async cells(): Promise<string[]> {
    this.#check();
    return (await this.#request({ method: "session/cells", sessionId: this.#id }))["cells"];
  }

  /** Where the questions of a durable session are kept. */
  #kept(): KeptQuestions {
    const about = (call: ToolContext) => ({ sessionId: this.#id, cellId: call.cellId, runtimeToolCallId: call.callId });
    return {
      definition: (call) => this.#definitionOf(call),
      asked: async (call, subject, text) =>
        (await this.#request({ method: "session/ask", ...about(call), subject, text }))["allowed"] ?? undefined,
      decided: async (call, allowed) => (await this.#request({ method: "session/decide", ...about(call), allowed }))["allowed"] === true,
    };
  }

  /** The definition of a call's tool, in JSON. */
  #definitionOf(call: ToolContext): string {
    const all: { tool_name: { name: string; namespace: string | null } }[] = JSON.parse(this.#definitions);
    const own = all.find(({ tool_name: { name, namespace } }) => name === call.name && (namespace ?? undefined) === call.namespace);
    return toJson(own ?? null);
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
      await this.#wire.soon(this.#request({ method: "session/shutdown", sessionId: this.#id }));
    } catch (error) {
      if (!(error instanceof HostLostError)) throw error;
    } finally {
      this.#forget();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** What the connection tells this session. */
  #handler(): SessionHandler {
    return {
      call: (invocation, signal) => this.#call(invocation, signal),
      notify: (text, cellId) => this.#tell({ type: "notification", text, cellId }),
      event: (wire) => this.#tell(event(wire)),
      cellClosed: (cellId) => {
        this.#closed(cellId);
        this.#tell({ type: "cell/closed", cellId });
      },
      lost: (error) => {
        this.#lost = error;
        this.#forget();
      },
    };
  }

  /** Runs a tool; the answer is JSON. */
  async #call(invocation: Record<string, any>, signal: AbortSignal): Promise<string> {
    const { name, namespace } = invocation["tool_name"];
    try {
      const tool = this.#tools.get(`${namespace ?? ""}\0${name}`);
      if (!tool) throw new ToolError(`the tool ${name} does not exist`);
      const context: ToolContext = {
        name,
        namespace: namespace ?? undefined,
        // Whoever decides about the call sees what the tool will get.
        input: await inputOf(tool, invocation["input"]),
        cellId: invocation["cell_id"],
        callId: invocation["runtime_tool_call_id"],
        toolCallId: invocation["call_id"],
        site: invocation["site"],
        traceparent: invocation["traceparent"],
        tracestate: invocation["tracestate"],
        attempt: invocation["attempt"] ?? 1,
        signal,
      };
      await this.#approvals.check(tool, context);
      // Nobody waits for it any more: the cell has ended, or the host.
      if (signal.aborted) throw new ToolError("the call was cancelled");
      return await run(tool, context);
    } catch (error) {
      return failed(error);
    }
  }

  #tell(happened: SessionEvent | undefined): void {
    if (!happened) return;
    // What an observer throws is its own, now or later.
    try {
      const seen: unknown = this.#options.onEvent?.(happened);
      if (seen instanceof Promise) seen.catch(() => {});
    } catch {}
  }
}
