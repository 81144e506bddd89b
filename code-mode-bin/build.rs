//! Orders the functions of V8 in the program, so that processes start sooner.
//!
//! **What it does.** V8's code is 30 MB, of which a cell runs one, a function here and a
//! function there; each process maps the pages around all of them, and waits for them. The
//! linker places the functions that every cell runs side by side.
//!
//! **Gain.** An exec after a pause takes 8 to 12 % less, and a worker has 2 to 3 MB less
//! memory (`docs/PERFORMANCE.md`).
//!
//! **Risk.** None for correctness: a function that the list names and the program lacks is
//! ignored. The list is of the V8 in third_party/v8, so it is for that target only.
//!
//! **When to remove it.** A V8 whose archive has its functions ordered by a profile already:
//! delete this file, the list and `tests/hot_functions.py`, which makes the list.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../third_party/v8/hot-functions.txt");
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/v8/hot-functions.txt");
    if links_with_lld()
        && let Ok(list) = fs::canonicalize(list)
    {
        println!(
            "cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={}",
            list.display()
        );
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
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
