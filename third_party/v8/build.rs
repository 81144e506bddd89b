//! Unpacks the archive of V8 and says how to link it.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

const ARCHIVE: &str = "librusty_v8_ptrcomp_sandbox_release_x86_64-unknown-linux-gnu.a.gz";
const BINDING: &str = "src_binding_ptrcomp_sandbox_release_x86_64-unknown-linux-gnu.rs";

fn main() -> io::Result<()> {
    for file in ["build.rs", ARCHIVE, BINDING] {
        println!("cargo:rerun-if-changed={file}");
    }
    let here = folder("CARGO_MANIFEST_DIR")?;
    let binding = here.join(BINDING);
    println!(
        "cargo:rustc-env=RUSTY_V8_SRC_BINDING_PATH={}",
        binding.display()
    );
    let out = folder("OUT_DIR")?;
    unpack(&here.join(ARCHIVE), &out.join("librusty_v8.a"))?;
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=rusty_v8");
    Ok(())
}

/// A folder that Cargo names.
fn folder(variable: &str) -> io::Result<PathBuf> {
    let folder = env::var_os(variable).ok_or_else(|| io::Error::other(format!("no {variable}")))?;
    Ok(folder.into())
}

fn unpack(packed: &Path, unpacked: &Path) -> io::Result<()> {
    let mut reader = flate2::read::GzDecoder::new(fs::File::open(packed)?);
    io::copy(&mut reader, &mut fs::File::create(unpacked)?)?;
    Ok(())
}
