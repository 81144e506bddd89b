#!/usr/bin/env node
// Starts the program, with this command's arguments and streams; signals and the exit status pass
// through.
import { spawn } from "node:child_process";
import { constants } from "node:os";

import { findProgram } from "../dist/index.js";

let program;
try {
  program = findProgram();
} catch (error) {
  console.error(`code-mode: ${error.message}`);
  process.exit(127);
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit" });
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"]) {
  process.on(signal, () => child.kill(signal));
}
child.on("error", (error) => {
  console.error(`code-mode: ${program}: ${error.message}`);
  process.exit(126);
});
child.on("close", (code, signal) => {
  if (signal === null) process.exit(code ?? 1);
  process.removeAllListeners(signal);
  process.kill(process.pid, signal);
  // Where the signal does not end this process, its number does.
  process.exitCode = 128 + (constants.signals[signal] ?? 0);
});
