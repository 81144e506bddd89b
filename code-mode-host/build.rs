//! Makes the client of the wire to workers on other machines.

#[cfg(not(feature = "remote"))]
fn main() {}

#[cfg(feature = "remote")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "../code-mode-protocol/proto";
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={PROTO}/workers.proto");
    let messages = protox::compile(["workers.proto"], [PROTO])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .compile_fds(messages)?;
    Ok(())
}
