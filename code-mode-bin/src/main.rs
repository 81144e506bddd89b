//! The program `code-mode`. What it does stands in the library beside this file.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    code_mode_bin::main()
}

#[global_allocator]
static ALLOCATOR: code_mode_bin::LargeBuffers = code_mode_bin::LargeBuffers;
