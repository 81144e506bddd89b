//! The program `code-mode`. The library beside this file does the work.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    code_mode_bin::main()
}

#[global_allocator]
static ALLOCATOR: code_mode_bin::LargeBuffers = code_mode_bin::LargeBuffers;
