//! Who may use a host: TLS, client certificates, bearer tokens.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use code_mode_system::{Refusals, TokenFile, TokenFileError};
use http::HeaderMap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::Address;

/// Who may use the gRPC wire. The default asks for nothing, which only an address of this
/// machine allows.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct GuardOptions {
    /// A file with the server's certificate and the chain to its root (PEM). Turns TLS on.
    pub tls_cert: Option<PathBuf>,
    /// A file with the certificate's private key (PEM).
    pub tls_key: Option<PathBuf>,
    /// A file with root certificates (PEM): only clients whose certificate one of them signed
    /// are let in.
    pub tls_client_ca: Option<PathBuf>,
    /// A file of bearer tokens, one a line, of 16 bytes or more; `#` begins a comment. The
    /// file is read again when it changes; while it has no token, or cannot be read, nobody
    /// is let in.
    pub token_file: Option<PathBuf>,
    /// Listen beyond this machine without TLS and authentication.
    pub unprotected: bool,
}

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// Other machines reach the address, and nothing asks who they are.
    #[error(
        "others than this machine can reach this address, and everybody who does runs programs \
         here: give TLS (--tls-cert, --tls-key) and authentication (--token-file or \
         --tls-client-ca), or say --unprotected where a network of your own protects it"
    )]
    Exposed,
    /// Tokens would cross a network in the clear.
    #[error(
        "a bearer token without TLS can be read by everybody on the way: give --tls-cert and --tls-key too"
    )]
    TokenInTheClear,
    /// An option that only TCP has.
    #[error("{0} needs --listen grpc://IP:PORT")]
    NeedsTcp(&'static str),
    /// An option that only the gRPC wire has.
    #[error("{0} needs a --listen of the gRPC wire")]
    NeedsGrpc(&'static str),
    /// An option that the standard streams do not have.
    #[error("{0} needs --listen grpc://IP:PORT or unix:PATH")]
    NeedsListener(&'static str),
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not PEM, or has something else in it.
    #[error("{} has no {what} in PEM: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// The expected content.
        what: &'static str,
        /// The problem, as text.
        source: rustls::pki_types::pem::Error,
    },
    /// A file has no certificate.
    #[error("{} has no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// The file of tokens cannot be used.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// The certificate and its key cannot be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The roots of the clients' certificates cannot be used.
    #[error("the clients' roots cannot be used: {0}")]
    ClientRoots(#[from] rustls::server::VerifierBuilderError),
}

/// Which clients are accepted.
#[derive(Clone, Default)]
pub(super) struct Guard {
    pub(super) tls: Option<TlsAcceptor>,
    tokens: Option<Arc<TokenFile>>,
    pub(super) refusals: Arc<Refusals>,
}

impl GuardOptions {
    /// The guard of an address.
    pub(super) fn guard(&self, address: &Address) -> Result<Guard, GuardError> {
        let is_tcp = matches!(address, Address::Tcp(_));
        let is_standard = *address == Address::StandardStreams;
        if self.tls_cert.is_some() && !is_tcp {
            return Err(GuardError::NeedsTcp("--tls-cert"));
        }
        if self.token_file.is_some() && is_standard {
            return Err(GuardError::NeedsListener("--token-file"));
        }
        let tls = self.tls()?;
        if address.is_exposed() && !self.unprotected {
            match (&tls, &self.token_file, &self.tls_client_ca) {
                (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {}
                (None, Some(_), _) => return Err(GuardError::TokenInTheClear),
                _ => return Err(GuardError::Exposed),
            }
        }
        let tokens = self.token_file.clone().map(TokenFile::read).transpose()?;
        Ok(Guard {
            tls,
            tokens: tokens.map(Arc::new),
            refusals: Arc::default(),
        })
    }

    fn tls(&self) -> Result<Option<TlsAcceptor>, GuardError> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?;
        let builder = match &self.tls_client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path)? {
                    roots.add(root)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let pem = |source| pem_error(key, "private key", source);
        let private_key = PrivateKeyDer::from_pem_file(key).map_err(pem)?;
        let mut config = builder.with_single_cert(certificates(certificate)?, private_key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, GuardError> {
    let pem = |source| pem_error(path, "certificate", source);
    let read = CertificateDer::pem_file_iter(path).map_err(pem)?;
    let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(pem)?;
    match certificates.is_empty() {
        true => Err(GuardError::NoCertificate(path.to_owned())),
        false => Ok(certificates),
    }
}

fn pem_error(path: &Path, what: &'static str, source: rustls::pki_types::pem::Error) -> GuardError {
    let path = path.to_owned();
    match source {
        rustls::pki_types::pem::Error::Io(source) => GuardError::Read { path, source },
        source => GuardError::Pem { path, what, source },
    }
}

impl Guard {
    /// Whether whoever connects is let in.
    pub(super) fn is_open(&self) -> bool {
        self.tokens.is_none()
    }

    /// Whether a request with these headers may continue.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(tokens) = &self.tokens else {
            return true;
        };
        let value = headers.get(http::header::AUTHORIZATION);
        tokens.admits(value.map(|value| value.as_bytes()))
    }

    /// Completes when the token of these headers is withdrawn; `None` where none is needed.
    pub(super) fn withdrawn(
        &self,
        headers: &HeaderMap,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let tokens = self.tokens.clone()?;
        let value = headers.get(http::header::AUTHORIZATION).cloned();
        Some(async move {
            let value = value.as_ref().map(|value| value.as_bytes());
            tokens.withdrawn(value).await;
        })
    }
}
