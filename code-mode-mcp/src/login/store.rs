//! Logins on disk: a file for each server's address, for its owner alone.
//!
//! Every process of the user that talks to the server reads it there, so that one renewal and one
//! login are enough for all. Whoever changes it holds the lock beside it.

use std::fs::{File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use oauth2::TokenResponse;
use rmcp::transport::auth::{AuthError, CredentialStore, StoredCredentials};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::folders;
use crate::texts::hex;

/// The largest file.
const MAX_BYTES: u64 = 1 << 20;
const VERSION: u32 = 1;
/// A token is renewed so long before it ends, or after half of its life where that is shorter.
const EARLY: Duration = Duration::from_secs(60);

/// How long another process may hold the lock, which it does for one renewal, and how often it is looked
/// at.
const LOCKED_WITHIN: Duration = Duration::from_secs(70);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The most bytes of a token: a header has room for it.
const LONGEST: usize = 16 << 10;

/// A login as its file has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Saved {
    version: u32,
    /// The server's address, which the file's name does not show.
    server: String,
    pub(super) redirect_uri: String,
    /// Where tokens are renewed, and nowhere else.
    pub(super) token_endpoint: String,
    #[serde(default)]
    client_secret: Option<ClientSecret>,
    pub(super) credentials: StoredCredentials,
}

/// A secret of a client, which no debug output shows.
#[derive(Clone, Serialize, Deserialize)]
struct ClientSecret(String);

impl std::fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Saved {
    pub(super) fn new(
        server: &str,
        redirect_uri: String,
        token_endpoint: String,
        client_secret: Option<String>,
        credentials: StoredCredentials,
    ) -> Self {
        Self {
            version: VERSION,
            server: server.to_owned(),
            redirect_uri,
            token_endpoint,
            client_secret: client_secret.map(ClientSecret),
            credentials,
        }
    }

    pub(super) fn client_secret(&self) -> Option<&str> {
        self.client_secret.as_ref().map(|secret| secret.0.as_str())
    }

    pub(super) fn token(&self) -> Option<&str> {
        let token = self.credentials.token_response.as_ref()?.access_token();
        Some(token.secret())
    }

    pub(super) fn refresh_token(&self) -> Option<&str> {
        let token = self.credentials.token_response.as_ref()?.refresh_token()?;
        Some(token.secret())
    }

    /// Whether each of its tokens is one word of visible characters, as RFC 6749 has them.
    pub(super) fn has_good_tokens(&self) -> bool {
        let is_good = |token: &str| {
            (1..=LONGEST).contains(&token.len())
                && token.bytes().all(|byte| byte.is_ascii_graphic())
        };
        self.token().is_some_and(is_good)
            && self.refresh_token().is_none_or(is_good)
            && self.is_bearer()
    }

    /// Whether the token may be sent as it is; a request with one of these types needs a proof.
    fn is_bearer(&self) -> bool {
        let token = self.credentials.token_response.as_ref();
        let kind = token.map(|token| token.token_type().as_ref().to_ascii_lowercase());
        !matches!(kind.as_deref(), Some("mac" | "dpop"))
    }

    /// How long the token is good for; `None` where the server did not say.
    pub(super) fn time_left(&self) -> Option<Duration> {
        let (expires_in, received) = self.life()?;
        let age = SystemTime::now().duration_since(received);
        Some(expires_in.saturating_sub(age.unwrap_or_default()))
    }

    /// Whether the token should be renewed before it is used again.
    pub(super) fn ends_soon(&self) -> bool {
        let Some((expires_in, _)) = self.life() else {
            return false;
        };
        let early = EARLY.min(expires_in / 2);
        self.time_left().is_some_and(|left| left <= early)
    }

    fn life(&self) -> Option<(Duration, SystemTime)> {
        let expires_in = self.credentials.token_response.as_ref()?.expires_in()?;
        let received = Duration::from_secs(self.credentials.token_received_at?);
        Some((expires_in, UNIX_EPOCH.checked_add(received)?))
    }
}

