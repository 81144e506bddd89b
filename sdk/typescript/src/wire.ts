// One connection to a host: `code-mode serve --listen stdio`, and the wire it speaks.
import { spawn, type ChildProcess } from "node:child_process";
import type { Readable, Writable } from "node:stream";

import { HostLostError, RequestError, StartError } from "./errors.js";
import { failed, messageOf } from "./tools.js";

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type Message = Record<string, any>;

/** What a session does with the messages that are for it. */
export interface SessionHandler {
  /** The answer, in JSON. */
  call(invocation: Message, signal: AbortSignal): Promise<string>;
  notify(text: string, cellId: string): void;
  event(event: Message): void;
  cellClosed(cellId: string): void;
  lost(error: HostLostError): void;
}

interface Pending {
  resolve(value: Message): void;
  reject(error: Error): void;
  /** An execute has two answers. */
  first?: (value: Message) => void;
}

const LARGEST_FRAME = 64 * 1024 * 1024;
/** How long a host may take for its greeting. */
const GREETING_MS = 10_000;
const CAPABILITIES = ["bounded-output-v1", "delegate-capacity-4096", "guided-sessions-v1"];
/** How much of what the program writes on standard error is kept for an error. */
const LAST_WORDS = 2000;
/** How long a host that has closed its output may take to end by itself, and say why. */
const LAST_WORDS_MS = 500;
/** How long a host may take to end a program or a session. */
const ANSWERING_MS = 15_000;
/** How long a host that is closed may take to end. */
const CLOSING_MS = 5000;

/** @throws RequestError where JSON cannot hold the value. */
export function toJson(value: unknown): string {
  try {
    return JSON.stringify(value);
  } catch (error) {
    throw new RequestError(`it is not JSON: ${messageOf(error)}`);
  }
}

/** Half of a surrogate pair as JSON writes it, or an escaped backslash, after which it is only text. */
const HALF_PAIR = /\\\\|\\ud[89a-f][0-9a-f]{2}/g;

/** JSON in which a replacement character takes the place of half a surrogate pair, which no text has. */
function wellFormed(json: string): string {
  return json.includes("\\ud") ? json.replace(HALF_PAIR, (found) => (found === "\\\\" ? found : "\ufffd")) : json;
}

export interface WireOptions {
  program: string;
  args: string[];
  env: NodeJS.ProcessEnv;
}

export class Wire {
  readonly #child: ChildProcess;
  readonly #program: string;
  readonly #input: Writable;
  readonly #output: Readable & { ref?(): void; unref?(): void };
  readonly #pending = new Map<number, Pending>();
  readonly #calls = new Map<number, AbortController>();
  readonly #sessions = new Map<string, SessionHandler>();
  #chunks: Buffer[] = [];
  #buffered = 0;
  #wanted = 0;
  #lastId = 0;
  #said = "";
  #lost: HostLostError | undefined;
  #isClosing = false;
  #isReady = false;
  /** Whether the host keeps this process running now. A new process does. */
  #isWatched = true;
  #ready!: (message: Message) => void;
  #failed!: (error: Error) => void;
  /** Ends when the process has ended. */
  readonly ended: Promise<void>;

