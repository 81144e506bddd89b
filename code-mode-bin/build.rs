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
//! The program names no shared library: each of its two processes starts 0.4 ms sooner
//! without, and it runs on every Linux, whatever C library that has.
//!
//! All three need LLD, which is what rustc links this target with where nobody says otherwise.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(linked_statically)");
    make_messages()?;
    if links_with_lld() {
        order_functions();
        // What `cc` says is about its own machine.
        if env::var_os("HOST") == env::var_os("TARGET") {
            println!("cargo:rerun-if-env-changed=PATH");
            if has_new_c_library() {
                println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
                link_statically()?;
            }
        }
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

/// Whether the C library that is linked is glibc 2.36 or later. From then on it
/// understands packed relocations, and has what it asks for names in its archive; and where
/// it is a shared library, an older one refuses to start a program with such relocations.
fn has_new_c_library() -> bool {
    let Some(library) = file_of_linker("libc.so.6") else {
        return false;
    };
    println!("cargo:rerun-if-changed={}", library.display());
    fs::read(library).is_ok_and(|library| contains(&library, b"GLIBC_ABI_DT_RELR"))
}

/// Gives the program the archives of the C library in place of its shared libraries.
///
/// rustc does that for the feature `crt-static`, which a build without `--target` cannot
/// have: it would be for the procedural macros too, and they are shared libraries. So the
/// linker is told, and finds the libraries that rustc names in a folder where they are
/// archives. To be replaced by that feature when Cargo can set it for a profile.
///
/// Where there are no archives (some distributions have them in a package of their own),
/// or where flags of the user's took the place of those in `.cargo/config.toml`, the
/// program has shared libraries.
fn link_statically() -> Result<(), Box<dyn std::error::Error>> {
    const NAMED_BY_RUSTC: [(&str, &[&str]); 7] = [
        ("libgcc_s.a", &["libgcc_eh.a", "libgcc.a"]),
        ("libutil.a", &["libutil.a"]),
        ("librt.a", &["librt.a"]),
        ("libpthread.a", &["libpthread.a"]),
        ("libm.a", &["libm.a"]),
        ("libdl.a", &["libdl.a"]),
        ("libc.a", &["libc.a"]),
    ];
    // What V8 and Rust's library use if it is there, which a linker does not take from an
    // archive by itself. Without the first five V8 cannot keep compiled code from being
    // written by memory protection keys.
    const USED_IF_THERE: [&str; 7] = [
        "pkey_alloc",
        "pkey_free",
        "pkey_get",
        "pkey_mprotect",
        "pkey_set",
        "__cxa_thread_atexit_impl",
        "posix_spawn_file_actions_addchdir_np",
    ];
    let prepared = env::var("CARGO_ENCODED_RUSTFLAGS")
        .is_ok_and(|flags| flags.contains("getrandom_backend=\"linux_getrandom\""));
    if !prepared {
        return Ok(());
    }
    let folder = Path::new(&env::var_os("OUT_DIR").ok_or("cargo names a folder")?).join("archives");
    fs::create_dir_all(&folder)?;
    for (name, archives) in NAMED_BY_RUSTC {
        let mut script = String::new();
        for archive in archives {
            let Some(path) = file_of_linker(archive) else {
                println!(
                    "cargo:warning=the program will need this machine's C library, for want of {archive}"
                );
                return Ok(());
            };
            println!("cargo:rerun-if-changed={}", path.display());
            script += &format!("INPUT(\"{}\")\n", path.display());
        }
        fs::write(folder.join(name), script)?;
    }
    println!("cargo:rustc-link-arg-bins=-static-pie");
    println!("cargo:rustc-link-arg-bins=-Wl,--entry=code_mode_begins");
    println!("cargo:rustc-link-arg-bins=-L{}", folder.display());
    for function in USED_IF_THERE {
        println!("cargo:rustc-link-arg-bins=-Wl,--undefined={function}");
    }
    println!("cargo:rustc-cfg=linked_statically");
    Ok(())
}

/// The file of that name that the linker takes.
fn file_of_linker(name: &str) -> Option<PathBuf> {
    let asked = Command::new("cc")
        .arg(format!("-print-file-name={name}"))
        .output();
    let said = String::from_utf8(asked.ok()?.stdout).ok()?;
    // Of what it does not know it says the name.
    let file = PathBuf::from(said.trim());
    file.is_absolute().then_some(file)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
