/**
 * A host as an `Executor` of `@cloudflare/codemode`: its users swap a Worker for a sandboxed process.
 *
 * @module
 */
import type { CodeMode } from "../index.js";
import type { Limits } from "../session.js";
import type { Tool } from "../tools.js";
import { runForValue } from "./value.js";

type Function = (...args: unknown[]) => Promise<unknown>;

interface Provider {
  readonly name: string;
  readonly fns: Record<string, Function>;
  readonly prelude?: string;
}

/** Runs each program in a session of its own. */
export class CodeModeExecutor {
  readonly #host: CodeMode;
  readonly #limits: Limits;

  constructor(host: CodeMode, limits: Limits = {}) {
    this.#host = host;
    this.#limits = limits;
  }

  /** Runs a function, `async () => ...`, for its value. It never throws: what goes wrong is in `error`. */
  async execute(
    code: string,
    providersOrFns: Provider[] | Record<string, Function>,
  ): Promise<{ result: unknown; error?: string; logs?: string[] }> {
    const providers = Array.isArray(providersOrFns) ? providersOrFns : [{ name: "codemode", fns: providersOrFns }];
    const tools: Record<string, Tool> = {};
    const preludes: string[] = [];
    providers.forEach(({ name, fns, prelude }, at) => {
      const names: Record<string, string> = {};
      Object.entries(fns).forEach(([own, call], index) => {
        const key = `p${at}_${index}`;
        names[own] = key;
        tools[key] = { execute: (input: unknown) => call(...((input as { args: unknown[] }).args ?? [])) };
      });
      preludes.push(
        `const ${name} = Object.fromEntries(Object.entries(${JSON.stringify(names)}).map(([own, key]) => [own, (...args) => tools[key]({ args })]));`,
        prelude ?? "",
      );
    });
    try {
      const program = `${preludes.join("\n")}\nawait code_mode_return(await (${code.trim().replace(/;$/, "")})());`;
      const { value, error, logs } = await runForValue(this.#host, program, tools, this.#limits);
      return { result: value, logs, ...(error && { error: error.message }) };
    } catch (error) {
      return { result: undefined, error: (error as Error).message };
    }
  }
}
