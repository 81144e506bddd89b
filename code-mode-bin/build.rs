//! Orders the functions of the program, so that processes start sooner and map less.
//!
//! **What it does.** The program has 67 MB of code. Until ordinary cells end, a host and a worker run 4 MB
//! of it, a function here and a function there, and the kernel maps 64 KiB of the file around
//! each. The linker places those functions side by side, those of a host first.
//!
//! **Gain.** The processes of a host have a third less memory after one cell, and the start takes
//! 5 % less (`docs/PERFORMANCE.md`).
//!
//! **Risk.** A name that the program lacks is ignored, so a list of another version costs only the gain;
//! `tests/start_functions.py check` measures that. The section that the linker's script adds is code like
//! `.text` and lies before it. Names are those of Rust's legacy mangling, except the standard library's.
//!
//! **When to remove it.** A toolchain that orders functions by a profile without a profiling run for
//! each build: delete this file, the list, and `tests/start_functions.py`, which makes the list.

use std::path::PathBuf;
use std::{env, fs, io};

/// What a host runs, an empty line, and what only a worker runs. A build script runs in its package's folder.
const LIST: &str = "start-functions.txt";

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={LIST}");
    // A program for tests is linked often, and nobody measures it.
    if !links_with_lld() || env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return Ok(());
    }
    let list = fs::read_to_string(LIST)
        .map_err(|error| io::Error::new(error.kind(), format!("{LIST}: {error}")))?;
    let (host, worker) = list.split_once("\n\n").unwrap_or((&list, ""));
    let order = write_for_linker("order.txt", &list)?;
    println!("cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={order}");
    println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    // The order cannot have the list's patterns; a section can.
    let (host, worker) = (sections(host), sections(worker));
    let script =
        format!("SECTIONS {{ .text.start : {{ *({host}) *({worker}) }} }} INSERT BEFORE .text\n");
    let script = write_for_linker("start.ld", &script)?;
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{script}");
    Ok(())
}

/// The sections of the functions that the patterns among these lines match. The compiler has
/// another name for the section of a function that it thinks unlikely to run.
fn sections(lines: &str) -> String {
    let patterns = lines.lines().filter(|line| line.ends_with('*'));
    patterns
        .flat_map(|pattern| {
            [
                format!(".text.{pattern}\n"),
                format!(".text.unlikely.{pattern}\n"),
            ]
        })
        .collect()
}

/// Writes a file for the linker, and returns its path.
fn write_for_linker(name: &str, content: &str) -> io::Result<String> {
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?;
    let path = PathBuf::from(folder).join(name);
    fs::write(&path, content)?;
    Ok(path.display().to_string())
}

/// Whether LLD links the program: rustc uses it for this target unless somebody names another
/// linker.
fn links_with_lld() -> bool {
    for variable in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_LINKER"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let ours = env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    let own_linker = env::var_os("RUSTC_LINKER").is_some()
        || env::var("CARGO_ENCODED_RUSTFLAGS").is_ok_and(|flags| {
            ["linker", "fuse-ld"]
                .iter()
                .any(|flag| flags.contains(flag))
        });
    ours && !own_linker
}
