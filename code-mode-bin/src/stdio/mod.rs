//! `code-mode serve`: the stdio wire, version 1.
//!
//! An adapter over the provider: it has no rules of its own for cells, only for
//! messages.

mod connection;
mod delegate;
mod fit;
mod handshake;
mod outbound;
mod session;
mod streams;

use std::process::ExitCode;
use std::sync::Arc;

use code_mode_host::Provider;

use crate::args::RuntimeArgs;

/// The options of `code-mode serve`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Where to listen; standard input and output is all there is
    #[arg(long, value_name = "ADDRESS", default_value = "stdio", value_parser = ["stdio", "stdio://"])]
    listen: String,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Exit status where the connection broke the protocol or the runtime failed.
const FAILED: u8 = 1;

/// Serves one connection, then ends.
pub(crate) fn main(args: Args) -> ExitCode {
    crate::descriptors::allow_many();
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let served = runtime.block_on(async {
        // Its first worker starts now, while the client says hello.
        let provider = Arc::new(Provider::new(args.runtime.provider_options())?);
        let limits = args.runtime.limits.limits();
        let served = connection::serve(provider.clone(), limits).await;
        provider.shutdown().await;
        served
    });
    // A read of standard input that still waits must not hold the process up.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("code-mode serve: {error}");
    ExitCode::from(FAILED)
}
