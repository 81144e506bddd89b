// Programs whose result is a value: what code modes expect whose programs are functions.
import type { CodeMode } from "../index.js";
import type { CellError } from "../results.js";
import type { Limits } from "../session.js";
import type { Tools } from "../tools.js";

/** What a program gave. */
export interface ValueResult {
  readonly value: unknown;
  readonly error: Pick<CellError, "message"> & { readonly kind: string } | undefined;
  readonly logs: string[];
}

const TERMINATED = { message: "the program was terminated", kind: "terminated" };

/** Runs a program that ends with `await code_mode_return(value)` in a session of its own, until `signal` is aborted. */
export async function runForValue(host: CodeMode, program: string, tools: Tools, limits: Limits, signal?: AbortSignal): Promise<ValueResult> {
  let value: unknown;
  const give = { hidden: true, execute: (input: { value?: unknown }) => void (value = input.value) };
  const session = await host.session({ tools: { ...tools, code_mode_return: give }, limits, checkInputs: false });
  try {
    const source = `const code_mode_return = (value) => tools.code_mode_return({ value });\n${program}`;
    const done = await session.run(source, signal && { signal });
    const texts = done.content.filter((item) => item.type === "text");
    const error = done.status === "terminated" ? TERMINATED : done.error;
    return { value, error, logs: texts.map((item) => item.text.replace(/^\[log\] /, "")) };
  } finally {
    await session.close();
  }
}
