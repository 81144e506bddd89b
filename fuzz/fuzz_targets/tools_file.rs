//! The file of tools that a person hands to `code-mode run`, and what a model is
//! told of it.
#![no_main]
#![allow(dead_code, reason = "the program runs what is only read here")]

use std::path::Path;

use code_mode_protocol::describe;
use libfuzzer_sys::fuzz_target;

// The program has no library; these two files of it know nothing of the rest.
#[path = "../../code-mode-bin/src/run/command_tool.rs"]
mod command_tool;
#[path = "../../code-mode-bin/src/run/tools_file.rs"]
mod tools_file;

fuzz_target!(|text: &str| {
    if let Ok(tools) = tools_file::Tools::parse(text, Path::new("tools.toml")) {
        for tool in tools.definitions() {
            let _ = describe::declaration(&tool);
        }
    }
});
