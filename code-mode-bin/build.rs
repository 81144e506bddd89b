//! Orders the functions of the program, so that processes start sooner and map less.
//!
//! **What it does.** The program has 60 MB of code, of which a host runs one and a half until its first
//! result and a worker two, a function here and a function there; each process maps the pages around
//! all of them, and waits for them. The linker places those functions side by side, and behind them
//! those of V8 that every cell runs.
//!
//! **Gain.** A host and its workers have a third less memory, and an exec after a pause takes 8 to 12 %
//! less (`docs/PERFORMANCE.md`).
//!
//! **Risk.** None for correctness: a function that a list names and the program lacks is
//! ignored. The lists are for one target, and the one of V8 is of the archive in third_party/v8. The names of
//! Rust's functions are those of its first way to mangle them; with another nothing is ordered.
//!
//! **When to remove it.** A toolchain that orders functions by a profile and needs none of it for
//! each build: delete this file, the lists, and `tests/start_functions.py` and `tests/hot_functions.py`, which
//! make the lists.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What a host and a worker run until their first cells have ended.
const START: &str = "start-functions.txt";
/// What workers and cells run of V8.
const HOT: &str = "../third_party/v8/hot-functions.txt";

fn main() -> io::Result<()> {
    for file in ["build.rs", START, HOT] {
        println!("cargo:rerun-if-changed={file}");
    }
    if !links_with_lld() || env::var("PROFILE").is_ok_and(|profile| profile == "debug") {
        return Ok(());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let start = fs::read_to_string(here.join(START))?;
    // A package of this crate alone has no V8 beside it.
    let hot = fs::read_to_string(here.join(HOT)).unwrap_or_default();
    let is_pattern = |name: &&str| name.ends_with('*');
    let names: Vec<_> = start.lines().filter(|name| !is_pattern(name)).collect();
    let patterns: Vec<_> = start.lines().filter(is_pattern).collect();
    let order = out("order.txt", &(names.join("\n") + "\n" + &hot))?;
    println!("cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={order}");
    println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    // An order cannot have patterns; a section can. Functions that the compiler thinks unlikely
    // have names of their own.
    let sections: String = [".text.", ".text.unlikely."]
        .iter()
        .flat_map(|kind| patterns.iter().map(move |name| format!("{kind}{name}\n")))
        .collect();
    let script = format!("SECTIONS {{ .text.start : {{ *({sections}) }} }} INSERT BEFORE .text\n");
    let script = out("start.ld", &script)?;
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{script}");
    Ok(())
}

/// Writes a file for the linker, and returns its path.
fn out(name: &str, content: &str) -> io::Result<String> {
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("no OUT_DIR"))?;
    let path = PathBuf::from(folder).join(name);
    fs::write(&path, content)?;
    Ok(path.display().to_string())
}

/// Whether LLD links the program: rustc uses it for this target unless somebody names another
/// linker.
fn links_with_lld() -> bool {
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let ours = env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    let own_linker = env::var_os("RUSTC_LINKER").is_some()
        || env::var("CARGO_ENCODED_RUSTFLAGS")
            .is_ok_and(|flags| flags.contains("linker=") || flags.contains("fuse-ld"));
    ours && !own_linker
}
