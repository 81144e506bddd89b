//! Makes the messages of the gRPC wire, and has the linker do what makes processes start
//! faster.
//!
//! V8's code is 30 MB, of which a cell runs one, a function here and a function
//! there; each process maps, and waits for, the pages around all of them. So the functions
//! that every cell runs are placed side by side. The list is of the V8 in
//! third_party/v8, so it is for that target only.
//!
//! A hundred thousand addresses in the program are made right before `main`. They are
//! listed as bits, 22 kB, and not as entries, 2.3 MB, where the C library that is linked
//! understands that: a process starts 0.4 ms sooner, and most first results need two.
//!
//! Both need LLD, which is what rustc links this target with where nobody says otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    make_messages()?;
    if links_with_lld() {
        order_functions();
        pack_relocations();
    }
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
        .codec_path("crate::grpc::codec::SmallBuffers")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

fn links_with_lld() -> bool {
    println!("cargo:rerun-if-env-changed=CARGO_ENCODED_RUSTFLAGS");
    let ours = env::var("TARGET").is_ok_and(|target| target == "x86_64-unknown-linux-gnu");
    let own_linker = env::var_os("RUSTC_LINKER").is_some()
        || env::var("CARGO_ENCODED_RUSTFLAGS")
            .is_ok_and(|flags| flags.contains("link-arg") || flags.contains("linker"));
    ours && !own_linker
}

fn order_functions() {
    println!("cargo:rerun-if-changed=../third_party/v8/hot-functions.txt");
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../third_party/v8/hot-functions.txt");
    if let Ok(list) = fs::canonicalize(list) {
        println!(
            "cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={}",
            list.display()
        );
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}

/// glibc understands packed relocations from 2.36 on; older ones refuse to start a program
/// that has them. So they are for a program whose C library, which is the one it is linked
/// with, has them too: where it is to run with an older one, it must be built with that.
fn pack_relocations() {
    if env::var_os("HOST") != env::var_os("TARGET") {
        return;
    }
    println!("cargo:rerun-if-env-changed=PATH");
    let Some(library) = c_library() else {
        return;
    };
    println!("cargo:rerun-if-changed={}", library.display());
    if fs::read(library).is_ok_and(|library| contains(&library, b"GLIBC_ABI_DT_RELR")) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The C library that the linker takes.
fn c_library() -> Option<PathBuf> {
    let asked = Command::new("cc")
        .arg("-print-file-name=libc.so.6")
        .output();
    let said = String::from_utf8(asked.ok()?.stdout).ok()?;
    let library = PathBuf::from(said.trim());
    library.is_absolute().then_some(library)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
