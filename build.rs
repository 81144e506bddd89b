//! Makes a client of the gRPC wire for the tests, from the same definition as the program's.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=code-mode-protocol/proto/code_mode.proto");
    let messages = protox::compile(["code_mode.proto"], ["code-mode-protocol/proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(messages)?;
    Ok(())
}
