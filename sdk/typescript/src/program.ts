// Where the program is.
import { accessSync, constants, statSync } from "node:fs";
import { createRequire } from "node:module";
import { delimiter, join } from "node:path";

import { StartError } from "./errors.js";

/** The packages that carry the program: one line for each platform. */
const PACKAGES: Record<string, string> = {
  "linux-x64": "code-mode-linux-x64",
};

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** The program in the package for this platform, where that is installed. */
function ofPackage(name: string): string | undefined {
  try {
    return createRequire(import.meta.url).resolve(`${name}/bin/code-mode`);
  } catch {
    return undefined;
  }
}

/**
 * The path of the program `code-mode`: what `CODE_MODE_BIN` names, the package for this platform,
 * or the first one on `PATH`.
 *
 * @throws StartError, which says where it looked.
 */
export function findProgram(): string {
  const looked: string[] = [];
  const named = process.env["CODE_MODE_BIN"];
  if (named) {
    if (isProgram(named)) return named;
    throw new StartError(`CODE_MODE_BIN names ${named}, which is not a program`);
  }
  looked.push("CODE_MODE_BIN is not set");
  const platform = `${process.platform}-${process.arch}`;
  const name = PACKAGES[platform];
  if (name) {
    const path = ofPackage(name);
    if (path && isProgram(path)) return path;
    looked.push(`the package ${name} is not installed`);
  } else {
    looked.push(`there is no package for ${platform}`);
  }
  for (const folder of (process.env["PATH"] ?? "").split(delimiter)) {
    const path = join(folder || ".", process.platform === "win32" ? "code-mode.exe" : "code-mode");
    // A launcher of this package would find itself.
    if (isProgram(path) && !path.includes("node_modules")) return path;
  }
  looked.push("no code-mode is on PATH");
  throw new StartError(`the program code-mode was not found: ${looked.join("; ")}`);
}
