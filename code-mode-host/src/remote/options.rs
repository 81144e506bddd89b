//! Which host, and how it and this program know each other.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use http::Uri;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use super::RemoteError;

/// A host of workers on another machine: `code-mode serve --listen grpc://IP:PORT`.
///
/// ```
/// # use code_mode_host::{ProviderOptions, RemoteHost, WorkerSource};
/// let host = RemoteHost::new("https://cells.example:8443").bearer_token_file("/run/secrets/cells");
/// let options = ProviderOptions::default().worker(WorkerSource::Remote(host));
/// ```
#[derive(Clone)]
pub struct RemoteHost {
    url: String,
    token: Option<Given>,
    roots: Option<Given>,
    identity: Option<(String, String)>,
}

/// A text, given directly or as a file's content.
#[derive(Clone)]
enum Given {
    Text(String),
    File(PathBuf),
}

impl Given {
    fn read(&self) -> Result<String, RemoteError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => std::fs::read_to_string(path).map_err(|source| {
                let path = path.clone();
                RemoteError::File { path, source }
            }),
        }
    }
}

impl RemoteHost {
    /// The host at this address, `https://HOST:PORT`, or `http://` where nobody listens on
    /// the way. The certificate of `https://` must be one that the machine trusts, unless
    /// [`ca_certificate`](Self::ca_certificate) names another.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            token: None,
            roots: None,
            identity: None,
        }
    }

    /// Shows this token to the host.
    #[must_use]
    pub fn bearer_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(Given::Text(token.into()));
        self
    }

    /// Shows the first token of this file, which is read for each worker; empty lines and
    /// those that begin with `#` are passed over.
    #[must_use]
    pub fn bearer_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token = Some(Given::File(path.into()));
        self
    }

    /// Trusts the hosts whose certificates these roots signed, in PEM, and no others.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<String>) -> Self {
        self.roots = Some(Given::Text(pem.into()));
        self
    }

    /// As [`ca_certificate`](Self::ca_certificate), from a file that is read for each worker.
    #[must_use]
    pub fn ca_certificate_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.roots = Some(Given::File(path.into()));
        self
    }

    /// Shows the host this certificate; both in PEM.
    #[must_use]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<String>,
        key: impl Into<String>,
    ) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// How to speak TLS, where the address asks for it.
    pub(super) fn tls(&self, address: &Address) -> Result<Option<ClientTlsConfig>, RemoteError> {
        if !address.is_https {
            return Ok(None);
        }
        let config = match &self.roots {
            Some(given) => {
                let roots = Certificate::from_pem(given.read()?);
                ClientTlsConfig::new().ca_certificate(roots)
            }
            None => ClientTlsConfig::new().with_native_roots(),
        };
        Ok(Some(match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        }))
    }

    /// The token to show.
    pub(super) fn token(&self, address: &Address) -> Result<Option<String>, RemoteError> {
        let Some(given) = &self.token else {
            return Ok(None);
        };
        let text = given.read()?;
        let mut lines = text.lines().map(str::trim);
        let token = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        let token = token.ok_or(RemoteError::NoToken)?.to_owned();
        match address.is_https || address.is_here {
            true => Ok(Some(token)),
            false => Err(RemoteError::TokenInTheClear(self.shown())),
        }
    }

    /// Says whether an address is one of a host.
    ///
    /// # Errors
    /// [`RemoteError::Address`].
    pub fn check(url: &str) -> Result<(), RemoteError> {
        Self::new(url).address().map(drop)
    }

    /// What the address says. Nothing is taken from its text by its look: what stands before
    /// an `@` is not a host.
    pub(super) fn address(&self) -> Result<Address, RemoteError> {
        let invalid = |why: &'static str| RemoteError::Address {
            url: self.shown(),
            why,
        };
        let uri: Uri = self.url.parse().map_err(|_| invalid("it is no URL"))?;
        let is_https = match uri.scheme_str().map(str::to_ascii_lowercase).as_deref() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or(invalid("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(invalid("it has a name or a password in it"));
        }
        let host = authority.host();
        let ip = host.trim_start_matches('[').trim_end_matches(']');
        let is_here = host.eq_ignore_ascii_case("localhost")
            || ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let scheme = if is_https { "https" } else { "http" };
        Ok(Address {
            url: format!("{scheme}://{authority}"),
            is_https,
            is_here,
        })
    }

    /// The address for an error: without what may be a password.
    pub(super) fn shown(&self) -> String {
        let url: String = self
            .url
            .chars()
            .filter(|c| !c.is_control())
            .take(300)
            .collect();
        match url.rsplit_once('@') {
            Some((_, host)) => format!("...@{host}"),
            None => url,
        }
    }
}

/// The parts of an address that matter.
pub(super) struct Address {
    pub(super) url: String,
    pub(super) is_https: bool,
    /// It is this machine.
    is_here: bool,
}

impl fmt::Debug for RemoteHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither its token nor its key is for a log.
        f.debug_struct("RemoteHost")
            .field("url", &self.shown())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_shown_to_who_can_keep_it_and_is_in_no_debug_text() {
        let token = |url: &str| {
            let host = RemoteHost::new(url).bearer_token("secret");
            host.token(&host.address()?)
        };
        for url in [
            "https://cells.example",
            "http://127.0.0.1:80",
            "http://localhost",
            "http://[::1]:1/x",
            "HTTP://127.0.0.1:1",
        ] {
            assert_eq!(token(url).expect("shown"), Some("secret".to_owned()));
        }
        for url in [
            "http://cells.example",
            "http://localhost.example:1",
            "http://127.0.0.1:x@192.0.2.1:1",
            "http://localhost:1@cells.example/",
            "http://127.0.0.1@cells.example",
            "ftp://127.0.0.1",
            "unix:/x",
            "x",
            "",
        ] {
            let refused = token(url).expect_err("not shown").to_string();
            assert!(!refused.contains("secret"), "{refused}");
        }
        let host = RemoteHost::new("https://u:secret@x").bearer_token("secret");
        assert!(!format!("{host:?}").contains("secret"));
        let refused = RemoteHost::check("https://u:secret@x").expect_err("refused");
        assert!(!refused.to_string().contains("secret"));
        let empty = RemoteHost::new("https://x").bearer_token("\n# a comment\n");
        let address = empty.address().expect("an address");
        assert!(matches!(empty.token(&address), Err(RemoteError::NoToken)));
    }
}
