//! A file of bearer tokens.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// How often at most the file is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A shorter token could be guessed.
const MIN_TOKEN: usize = 16;

/// Why a file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFileError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file has no token.
    #[error("{} has no token: one a line, of at least {MIN_TOKEN} bytes", .0.display())]
    NoToken(PathBuf),
}

/// The bearer tokens in a file: one a line, of at least 16 bytes; `#` begins a comment. The
/// file is read again when it changes. While it has no token, or cannot be read, nobody is
/// let in.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Their hashes, so that comparing takes the same time whatever was guessed.
    hashes: Vec<[u8; 32]>,
    version: Option<Version>,
    looked: Instant,
}

/// What changes with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl TokenFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TokenFileError`], also where the file has no token.
    pub fn read(path: PathBuf) -> Result<Self, TokenFileError> {
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

    /// Whether a request with this `Authorization` header may continue.
    pub fn admits(&self, authorization: Option<&[u8]>) -> bool {
        const SCHEME: &[u8] = b"Bearer ";
        let token = authorization
            .and_then(|value| value.split_at_checked(SCHEME.len()))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME))
            .map(|(_, token)| token);
        token.is_some_and(|token| self.has(token))
    }

    /// Completes when this `Authorization` header no longer admits its client; the file is looked
    /// at each second. Must be called within a tokio runtime with time.
    pub async fn withdrawn(&self, authorization: Option<&[u8]>) {
        while self.admits(authorization) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
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

fn hashes(path: &Path) -> Result<(Vec<[u8; 32]>, Version), TokenFileError> {
    let error = |source| TokenFileError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(error)?;
    // Reading anything else could wait for ever.
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(error(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a file of at most 1 MiB",
        )));
    }
    let text = std::fs::read_to_string(path).map_err(error)?;
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().map(str::trim);
    let tokens = lines.filter(|line| !line.starts_with('#') && line.len() >= MIN_TOKEN);
    let hashes: Vec<[u8; 32]> = tokens.map(|token| Sha256::digest(token).into()).collect();
    match hashes.is_empty() {
        true => Err(TokenFileError::NoToken(path.to_owned())),
        false => Ok((hashes, Version::of(&metadata))),
    }
}
