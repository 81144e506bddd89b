//! `code-mode mcp` as the shim of a gateway that clients share, and the gateways of a user.

use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use code_mode_mcp::Loaded;
use code_mode_mcp::shim::{
    FindError, GatewayName, GatewayProgram, GatewayStatus, Gateways, NameNow, Place, ask_status,
    ask_to_stop, relay,
};
use code_mode_system::{Interrupts, say, show};

use super::{Args, Failure, ServerArgs, load};
use crate::units::Bytes;

/// Relays to the gateway of these options, until the client leaves. Where there can be none, this
/// process becomes a gateway for its client alone.
pub(super) fn relay_to_gateway(args: &Args) -> Result<ExitCode, Failure> {
    // The program and `mcp` are before them.
    let arguments: Vec<OsString> = std::env::args_os().skip(2).collect();
    let program = std::env::current_exe()?;
    if !args.can_be_read_again() {
        // The configuration comes from a pipe: the process that reads it must serve.
        return Err(become_alone(&program, &arguments).into());
    }
    // The gateway outlives this process, and so would what it inherits.
    code_mode_system::close_inherited_on_exec();
    // Its errors are reported here, where the client's user looks.
    let loaded = load(&args.servers.options())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let found: Result<_, Failure> = runtime.block_on(async {
        let gateways = Gateways {
            place: Place::of_user()?,
            name: name_now(args.servers.clone(), args.paths(), arguments.clone()),
            program: GatewayProgram {
                program: program.clone(),
                before: vec!["mcp".into(), "--gateway".into()],
                after: arguments.clone(),
            },
        };
        let name = name_of(&arguments, &args.paths(), &loaded).map_err(FindError::Name)?;
        let first = gateways.find_named(name).await?;
        Ok((gateways, first))
    });
    let (gateways, first) = match found {
        Ok(found) => found,
        Err(why) => {
            say!("code-mode mcp: {why}; this client has a separate gateway");
            // Nothing was read from the client yet.
            return Err(become_alone(&program, &arguments).into());
        }
    };
    let relayed: Result<(), Failure> = runtime.block_on(async {
        let mut interrupts = Interrupts::new()?;
        let interrupted = async {
            interrupts.next().await;
        };
        relay(gateways, first, interrupted).await;
        Ok(())
    });
    // A read of standard input cannot be taken back.
    runtime.shutdown_background();
    relayed.map(|()| ExitCode::SUCCESS)
}

/// Becomes a gateway for one client. Returns why that cannot be.
fn become_alone(program: &Path, arguments: &[OsString]) -> std::io::Error {
    std::process::Command::new(program)
        .args(["mcp", "--private"])
        .args(arguments)
        .exec()
}

/// Names the gateway of these arguments, with the configuration of that moment.
fn name_now(servers: ServerArgs, paths: Vec<PathBuf>, arguments: Vec<OsString>) -> NameNow {
    Box::new(move || {
        let loaded = Loaded::read(&servers.options(), &mut Vec::new())?;
        name_of(&arguments, &paths, &loaded).map_err(FindError::Name)
    })
}

/// The name of the gateway of these arguments, which name these paths, with this configuration.
pub(super) fn name_of(
    arguments: &[OsString],
    paths: &[PathBuf],
    loaded: &Loaded,
) -> std::io::Result<GatewayName> {
    let arguments = arguments.iter().map(OsString::as_os_str);
    GatewayName::of(loaded, arguments, paths.iter().map(PathBuf::as_path))
}

/// `mcp status`.
pub(super) async fn status(json: bool) -> Result<ExitCode, Failure> {
    let place = Place::of_user()?;
    let mut shown = String::new();
    let mut all = Vec::new();
    let mut is_well = true;
    for name in place.gateways() {
        match ask_status(&place, &name).await {
            Ok(Some(status)) => {
                // Writing to a string cannot fail.
                let _ = write!(shown, "{}", in_words(&place, &name, &status));
                all.push(serde_json::json!({"name": name.to_string(), "log": place.log(&name), "gateway": status}));
            }
            // One that was killed.
            Ok(None) => {}
            Err(error) => {
                is_well = false;
                say!("code-mode mcp: {error}");
            }
        }
    }
    match (json, all.is_empty()) {
        (true, _) => show!("{:#}", serde_json::Value::from(all)),
        (false, true) => show!("no gateways"),
        (false, false) => show!("{}", shown.trim_end()),
    }
    Ok(all_answered(is_well))
}

/// The exit status of a command about all gateways.
pub(super) fn all_answered(is_well: bool) -> ExitCode {
    match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(crate::RUNTIME_FAILED),
    }
}

fn in_words(place: &Place, name: &GatewayName, status: &GatewayStatus) -> String {
    let mut text = format!(
        "gateway {}, for {} s, in {}\n  log {}\n",
        status.process,
        status.seconds,
        status.folder,
        place.log(name).display()
    );
    for client in &status.clients {
        let said = client.name.as_deref().unwrap_or("(has not said its name)");
        let _ = writeln!(
            text,
            "  client {:>8}  for {:>6} s  {said}",
            client.process, client.seconds
        );
    }
    for server in &status.servers {
        let process = server.process.map(|id| id.to_string());
        let memory = server.memory.map(|bytes| {
            let mib = usize::try_from(bytes >> 20).unwrap_or(usize::MAX);
            Bytes(mib.saturating_mul(1 << 20)).to_string()
        });
        let of = server.client.map(|client| format!(", of client {client}"));
        let _ = writeln!(
            text,
            "  server {:>8} {:>8}  {} calls  {}: {}{}",
            process.as_deref().unwrap_or("-"),
            memory.as_deref().unwrap_or("-"),
            server.calls,
            server.name,
            server.status,
            of.as_deref().unwrap_or_default()
        );
    }
    text
}

/// `mcp stop`.
pub(super) async fn stop() -> Result<ExitCode, Failure> {
    let place = Place::of_user()?;
    let mut is_well = true;
    for name in place.gateways() {
        match ask_to_stop(&place, &name).await {
            Ok(Some(process)) => show!("gateway {process} has ended"),
            Ok(None) => {}
            Err(error) => {
                is_well = false;
                say!("code-mode mcp: {error}");
            }
        }
    }
    Ok(all_answered(is_well))
}
