//! `code-mode serve`: the wires of the Codex CLI's code-mode host.

use std::process::ExitCode;

use code_mode_host::Provider;

use crate::args::RuntimeArgs;
use crate::telemetry::{TelemetryArgs, watched};
use crate::{grpc, stdio};

/// The options of `code-mode serve`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Which wire, and where: `stdio` or `stdio://`; `grpc+stdio://`, gRPC on standard
    /// input and output; `grpc://IP:PORT`, gRPC on an address of this machine; `unix:PATH`,
    /// gRPC on a socket that this user's programs reach
    #[arg(long, value_name = "ADDRESS", default_value = "stdio")]
    listen: String,
    #[command(flatten)]
    host: grpc::HostArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArgs,
}

impl Args {
    /// Whether somebody may ask for its metrics.
    pub(crate) fn has_metrics_page(&self) -> bool {
        self.host.ops_listen.is_some()
    }
}

/// Exit status where the connection broke the protocol or the runtime failed.
const FAILED: u8 = 1;

/// Serves until the client has gone or a signal ends the program.
pub(crate) fn main(args: Args) -> ExitCode {
    crate::descriptors::allow_many();
    let grpc = match grpc::Address::parse(&args.listen).transpose() {
        Ok(None) if !matches!(args.listen.as_str(), "stdio" | "stdio://") => {
            return failed(&format!(
                "unsupported --listen URL `{}`; expected `grpc://IP:PORT`, `grpc+stdio://`, `stdio`, or `stdio://`",
                args.listen
            ));
        }
        Ok(grpc) => grpc,
        Err(error) => return failed(&error),
    };
    if grpc.is_none()
        && let Err(error) = args.host.without_grpc()
    {
        return failed(&error);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let served = runtime.block_on(async {
        // Its first worker starts now, while the client says hello.
        let options = args.runtime.provider_options();
        let startup = tracing::info_span!("code_mode_host.startup");
        let provider = startup.in_scope(|| Provider::new(options))?;
        let provider = watched(provider);
        // The worker's start is another task, and what follows does not wait for a while.
        tokio::task::yield_now().await;
        // Its parent is nobody's: what a client asks for is of the client's trace.
        let _run_main = tracing::info_span!("code_mode_host.run_main");
        let limits = args.runtime.limits.limits();
        match grpc {
            Some(address) => Ok(grpc::serve(address, provider, limits, args.host).await?),
            None => stdio::serve(provider, limits).await,
        }
    });
    // A read of standard input that still waits must not hold the process up.
    runtime.shutdown_background();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &(impl std::fmt::Display + ?Sized)) -> ExitCode {
    say!("code-mode serve: {error}");
    ExitCode::from(FAILED)
}
