/** The program `code-mode` was not found, or did not start. */
export class StartError extends Error {
  override name = "StartError";
}

/**
 * The host's process ended, or was closed, while something still waited for it. Every call that
 * was pending fails with it; the next session starts a new host.
 */
export class HostLostError extends Error {
  override name = "HostLostError";
}

/** The host refused a request: a session that is closed, a limit, a wait for a cell that another wait observes. */
export class RequestError extends Error {
  override name = "RequestError";
}

/**
 * Thrown by a tool, it reaches the program as an Error with this message, and with `code` and `data`.
 * Any other error reaches it with its message alone.
 */
export class ToolError extends Error {
  override name = "ToolError";
  /** A number by which a program can tell errors apart. */
  readonly code: number | undefined;
  /** Anything else a program may want to know, as JSON. */
  readonly data: unknown;
  /** What became of the call: it failed, somebody did not let it run, or it may have run. */
  readonly failure: "failed" | "blocked" | "unknown";

  constructor(
    message: string,
    options: { code?: number; data?: unknown; failure?: "failed" | "blocked" | "unknown" } = {},
  ) {
    super(message);
    this.code = options.code;
    this.data = options.data;
    this.failure = options.failure ?? "failed";
  }
}
