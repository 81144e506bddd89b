//! Who may use a host: TLS, client certificates, bearer tokens.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::HeaderMap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokio_rustls::TlsAcceptor;

use super::Address;

/// How often at most the file of tokens is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who may use the host.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Access to a gRPC host")]
pub(crate) struct GuardArgs {
    /// Speak TLS with this certificate and what leads to its root (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Take only clients with a certificate that one of these roots signed (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// Take only requests with `authorization: Bearer TOKEN`, where TOKEN is a line of this
    /// file, of 16 bytes or more; `#` begins a comment. The file is read again when it
    /// changes: while it has no token, or cannot be read, nobody is let in
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Listen beyond this machine without TLS and authentication: everybody who reaches the
    /// address runs programs here
    #[arg(long)]
    unprotected: bool,
}

/// Why nobody can be let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuardError {
    #[error(
        "others than this machine can reach this address, and everybody who does runs programs \
         here: give TLS (--tls-cert, --tls-key) and authentication (--token-file or \
         --tls-client-ca), or say --unprotected where a network of your own protects it"
    )]
    Exposed,
    #[error(
        "a bearer token without TLS can be read by everybody on the way: give --tls-cert and --tls-key too"
    )]
    TokenInTheClear,
    #[error("{0} needs --listen grpc://IP:PORT")]
    NeedsTcp(&'static str),
    #[error("{0} needs a --listen of the gRPC wire")]
    NeedsGrpc(&'static str),
    #[error("{0} needs --listen grpc://IP:PORT or unix:PATH")]
    NeedsListener(&'static str),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has no {what} in PEM: {source}", path.display())]
    Pem {
        path: PathBuf,
        what: &'static str,
        source: rustls::pki_types::pem::Error,
    },
    #[error("{} has no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("{} has no token: one a line, of at least {MIN_TOKEN} bytes", .0.display())]
    NoToken(PathBuf),
    #[error("the certificate and its key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the clients' roots cannot be used: {0}")]
    ClientRoots(#[from] rustls::server::VerifierBuilderError),
}

/// A shorter token could be guessed.
const MIN_TOKEN: usize = 16;

/// Who is let in.
#[derive(Clone, Default)]
pub(super) struct Guard {
    pub(super) tls: Option<TlsAcceptor>,
    tokens: Option<Arc<Tokens>>,
}

impl GuardArgs {
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
        let tokens = self.token_file.clone().map(Tokens::read).transpose()?;
        Ok(Guard {
            tls,
            tokens: tokens.map(Arc::new),
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

    /// Whether a request with these headers may go on.
    pub(super) fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(tokens) = &self.tokens else {
            return true;
        };
        let value = headers.get(http::header::AUTHORIZATION);
        let token = value.and_then(|value| {
            let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
        });
        token.is_some_and(|token| tokens.has(token))
    }
}

/// The tokens in a file.
struct Tokens {
    path: PathBuf,
    known: Mutex<Known>,
}

struct Known {
    /// Their hashes, so that comparing takes the same time whatever was guessed.
    hashes: Vec<[u8; 32]>,
    version: Option<Version>,
    looked: Instant,
}

/// What changes with a file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    modified: Option<SystemTime>,
    length: u64,
    /// Its number, and when it was changed in any way.
    #[cfg(unix)]
    number: (u64, i64, i64),
}

impl Version {
    fn of(metadata: &std::fs::Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            #[cfg(unix)]
            number: (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl Tokens {
    fn read(path: PathBuf) -> Result<Self, GuardError> {
        let (hashes, version) = hashes(&path)?;
        let known = Known {
            hashes,
            version: Some(version),
            looked: Instant::now(),
        };
        Ok(Self {
            path,
            known: Mutex::new(known),
        })
    }

    fn has(&self, token: &[u8]) -> bool {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.looked.elapsed() >= LOOK_EVERY {
            known.looked = Instant::now();
            self.look_again(&mut known);
        }
        let mut found = Choice::from(0);
        for one in &known.hashes {
            found |= one.ct_eq(&hash);
        }
        found.into()
    }

    /// Whoever takes the tokens away, takes them away at once.
    fn look_again(&self, known: &mut Known) {
        let metadata = std::fs::metadata(&self.path);
        let version = metadata.as_ref().map(Version::of).ok();
        if version.is_some() && version == known.version {
            return;
        }
        match hashes(&self.path) {
            Ok((hashes, version)) => {
                known.hashes = hashes;
                known.version = Some(version);
                tracing::info!("the tokens were read again");
            }
            Err(error) => {
                if !known.hashes.is_empty() {
                    tracing::warn!("nobody is let in: {error}");
                }
                known.hashes.clear();
                known.version = None;
            }
        }
    }
}

/// The most that is read of a file of tokens.
const MAX_FILE: u64 = 1 << 20;

fn hashes(path: &Path) -> Result<(Vec<[u8; 32]>, Version), GuardError> {
    let error = |source| GuardError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(error)?;
    // Reading anything else could wait for ever.
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(error(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is no file of at most 1 MiB",
        )));
    }
    let text = std::fs::read_to_string(path).map_err(error)?;
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().map(str::trim);
    let tokens = lines.filter(|line| !line.starts_with('#') && line.len() >= MIN_TOKEN);
    let hashes: Vec<[u8; 32]> = tokens.map(|token| Sha256::digest(token).into()).collect();
    match hashes.is_empty() {
        true => Err(GuardError::NoToken(path.to_owned())),
        false => Ok((hashes, Version::of(&metadata))),
    }
}
