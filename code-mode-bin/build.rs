//! Makes the messages of the gRPC wire, and has the linker place the functions of V8
//! that every cell runs side by side.
//!
//! V8's code is 30 MB, of which a cell runs one, a function here and a function
//! there; each process maps, and waits for, the pages around all of them. The list
//! is of the V8 in third_party/v8, so it is for that target only. It needs LLD,
//! which is what rustc links this target with where nobody says otherwise.

use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    make_messages()?;
    order_functions();
    Ok(())
}

/// Compiles the interfaces of the host, without a compiler that must be installed.
fn make_messages() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "../code-mode-protocol/proto";
    println!("cargo:rerun-if-changed={PROTO}");
    let mut compiler = protox::Compiler::new([PROTO])?;
    compiler.include_source_info(true);
    compiler.open_files(["code_mode.proto", "workers.proto"])?;
    let folder = env::var_os("OUT_DIR").ok_or("cargo names a folder")?;
    // For clients that ask the host for its interface.
    fs::write(
        Path::new(&folder).join("code_mode.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    tonic_prost_build::configure()
        .build_client(false)
        .bytes(".code_mode.v1")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

fn order_functions() {
    println!("cargo:rerun-if-changed=../third_party/v8/hot-functions.txt");
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/v8/hot-functions.txt");
    let ours = env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    let own_linker = env::var_os("RUSTC_LINKER").is_some()
        || env::var("CARGO_ENCODED_RUSTFLAGS")
            .is_ok_and(|flags| flags.contains("link-arg") || flags.contains("linker"));
    if let (true, false, Ok(list)) = (ours, own_linker, fs::canonicalize(list)) {
        println!(
            "cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={}",
            list.display()
        );
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}
