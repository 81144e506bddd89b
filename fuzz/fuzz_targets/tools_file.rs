//! The file of tools that a person hands to `code-mode run`, and what a model is
//! told of it.
#![no_main]

use std::path::Path;

use code_mode_bin::tools_file::Tools;
use code_mode_protocol::describe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(tools) = Tools::parse(text, Path::new("tools.toml")) {
        for tool in tools.definitions() {
            let _ = describe::declaration(&tool);
        }
    }
});
