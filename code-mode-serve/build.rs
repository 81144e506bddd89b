//! Makes the messages of the gRPC wire, without a compiler that must be installed.

use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "../code-mode-protocol/proto";
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PROTO}");
    let mut compiler = protox::Compiler::new([PROTO])?;
    compiler.include_source_info(true);
    compiler.open_files(["code_mode.proto", "workers.proto"])?;
    let folder = env::var_os("OUT_DIR").ok_or("cargo names a folder")?;
    // For clients that ask the service for its interface.
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
