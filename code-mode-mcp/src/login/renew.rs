//! The token of a login, for requests: read for each, and renewed once for all who use it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rmcp::transport::auth::{AuthError, OAuthClientConfig};
use tokio::task::JoinHandle;

use super::store::{InFile, LoginFile, Saved};
use super::{LoginOptions, can_log_in, is_private_on_its_way, manager};
use crate::config::Address;
use crate::secrets::Secrets;

/// A token that is refused so soon after it came is not renewed again: another would fare no better.
const FRESH: Duration = Duration::from_secs(30);
/// The pause after a renewal where tokens end at once, and after one that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a request waits for a renewal. The renewal continues after that.
const RENEWAL: Duration = Duration::from_secs(60);

/// The login to one server.
#[derive(Clone)]
pub(crate) struct Login(Arc<Inner>);

struct Inner {
    url: String,
    options: LoginOptions,
    file: LoginFile,
    secrets: Secrets,
    /// Held by the request that renews the token, with the time when it last did.
    renewal: tokio::sync::Mutex<Option<Instant>>,
    failed_for_now: AtomicBool,
    /// The token that was last hidden.
    hidden: Mutex<String>,
}

/// Why a token could not be renewed; what it says of the server is a line.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error("{0}")]
    File(#[from] std::io::Error),
    #[error("{0}")]
    Refused(#[from] AuthError),
    #[error("its authorization server is another than that of the login")]
    Moved,
    #[error("a moment ago it could not be renewed")]
    Again,
}

impl Login {
    /// The login of an address, where there can be one. Its tokens are hidden in all texts.
    pub(crate) fn of(address: &Address, secrets: &Secrets) -> Option<Self> {
        let file = LoginFile::of(&address.url).filter(|_| can_log_in(address))?;
        Some(Self(Arc::new(Inner {
            url: address.url.clone(),
            options: address.login.clone(),
            file,
            secrets: secrets.clone(),
            renewal: tokio::sync::Mutex::default(),
            failed_for_now: AtomicBool::new(false),
            hidden: Mutex::default(),
        })))
    }

    /// The token for a request; `None` where nobody has logged in.
    pub(crate) async fn token(&self) -> Option<String> {
        let saved = self.saved()?;
        let token = saved.token()?.to_owned();
        self.hide(&token);
        if !saved.ends_soon() || saved.refresh_token().is_none() {
            return Some(token);
        }
        let renewal = self.start_renewal(&token);
        match saved.time_left() {
            // Nobody waits while the old one is good.
            Some(left) if !left.is_zero() => Some(token),
            _ => self.outcome(renewal).await.or(Some(token)),
        }
    }

    /// The token of another login or of a renewal, once a server refused this one; `None` where
    /// the file has the same.
    pub(crate) async fn instead_of(&self, refused: &str) -> Option<String> {
        let renewal = self.start_renewal(refused);
        self.outcome(renewal).await
    }

    /// Starts a renewal that is not a part of the request: one that is given up would lose the new
    /// tokens, of which the authorization server may give each only once.
    fn start_renewal(&self, refused: &str) -> JoinHandle<Result<Option<String>, RenewError>> {
        let (login, refused) = (self.clone(), refused.to_owned());
        tokio::spawn(async move { login.renew(&refused).await })
    }

    async fn outcome(
        &self,
        renewal: JoinHandle<Result<Option<String>, RenewError>>,
    ) -> Option<String> {
        let Ok(renewed) = tokio::time::timeout(RENEWAL, renewal).await else {
            tracing::warn!(server = %self.0.url, "the renewal of a login takes long");
            return None;
        };
        renewed.ok()?.ok().flatten()
    }

    /// Completes when no renewal runs any more.
    pub(crate) async fn settled(&self) {
        drop(self.0.renewal.lock().await);
    }

    /// Whether the last renewal failed for a reason that may pass.
    pub(crate) fn failed_for_now(&self) -> bool {
        self.0.failed_for_now.load(Ordering::Relaxed) && self.saved_token().is_some()
    }

    /// Completes when the file has another token than this, which may be none.
    pub(crate) async fn changed(&self, token: Option<&str>) {
        /// Files have no event that all systems share.
        const LOOK_EVERY: Duration = Duration::from_secs(2);
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let saved = self.saved();
            let now = saved.as_ref().and_then(Saved::token);
            if now.is_some() && now != token {
                return;
            }
        }
    }

    /// The token that the file has now, however old.
    pub(crate) fn saved_token(&self) -> Option<String> {
        self.saved()?.token().map(str::to_owned)
    }

    fn saved(&self) -> Option<Saved> {
        self.0.file.read().unwrap_or_else(|error| {
            tracing::warn!(server = %self.0.url, "a login cannot be read: {error}");
            None
        })
    }

    fn hide(&self, token: &str) {
        let hidden = &self.0.hidden;
        let mut hidden = hidden.lock().unwrap_or_else(PoisonError::into_inner);
        if *hidden != token {
            self.0.secrets.add_passing(token);
            token.clone_into(&mut hidden);
        }
    }

    /// Renews the token, where nobody else has done so.
    async fn renew(&self, refused: &str) -> Result<Option<String>, RenewError> {
        let mut renewal = self.0.renewal.lock().await;
        let renewed = self.renew_alone(refused, &mut renewal).await;
        self.0
            .failed_for_now
            .store(renewed.is_err(), Ordering::Relaxed);
        match &renewed {
            Ok(Some(token)) => self.hide(token),
            Ok(None) => {}
            Err(error) => {
                // The library may quote the request.
                let why = self.0.secrets.hide(&error.to_string());
                let why = code_mode_protocol::text::line(&why, 300);
                tracing::warn!(server = %self.0.url, "a login cannot be renewed: {why}");
            }
        }
        renewed
    }

    async fn renew_alone(
        &self,
        refused: &str,
        last: &mut Option<Instant>,
    ) -> Result<Option<String>, RenewError> {
        let file = &self.0.file;
        let _locked = file.lock().await?;
        let Some(saved) = file.read()? else {
            return Ok(None);
        };
        // Somebody else has been here.
        if saved.token().is_some_and(|token| token != refused) {
            return Ok(saved.token().map(str::to_owned));
        }
        let Some(refresh_token) = saved.refresh_token() else {
            return Ok(None);
        };
        let has_failed = self.0.failed_for_now.load(Ordering::Relaxed);
        let pause = match has_failed || saved.ends_soon() {
            true => PAUSE,
            false => FRESH,
        };
        if last.is_some_and(|last| last.elapsed() < pause) {
            return match has_failed {
                true => Err(RenewError::Again),
                false => Ok(None),
            };
        }
        self.0.secrets.add_passing(refresh_token);
        // What cannot be written would be lost: the authorization server gives it once.
        file.write(&saved)?;
        let renewed = self.ask(saved).await;
        // Those who waited for this renewal have its outcome.
        *last = Some(Instant::now());
        renewed
    }

    /// Asks the authorization server of the login for new tokens, which are saved.
    async fn ask(&self, saved: Saved) -> Result<Option<String>, RenewError> {
        let mut manager = manager(&self.0.url, &self.0.options).await?;
        let mut client = OAuthClientConfig::new(&saved.credentials.client_id, &saved.redirect_uri);
        if let Some(secret) = saved.client_secret() {
            self.0.secrets.add_passing(secret);
            client = client.with_client_secret(secret);
        }
        let metadata = manager.resolve_metadata().await?.metadata;
        // Whoever can change what the server says must not get a token of somebody else's: an issuer
        // is a claim, and the address that gets the token is not.
        let is_same = metadata.issuer == saved.credentials.issuer
            && metadata.token_endpoint == saved.token_endpoint;
        if !is_same || !is_private_on_its_way(&metadata.token_endpoint) {
            return Err(RenewError::Moved);
        }
        manager.set_metadata(metadata);
        manager.set_credential_store(InFile {
            file: self.0.file.clone(),
            saved,
        });
        manager.configure_client(client)?;
        match manager.refresh_token().await {
            Ok(token) => {
                let token = oauth2::TokenResponse::access_token(&token);
                Ok(Some(token.secret().to_owned()))
            }
            // The file is removed.
            Err(AuthError::TokenRefreshRejected(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
