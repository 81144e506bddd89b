/**
 * A host as an `IsolateDriver` of `@tanstack/ai-code-mode`: its users swap QuickJS for a sandboxed process.
 *
 * @module
 */
import type { CodeMode } from "../index.js";
import type { Tool } from "../tools.js";
import { runForValue } from "./value.js";

interface Binding {
  readonly name: string;
  readonly description: string;
  readonly execute: (input: unknown) => Promise<unknown>;
}

/** A driver whose contexts run their programs in sessions of this host. */
export function codeModeDriver(host: CodeMode) {
  return {
    async createContext(config: { bindings: Record<string, Binding>; timeout?: number; memoryLimit?: number }) {
      const tools: Record<string, Tool> = {};
      for (const [name, { description, execute }] of Object.entries(config.bindings)) {
        tools[name] = { description, execute: (input: unknown) => execute(input) };
      }
      const names = Object.keys(tools).map((name) => `const ${name} = (input) => tools.${name}(input);`);
      const limits = {
        maxWallTimeMs: config.timeout ?? 30_000,
        maxHeapBytes: (config.memoryLimit ?? 128) * 1024 * 1024,
      };
      const disposed = new AbortController();
      return {
        async execute<T = unknown>(code: string) {
          if (disposed.signal.aborted) return { success: false, error: { name: "DisposedError", message: "the context was disposed of" } };
          const program = `${names.join("\n")}\nawait code_mode_return(await (async () => {\n${code}\n})());`;
          const { value, error, logs } = await runForValue(host, program, tools, limits, disposed.signal);
          if (!error) return { success: true, value: value as T, logs };
          const name = error.kind === "limit" ? "LimitError" : "Error";
          return { success: false, error: { name, message: error.message, code: error.kind }, logs };
        },
        /** Terminates what still runs in it. */
        async dispose() {
          disposed.abort();
        },
      };
    },
  };
}
