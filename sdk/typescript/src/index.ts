/**
 * Runs the programs that a model writes, in sandboxed processes, with your functions as their tools.
 *
 * @module
 */
import { HostLostError } from "./errors.js";
import { findProgram } from "./program.js";
import { Session, type SessionOptions } from "./session.js";
import { Wire } from "./wire.js";

export { HostLostError, RequestError, StartError, ToolError } from "./errors.js";
export { findProgram } from "./program.js";
export type { CellError, CellResult, CellStats, ContentItem } from "./results.js";
export type { InferSchema, JsonSchema, Schema, StandardSchema } from "./schema.js";
export type { Approve, Decision } from "./approvals.js";
export type { SessionEvent } from "./events.js";
export type { ExecOptions, Limits, Session, SessionOptions, WaitOptions } from "./session.js";
export { audio, image, tool } from "./tools.js";
export type { Tool, ToolCall, ToolContext, Tools } from "./tools.js";
export type { Json } from "./wire.js";

export interface HostOptions {
  /** The program. Default: `CODE_MODE_BIN`, the package for this platform, or `PATH`. */
  readonly program?: string;
  /** Refuse to run where a layer of the sandbox is missing. Default false: run with the rest. */
  readonly requireSandbox?: boolean;
  /** A file for durable sessions, of which one host at a time has it open. */
  readonly journal?: string;
  /** Further options of `code-mode serve`. */
  readonly args?: readonly string[];
  /** Environment variables of the host. Default: those of this process. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

/**
 * A host of sessions: one process, which starts a sandboxed one for each session. It ends with this
 * process, however that ends.
 */
export class CodeMode {
  readonly #options: HostOptions;
  #wire: Promise<Wire> | undefined;
  #isClosed = false;

  private constructor(options: HostOptions) {
    this.#options = options;
  }

  /**
   * Starts a host.
   *
   * @throws StartError where there is no program, or it does not start.
   */
  static async start(options: HostOptions = {}): Promise<CodeMode> {
    const host = new CodeMode(options);
    await host.#connection();
    return host;
  }

  /** The host's process; a new one where the last was lost. */
  async #connection(): Promise<Wire> {
    if (this.#isClosed) throw new HostLostError("the host is closed");
    const last = this.#wire;
    const wire = await last?.catch(() => undefined);
    if (this.#isClosed) throw new HostLostError("the host is closed");
    if (wire && !wire.isLost) return wire;
    if (this.#wire === last) {
      const { program, requireSandbox = false, journal, args = [], env = process.env } = this.#options;
      this.#wire = Wire.start({
        program: program ?? findProgram(),
        args: [...(requireSandbox ? ["--require-sandbox"] : []), ...(journal !== undefined ? ["--journal", journal] : []), ...args],
        env,
      });
    }
    return this.#wire!;
  }

  /** The process id of the host. */
  async pid(): Promise<number | undefined> {
    return (await this.#connection()).pid;
  }

  /** Opens a session. Where the host was lost, a new one is started. */
  async session(options: SessionOptions = {}): Promise<Session> {
    return new Session(await this.#connection(), options).open();
  }

  /** Ends the host with all its sessions. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    const wire = await this.#wire?.catch(() => undefined);
    wire?.close();
    await wire?.ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