/// The file of one server's login.
#[derive(Clone, Debug)]
pub(super) struct LoginFile(PathBuf);

/// Held by whoever changes the login.
pub(super) struct Locked {
    _file: File,
}

impl LoginFile {
    /// The file of the login to an address; `None` where the user has no folder for it.
    pub(super) fn of(server: &str) -> Option<Self> {
        let name = hex(&Sha256::digest(server.as_bytes())[..16]);
        let folder = code_mode_system::state_folder()?.join("logins");
        Some(Self(folder.join(format!("{name}.json"))))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The login, where there is one that this version can read.
    pub(super) fn read(&self) -> io::Result<Option<Saved>> {
        let not_a_login = || io::Error::new(io::ErrorKind::InvalidData, "not the file of a login");
        match std::fs::metadata(&self.0) {
            // A pipe would be waited for.
            Ok(metadata) if !metadata.is_file() => return Err(not_a_login()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        }
        let file = File::open(&self.0)?;
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        // Not with the library's words, which may have a part of a token.
        let saved: Saved = serde_json::from_slice(&text).map_err(|_| not_a_login())?;
        match saved.has_good_tokens() {
            true => Ok(Some(saved).filter(|saved| saved.version == VERSION)),
            false => Err(not_a_login()),
        }
    }

    pub(super) fn write(&self, saved: &Saved) -> io::Result<()> {
        let text = serde_json::to_vec(saved)?;
        let is_too_large = text.len() as u64 >= MAX_BYTES;
        if is_too_large || !saved.has_good_tokens() {
            let why = "the authorization server gave tokens that cannot be used";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        folders::replace(&self.0, &text)
    }

    /// Removes it; whether it was there.
    pub(super) fn remove(&self) -> io::Result<bool> {
        match std::fs::remove_file(&self.0) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Waits until no other process changes the login.
    pub(super) async fn lock(&self) -> io::Result<Locked> {
        let path = self.0.with_extension("lock");
        let locked = tokio::task::spawn_blocking(move || {
            folders::make(path.parent().unwrap_or(&path))?;
            let mut options = File::options();
            options.create(true).truncate(false).write(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            // Opening a pipe would wait.
            if std::fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
                let why = format!("{} is not a file", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let file = options.open(&path)?;
            let until = Instant::now() + LOCKED_WITHIN;
            loop {
                match file.try_lock() {
                    Ok(()) => return Ok(Locked { _file: file }),
                    Err(TryLockError::Error(error)) => return Err(error),
                    Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                        let why = format!(
                            "another process has held {} for {} s",
                            path.display(),
                            LOCKED_WITHIN.as_secs()
                        );
                        return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                    }
                    // The system wakes nobody within a time.
                    Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK_AGAIN),
                }
            }
        });
        locked.await.map_err(io::Error::other)?
    }
}

/// The credentials in the file, for a renewal that holds the lock.
pub(super) struct InFile {
    pub(super) file: LoginFile,
    pub(super) saved: Saved,
}

#[async_trait]
impl CredentialStore for InFile {
    async fn load(&self) -> Result<Option<StoredCredentials>, AuthError> {
        Ok(Some(self.saved.credentials.clone()))
    }

    async fn save(&self, credentials: StoredCredentials) -> Result<(), AuthError> {
        let saved = Saved {
            credentials,
            ..self.saved.clone()
        };
        self.file.write(&saved).map_err(failed)
    }

    async fn clear(&self) -> Result<(), AuthError> {
        self.file.remove().map(drop).map_err(failed)
    }

    async fn on_refresh_token_rejected(&self, _: &StoredCredentials) -> Result<(), AuthError> {
        self.clear().await
    }
}

fn failed(error: io::Error) -> AuthError {
    AuthError::CredentialStoreError(error.to_string())
}