  private constructor({ program, args, env }: WireOptions) {
    try {
      this.#child = spawn(program, ["serve", "--listen", "stdio", ...args], {
        env,
        stdio: ["pipe", "pipe", "pipe"],
        // A Ctrl-C at the terminal is the agent's; the host ends with its input.
        detached: process.platform !== "win32",
      });
    } catch (error) {
      throw new StartError(`${program} does not start: ${messageOf(error)}`);
    }
    const { stdin, stdout, stderr } = this.#child;
    if (!stdin || !stdout || !stderr) {
      // The error comes as an event too, which nobody else would take.
      this.#child.on("error", () => {});
      throw new StartError(`${program} does not start: the system gives no pipes (are too many files open?)`);
    }
    this.#program = program;
    this.#input = stdin;
    this.#output = stdout;
    this.#input.on("error", () => {});
    this.#output.on("data", (chunk: Buffer) => this.#read(chunk));
    this.#output.once("end", () => {
      // Without its output the host is of no use, also where its process lives on.
      setTimeout(() => this.#breaks("it has closed its output"), LAST_WORDS_MS).unref();
    });
    stderr.setEncoding("utf8");
    stderr.on("data", (text: string) => {
      this.#said = (this.#said + text).slice(-LAST_WORDS);
    });
    this.ended = new Promise((resolve) => {
      this.#child.once("error", (error) => {
        this.#lose(error.message);
        resolve();
      });
      this.#child.once("close", (code, signal) => {
        const said = this.#said.trim();
        const how = signal ? `it was ended by ${signal}` : `it ended with status ${code}`;
        this.#lose(said ? `${how}: ${said}` : how);
        resolve();
      });
    });
  }

  /** Starts a host and agrees with it on what both can. */
  static async start(options: WireOptions): Promise<Wire> {
    const wire = new Wire(options);
    let late: NodeJS.Timeout | undefined;
    try {
      const answer = await new Promise<Message>((resolve, reject) => {
        wire.#ready = resolve;
        wire.#failed = reject;
        late = setTimeout(() => reject(new StartError(`${options.program} does not greet: it is not code-mode`)), GREETING_MS);
        wire.#send({
          type: "connection/hello",
          supportedVersions: [1],
          requiredCapabilities: CAPABILITIES,
        });
      });
      if (answer["type"] !== "connection/ready") {
        const why = JSON.stringify(answer["reason"] ?? "it does not answer the greeting");
        throw new StartError(`${options.program} is not a code-mode that this SDK can use: ${why}`);
      }
      return wire;
    } catch (error) {
      wire.close();
      wire.#child.kill("SIGKILL");
      throw error;
    } finally {
      clearTimeout(late);
      wire.#failed = () => {};
      wire.#isReady = true;
      wire.#watch();
    }
  }

  get isLost(): boolean {
    return this.#lost !== undefined || this.#isClosing;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** While nothing is pending, the host keeps no program of its user running. */
  #watch(): void {
    const isWanted = this.#pending.size > 0 || this.#calls.size > 0 || this.#isClosing || !this.#isReady;
    if (isWanted === this.#isWatched) return;
    this.#isWatched = isWanted;
    const streams = [this.#input, this.#output, this.#child.stderr] as { destroyed?: boolean; ref?(): void; unref?(): void }[];
    for (const one of [this.#child, ...streams.filter((stream) => !stream.destroyed)]) {
      if (isWanted) one.ref?.();
      else one.unref?.();
    }
  }

  register(session: string, handler: SessionHandler): void {
    this.#sessions.set(session, handler);
  }

  forget(session: string): void {
    this.#sessions.delete(session);
  }

  /** Sends a request, or the JSON of one. `first` gets the first of two answers; the promise is of the last. */
  request(request: Message | string, first?: (value: Message) => void): { id: number; answer: Promise<Message> } {
    const id = ++this.#lastId;
    const answer = new Promise<Message>((resolve, reject) => {
      if (this.#lost || this.#isClosing) {
        reject(this.#lost ?? new HostLostError("the host is closed"));
        return;
      }
      const pending: Pending = first ? { resolve, reject, first } : { resolve, reject };
      const text = typeof request === "string" ? request : toJson(request);
      const refused = this.#sendText(`{"type":"operation/request","id":${id},"request":${text}}`);
      if (refused) {
        reject(refused);
        return;
      }
      this.#pending.set(id, pending);
      this.#watch();
    });
    return { id, answer };
  }

  /** Ends the observation that a request holds. */
  yieldNow(id: number): void {
    if (!this.isLost) this.#send({ type: "operation/yield", id });
  }

  /** The answer of a request that a host which works gives soon; a host that does not is lost. */
  async soon(answer: Promise<Message>, limitMs = ANSWERING_MS): Promise<Message> {
    let late: NodeJS.Timeout | undefined;
    const timeOut = new Promise<never>((_, reject) => {
      late = setTimeout(() => {
        this.#breaks("it does not answer");
        reject(this.#lost ?? new HostLostError("the host does not answer"));
      }, limitMs);
    });
    try {
      return await Promise.race([answer, timeOut]);
    } finally {
      clearTimeout(late);
    }
  }

  /** Ends the host with everything in it. */
  close(): void {
    if (this.#isClosing) return;
    this.#isClosing = true;
    this.#input.end();
    setTimeout(() => this.#child.kill("SIGKILL"), CLOSING_MS).unref();
    this.#failAll(new HostLostError("the host was closed"));
  }

  /** Nothing more comes from the host: ends all that waits for it. */
  #failAll(lost: HostLostError): void {
    for (const { reject } of this.#pending.values()) reject(lost);
    this.#pending.clear();
    for (const call of this.#calls.values()) call.abort(lost);
    for (const session of this.#sessions.values()) session.lost(lost);
    this.#sessions.clear();
    this.#watch();
  }

  #send(message: Message): void {
    this.#sendText(JSON.stringify(message));
  }

  /** Sends a message, unless it is too long for the wire. */
  #sendText(given: string): RequestError | undefined {
    const text = wellFormed(given);
    const length = Buffer.byteLength(text);
    if (length > LARGEST_FRAME) return new RequestError(`${length} bytes are more than a message of 64 MiB`);
    const frame = Buffer.allocUnsafe(4 + length);
    frame.writeUInt32LE(length);
    frame.write(text, 4);
    this.#input.write(frame);
    return undefined;
  }

  #read(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#buffered += chunk.length;
    for (;;) {
      if (this.#wanted === 0) {
        if (this.#buffered < 4) return;
        const header = this.#take(4);
        this.#wanted = header.readUInt32LE();
        if (this.#wanted > LARGEST_FRAME) {
          return this.#breaks(`it sent bytes that are not a message of the wire: they begin with ${JSON.stringify(header.toString("latin1"))}`);
        }
      }
      if (this.#buffered < this.#wanted) return;
      const content = this.#take(this.#wanted);
      this.#wanted = 0;
      try {
        this.#receive(JSON.parse(content.toString("utf8")));
      } catch {
        return this.#breaks("it sent bytes that are not a message of the wire");
      }
    }
  }

  #breaks(how: string): void {
    this.#child.kill("SIGKILL");
    this.#chunks = [];
    this.#buffered = 0;
    this.#lose(how);
  }

  #take(count: number): Buffer {
    let all = this.#chunks[0]!;
    if (all.length < count) {
      all = Buffer.concat(this.#chunks);
      this.#chunks = [all];
    }
    const rest = all.subarray(count);
    if (rest.length > 0) this.#chunks[0] = rest;
    else this.#chunks.shift();
    this.#buffered -= count;
    return all.subarray(0, count);
  }

  #receive(message: Message): void {
    switch (message["type"]) {
      case "operation/response":
      case "execute/initialResponse":
        return this.#answered(message);
      case "delegate/request":
        this.#called(message).catch(() => this.#breaks("it sent bytes that are not a message of the wire"));
        return;
      case "delegate/cancel":
        this.#calls.get(message["id"])?.abort(new Error("the call was cancelled"));
        // A tool that does not stop keeps nobody's program running.
        this.#calls.delete(message["id"]);
        return this.#watch();
      case "cell/closed":
        return this.#sessions.get(message["sessionId"])?.cellClosed(message["cellId"]);
      case "session/event":
        return this.#sessions.get(message["sessionId"])?.event(message["event"]);
      default:
        if (this.#isReady) throw new TypeError("an unknown message");
        this.#ready(message);
    }
  }

  #answered(message: Message): void {
    const pending = this.#pending.get(message["id"]);
    if (!pending) return;
    const { status, value, message: why } = message["result"];
    if (status !== "ok" && typeof why !== "string") throw new TypeError("a response without a result");
    if (status === "ok" && pending.first && message["type"] === "operation/response") {
      const { first } = pending;
      delete pending.first;
      return first(value);
    }
    this.#pending.delete(message["id"]);
    if (status === "ok") pending.resolve(value);
    else pending.reject(new RequestError(why));
    this.#watch();
  }

  async #called(message: Message): Promise<void> {
    const { id, sessionId, request } = message as { id: number; sessionId: string; request: Message };
    const session = this.#sessions.get(sessionId);
    const answer = (result: string) => {
      if (this.isLost) return;
      const refused = this.#sendText(`{"type":"delegate/response","id":${id},"result":${result}}`);
      if (refused) this.#sendText(`{"type":"delegate/response","id":${id},"result":${failed(refused)}}`);
    };
    if (!session) return answer(failed(new Error("the session is closed")));
    if (request["type"] === "notification/send") {
      session.notify(request["text"], request["cellId"]);
      return answer('{"status":"ok","value":{"type":"notification/delivered"}}');
    }
    const controller = new AbortController();
    this.#calls.set(id, controller);
    this.#watch();
    const result = await session.call(request["invocation"], controller.signal).catch(failed);
    this.#calls.delete(id);
    // Nobody waits for the answer to a cancelled call.
    if (!controller.signal.aborted) answer(result);
    this.#watch();
  }

  #lose(how: string): void {
    if (this.#lost) return;
    const lost = new HostLostError(`the host was lost: ${how}`);
    this.#lost = lost;
    this.#failed?.(new StartError(`${this.#program} does not start as a host: ${how}`));
    this.#failAll(lost);
  }
}
