//! `code-mode mcp login` and `logout`.

use std::io::IsTerminal;
use std::process::ExitCode;

use code_mode_mcp::Loaded;
use code_mode_mcp::login::{BegunLogin, LoginError, Pasted, begin};
use code_mode_protocol::text::line;
use code_mode_system::{Interrupts, say, show};
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};

use super::{Failure, ServerArgs, load};

#[derive(clap::Args, Debug)]
pub(super) struct LoginArgs {
    #[command(flatten)]
    servers: ServerArgs,
    /// The server: its name in the configuration, or its address
    #[arg(value_name = "SERVER")]
    name: Option<String>,
    /// Ask for this scope, beside those of an earlier login; repeatable
    #[arg(long, value_name = "SCOPE", requires = "name")]
    scope: Vec<String>,
    /// Open no browser: open the page anywhere, and paste the address that it ends at
    #[arg(long, requires = "name")]
    no_browser: bool,
}

#[derive(clap::Args, Debug)]
pub(super) struct LogoutArgs {
    #[command(flatten)]
    servers: ServerArgs,
    /// The server: its name in the configuration, or its address
    #[arg(value_name = "SERVER")]
    name: String,
}

impl ServerArgs {
    /// Reads the configuration. A server that is named by its address need not be in one.
    fn load_with(&self, server: Option<&str>) -> Result<Loaded, Failure> {
        let mut options = self.options();
        let is_address = |name: &&str| name.starts_with("https://") || name.starts_with("http://");
        if let Some(address) = server.filter(is_address)
            && options.config.is_empty()
            && options.servers.is_empty()
        {
            options.servers.push(format!("server={address}"));
        }
        Ok(load(&options)?)
    }
}

pub(super) fn exit_status(error: &LoginError) -> u8 {
    match error {
        LoginError::Refused(_) | LoginError::Denied(_) | LoginError::TimedOut(_) => 1,
        LoginError::NoFolder | LoginError::File { .. } | LoginError::Listen { .. } => {
            crate::RUNTIME_FAILED
        }
        _ => crate::WRONG_USAGE,
    }
}

pub(super) async fn log_in(args: &LoginArgs) -> Result<ExitCode, Failure> {
    let mut interrupts = Interrupts::new()?;
    let loaded = args.servers.load_with(args.name.as_deref())?;
    let Some(server) = &args.name else {
        list(&loaded);
        return Ok(ExitCode::SUCCESS);
    };
    let logged_in = async {
        let login = begin(&loaded, server, &args.scope).await?;
        let name = login.server().to_owned();
        let reads_addresses = args.no_browser || std::io::stdin().is_terminal();
        invite(&login, reads_addresses);
        if !args.no_browser {
            open_browser(login.page().to_owned());
        }
        let scopes = login.finish(Addresses::of_stdin(reads_addresses)).await?;
        Ok::<_, Failure>((name, scopes))
    };
    let (name, scopes) = tokio::select! {
        logged_in = logged_in => logged_in?,
        by = interrupts.next() => return Ok(ExitCode::from(by.exit_status())),
    };
    match scopes.is_empty() {
        true => say!("logged in to {name}"),
        false => say!(
            "logged in to {name}; scopes: {}",
            line(&scopes.join(" "), 400)
        ),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn log_out(args: &LogoutArgs) -> Result<ExitCode, Failure> {
    let loaded = args.servers.load_with(Some(&args.name))?;
    match loaded.log_out(&args.name).await? {
        true => say!("logged out of {}", args.name),
        false => say!("not logged in to {}", args.name),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(loaded: &Loaded) {
    let logins = loaded.logins();
    let width = logins
        .iter()
        .map(|login| login.server.chars().count())
        .max();
    let width = width.unwrap_or(0);
    for login in &logins {
        show!("{:width$}  {}", login.server, login.words);
    }
    if logins.is_empty() {
        say!("no server is reached over HTTP: programs have logins of their own");
    }
}

fn invite(login: &BegunLogin, reads_addresses: bool) {
    say!(
        "Log in to {} on this page:\n\n  {}\n",
        login.server(),
        login.page()
    );
    if reads_addresses {
        say!(
            "Where its browser is on another machine, the last page cannot be opened there: paste its address here."
        );
    }
}

/// Opens the page. Where that fails, the person has its address.
fn open_browser(page: String) {
    tokio::task::spawn_blocking(move || {
        let mut options = webbrowser::BrowserOptions::new();
        options.with_suppress_output(true);
        let browser = webbrowser::Browser::Default;
        if webbrowser::open_browser_with_options(browser, &page, &options).is_err() {
            say!("no browser could be opened");
        }
    });
}

/// The addresses that a person pastes into the terminal.
struct Addresses(Option<Lines<BufReader<Stdin>>>);

impl Addresses {
    fn of_stdin(reads: bool) -> Self {
        Self(reads.then(|| BufReader::new(tokio::io::stdin()).lines()))
    }
}

impl Pasted for Addresses {
    async fn next(&mut self) -> String {
        while let Some(lines) = &mut self.0 {
            match lines.next_line().await {
                Ok(Some(line)) => return line,
                // The pasted line is not text.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => self.refuse(),
                Ok(None) | Err(_) => break,
            }
        }
        self.0 = None;
        std::future::pending().await
    }

    fn refuse(&mut self) {
        say!("That is not the address of this login. It begins with http:// and has a code in it.");
    }
}
