//! Logins to servers that are reached over HTTP: OAuth 2.1, as the protocol's authorization has it.
//!
//! [`begin`] gets a login with a person and a browser (`callback` is the address to which the
//! browser comes back), `store` keeps it, and `renew` gives its token to requests and renews it.
//! Discovery, PKCE and the requests to an authorization server are the library's.

mod callback;
mod flow;
mod renew;
mod store;

use std::time::Duration;

use rmcp::transport::auth::{AuthError, AuthorizationManager};

use crate::broker::Loaded;
use crate::config::{Address, ServerConfig};

pub use flow::{BegunLogin, Pasted, begin};
pub(crate) use renew::Login;
use store::LoginFile;

/// What a configuration says of a login.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoginOptions {
    /// A client that was registered by hand. Without it this program registers itself.
    pub(crate) client_id: Option<String>,
    pub(crate) client_secret: Option<String>,
    /// The address of a document that describes the client, and is its name.
    pub(crate) client_metadata_url: Option<String>,
    /// Asked for instead of what the server names.
    pub(crate) scopes: Vec<String>,
    /// The browser comes back to this port, and not to any free one.
    pub(crate) callback_port: Option<u16>,
    /// The authorization server may be in a private network though the server's name does not say so.
    pub(crate) allow_private_addresses: bool,
}

/// The reason for a login that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// No server of the configuration has this name.
    #[error("no server has the name {name:?}; the servers are {servers}")]
    NoServer {
        /// The name.
        name: String,
        /// The names of all servers.
        servers: String,
    },
    /// The server is a program.
    #[error("{0:?} is a program, which manages its own logins: see its documentation")]
    IsProgram(String),
    /// The configuration has what the server wants to see.
    #[error("{0:?} has credentials in its headers: remove them to log in")]
    HasCredentials(String),
    /// The configuration of the server cannot be used, and why.
    #[error("{name:?} cannot be used: {why}")]
    Unusable {
        /// The server's name.
        name: String,
        /// Why.
        why: String,
    },
    /// Tokens would be readable on their way.
    #[error("{0} is neither https nor on this machine: a login would be readable on its way")]
    Plain(String),
    /// The user has no home.
    #[error("no folder for logins: neither XDG_STATE_HOME nor HOME is set")]
    NoFolder,
    /// The file of the login cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// No browser could come back.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The server, or its authorization server, does not do what the protocol asks.
    #[error("{0}")]
    Refused(String),
    /// The person, or the authorization server, said no.
    #[error("the login was refused: {0}")]
    Denied(String),
    /// Nobody came back.
    #[error("no answer within {} minutes", .0.as_secs() / 60)]
    TimedOut(Duration),
}

impl LoginError {
    /// What a library says, in a line: it may quote a server.
    fn of(error: &AuthError) -> Self {
        let mut words = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            words = format!("{words}: {error}");
            source = error.source();
        }
        let words = code_mode_protocol::text::line(&words, 400);
        let hint = match words.contains("address not allowed") {
            true => {
                "; \"oauth\": {\"allowPrivateAddresses\": true} in the server's entry allows it"
            }
            false => "",
        };
        Self::Refused(format!("{words}{hint}"))
    }

    fn file(file: &LoginFile, source: std::io::Error) -> Self {
        let path = file.path().display().to_string();
        Self::File { path, source }
    }
}

/// The login of one server, as `code-mode mcp login` lists it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LoginState {
    /// The server's name.
    pub server: String,
    /// Whether there is a login, how long it lasts, and what it allows: in words.
    pub words: String,
}

impl Loaded {
    /// The logins of all servers with an address.
    pub fn logins(&self) -> Vec<LoginState> {
        let with_address = self
            .servers
            .iter()
            .filter(|server| server.address().is_some());
        let states = with_address.map(|server| LoginState {
            server: server.name.clone(),
            words: words_of(server),
        });
        states.collect()
    }

    /// Removes the login of a server; whether there was one. The server is named as in the
    /// configuration, or by its address. Its authorization server is not told.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn log_out(&self, server: &str) -> Result<bool, LoginError> {
        let server = self.server_of_login(server)?;
        let file = LoginFile::of(&server.url).ok_or(LoginError::NoFolder)?;
        let failed = |source| LoginError::file(&file, source);
        let _locked = file.lock().await.map_err(failed)?;
        file.remove().map_err(failed)
    }

    /// A server that a person can log in to.
    fn server_of_login(&self, name: &str) -> Result<LoginServer, LoginError> {
        let of_name = |server: &&ServerConfig| {
            server.name == name || server.address().is_some_and(|address| address.url == name)
        };
        let Some(server) = self.servers.iter().find(of_name) else {
            let names: Vec<_> = self.servers.iter().map(|one| one.name.as_str()).collect();
            return Err(LoginError::NoServer {
                name: name.to_owned(),
                servers: names.join(", "),
            });
        };
        let name = server.name.clone();
        if let Some(why) = &server.unusable {
            let why = why.clone();
            return Err(LoginError::Unusable { name, why });
        }
        let Some(address) = server.address() else {
            return Err(LoginError::IsProgram(name));
        };
        if address.has_credentials() {
            return Err(LoginError::HasCredentials(name));
        }
        if !is_private_on_its_way(&address.url) {
            return Err(LoginError::Plain(address.url.clone()));
        }
        Ok(LoginServer {
            name,
            url: address.url.clone(),
            options: address.login.clone(),
        })
    }
}

/// A server that a person can log in to.
struct LoginServer {
    name: String,
    url: String,
    options: LoginOptions,
}

/// The state of a server's login, in words.
fn words_of(server: &ServerConfig) -> String {
    let Some(address) = server.address() else {
        return "a program".to_owned();
    };
    if address.has_credentials() {
        return "credentials of the configuration".to_owned();
    }
    let saved = match LoginFile::of(&address.url).map(|file| file.read()) {
        Some(Ok(Some(saved))) => saved,
        Some(Err(error)) => return format!("its login cannot be read: {error}"),
        Some(Ok(None)) | None => return "no login".to_owned(),
    };
    let mut words = match (saved.time_left(), saved.refresh_token()) {
        (None, _) => "logged in".to_owned(),
        (Some(Duration::ZERO), Some(_)) => "logged in, renewed when it is used".to_owned(),
        (Some(Duration::ZERO), None) => "the login has ended".to_owned(),
        (Some(left), Some(_)) => format!("logged in, renewed in {}", in_words(left)),
        (Some(left), None) => format!("logged in for {}", in_words(left)),
    };
    if !saved.credentials.granted_scopes.is_empty() {
        let scopes = saved.credentials.granted_scopes.join(" ");
        words = format!(
            "{words}; scopes: {}",
            code_mode_protocol::text::line(&scopes, 200)
        );
    }
    words
}

fn in_words(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// Whether requests to an address are encrypted or stay on this machine.
fn is_private_on_its_way(address: &str) -> bool {
    let Ok(url) = url::Url::parse(address) else {
        return false;
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_this_machine(&url))
}

fn is_this_machine(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The library's side of a login.
async fn manager(url: &str, options: &LoginOptions) -> Result<AuthorizationManager, AuthError> {
    code_mode_system::prepare_http_clients();
    match options.allow_private_addresses {
        true => AuthorizationManager::new_allowing_private_addresses(url).await,
        false => AuthorizationManager::new(url).await,
    }
}

/// Whether a login to this address can be used.
fn can_log_in(address: &Address) -> bool {
    !address.has_credentials() && is_private_on_its_way(&address.url)
}
