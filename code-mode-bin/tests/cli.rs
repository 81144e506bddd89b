//! The command line itself: help, versions, wrong usage.
//!
//! That this package has an integration test also makes cargo build the program
//! before any test of the workspace runs.

use std::process::{Command, Output};

fn code_mode(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_code-mode"))
        .args(arguments)
        .output()
        .expect("the program starts")
}

#[test]
fn help_names_every_command_and_is_no_error() {
    let output = code_mode(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("text");
    for command in ["run", "serve", "doctor", "worker"] {
        assert!(text.contains(&format!("  {command} ")), "{command}: {text}");
    }
}

#[test]
fn the_version_is_the_packages() {
    let output = code_mode(&["--version"]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(
        text.trim(),
        concat!("code-mode ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for arguments in [
        &[][..],
        &["dance"],
        &["run"],
        &["run", "--max-heap", "lots", "x.js"],
        &["serve", "--listen"],
        &["run", "--require-sandbox", "--no-sandbox", "x.js"],
    ] {
        let output = code_mode(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}
