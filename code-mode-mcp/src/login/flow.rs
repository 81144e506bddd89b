//! Getting a login: a page for the person, the answer of the browser, and the tokens for it.

use std::collections::BTreeSet;
use std::time::Duration;

use code_mode_protocol::text::line;
use rmcp::transport::auth::{
    AuthError, AuthorizationManager, AuthorizationMetadata, CredentialStore,
    InMemoryCredentialStore, OAuthClientConfig,
};
use tokio::sync::mpsc;
use url::Url;

use super::callback::{Callback, CallbackAddress};
use super::store::{LoginFile, Saved};
use super::{LoginError, LoginServer, is_private_on_its_way, manager};
use crate::broker::Loaded;
use crate::upstream::challenge;

/// How much of an address is shown.
const SHOWN: usize = 200;
/// How long the person has.
const PERSON: Duration = Duration::from_secs(600);
/// The name under which this program registers itself.
const CLIENT_NAME: &str = "code-mode";

/// The terminal of a person who pastes addresses.
pub trait Pasted {
    /// The next one. Never completes where there will be none.
    fn next(&mut self) -> impl Future<Output = String> + Send;

    /// The last one was not the address of this login.
    fn refuse(&mut self);
}

/// A login whose page a person has to open.
pub struct BegunLogin {
    server: LoginServer,
    file: LoginFile,
    manager: AuthorizationManager,
    store: InMemoryCredentialStore,
    callback: CallbackAddress,
    client_secret: Option<String>,
    page: Url,
    state: String,
    token_endpoint: String,
}

impl std::fmt::Debug for BegunLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BegunLogin")
            .field("server", &self.server.name)
            .finish_non_exhaustive()
    }
}

/// Begins a login to a server, which is named as in the configuration or by its address: asks it
/// which authorization server it has, registers this program there where that is needed, and listens
/// for the browser. It requests `scopes` and those of an earlier login. If `scopes` is empty, it requests
/// those that the configuration names, or else the server.
///
/// # Errors
/// [`LoginError`].
pub async fn begin(
    loaded: &Loaded,
    server: &str,
    scopes: &[String],
) -> Result<BegunLogin, LoginError> {
    let server = loaded.server_of_login(server)?;
    let file = LoginFile::of(&server.url).ok_or(LoginError::NoFolder)?;
    let failed = |error: AuthError| LoginError::of(&error);
    let mut manager = manager(&server.url, &server.options)
        .await
        .map_err(failed)?;
    let challenge = challenge(&server.url).await;
    let challenge = challenge.map_err(|error| LoginError::Refused(error.to_string()))?;
    let resolved = manager.resolve_metadata_from_challenge(challenge.as_deref());
    let resolved = resolved.await.map_err(failed)?;
    let metadata = resolved.metadata.clone();
    let endpoints = [&metadata.authorization_endpoint, &metadata.token_endpoint];
    for endpoint in endpoints.into_iter().chain(&metadata.registration_endpoint) {
        if !is_private_on_its_way(endpoint) {
            return Err(LoginError::Plain(line(endpoint, SHOWN)));
        }
    }
    verify_issuer(&metadata, &server).await?;
    manager.set_metadata(resolved.metadata);
    let callback = CallbackAddress::open(server.options.callback_port).await?;
    let scopes = match scopes {
        [] => server.options.scopes.clone(),
        wanted => {
            let earlier = file.read().ok().flatten();
            let earlier = earlier.map(|saved| saved.credentials.granted_scopes);
            let all = earlier.unwrap_or_default().into_iter();
            let all: BTreeSet<String> = all.chain(wanted.iter().cloned()).collect();
            all.into_iter().collect()
        }
    };
    let scopes = match scopes.is_empty() {
        true => manager.select_initial_scopes(&[]).await,
        false => with_offline_access(scopes, &metadata),
    };
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let client = client(&mut manager, &server, &metadata, callback.url(), &scopes);
    let client = client.await.map_err(|error| match resolved.source.is_discovered() {
        true => LoginError::of(&error),
        false => LoginError::Refused(format!(
            "the server names no authorization server, and has none beside it: perhaps it needs no login ({})",
            LoginError::of(&error)
        )),
    })?;
    let client_secret = client.client_secret.clone();
    manager.configure_client(client).map_err(failed)?;
    let store = InMemoryCredentialStore::new();
    manager.set_credential_store(store.clone());
    let page = manager
        .get_authorization_url(&scopes)
        .await
        .map_err(failed)?;
    let bad_page = || LoginError::Refused("the page of the login has no address".to_owned());
    let page = Url::parse(&page).map_err(|_| bad_page())?;
    let mut parameters = page.query_pairs();
    let state = parameters.find(|(name, _)| name == "state");
    let state = state.ok_or_else(bad_page)?.1.into_owned();
    Ok(BegunLogin {
        server,
        file,
        manager,
        store,
        callback,
        client_secret,
        page,
        state,
        token_endpoint: metadata.token_endpoint,
    })
}

/// Whether the authorization server that these metadata name as their issuer publishes them. A server
/// can point to its own metadata, which name the pages of another, and would get the codes of the other.
async fn verify_issuer(
    metadata: &AuthorizationMetadata,
    server: &LoginServer,
) -> Result<(), LoginError> {
    let Some(issuer) = &metadata.issuer else {
        return Ok(());
    };
    let failed = |error: AuthError| LoginError::of(&error);
    let own = manager(issuer, &server.options).await.map_err(failed)?;
    let own = own.resolve_metadata().await.map_err(failed)?.metadata;
    let is_same = own.issuer == metadata.issuer
        && own.authorization_endpoint == metadata.authorization_endpoint
        && own.token_endpoint == metadata.token_endpoint
        && own.registration_endpoint == metadata.registration_endpoint;
    match is_same {
        true => Ok(()),
        false => Err(LoginError::Refused(format!(
            "the server names metadata that are not those of {}",
            line(issuer, SHOWN)
        ))),
    }
}

/// Who this program is at the authorization server: whom the configuration names, the document that
/// describes it, or whom the server registers now.
async fn client(
    manager: &mut AuthorizationManager,
    server: &LoginServer,
    metadata: &AuthorizationMetadata,
    redirect: &str,
    scopes: &[&str],
) -> Result<OAuthClientConfig, AuthError> {
    let options = &server.options;
    let supports = metadata
        .additional_fields
        .get("client_id_metadata_document_supported");
    let reads_documents = supports.and_then(serde_json::Value::as_bool) == Some(true);
    let document = options.client_metadata_url.as_deref();
    let known = options.client_id.as_deref();
    let Some(id) = known.or(document.filter(|_| reads_documents)) else {
        return manager.register_client(CLIENT_NAME, redirect, scopes).await;
    };
    let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    let client = OAuthClientConfig::new(id, redirect).with_scopes(scopes);
    Ok(match &options.client_secret {
        Some(secret) if known.is_some() => client.with_client_secret(secret),
        _ => client,
    })
}

/// The scopes, with the one for renewals where the authorization server has it.
fn with_offline_access(mut scopes: Vec<String>, metadata: &AuthorizationMetadata) -> Vec<String> {
    const OFFLINE: &str = "offline_access";
    let mut supported = metadata.scopes_supported.iter().flatten();
    let is_missing = !scopes.iter().any(|scope| scope == OFFLINE);
    if is_missing && supported.any(|scope| scope == OFFLINE) {
        scopes.push(OFFLINE.to_owned());
    }
    scopes
}

impl BegunLogin {
    /// The page that the person has to open: `https`, or on this machine.
    pub fn page(&self) -> &str {
        self.page.as_str()
    }

    /// The name of the server.
    pub fn server(&self) -> &str {
        &self.server.name
    }

    /// Waits until the browser comes back or the person pastes the address that it came to, gets the
    /// tokens, and keeps them. Returns the scopes that were granted. The person has ten minutes.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn finish(self, mut pasted: impl Pasted) -> Result<Vec<String>, LoginError> {
        let (sender, mut answers) = mpsc::channel(1);
        let redirect = self.callback.url().to_owned();
        let pages = tokio::spawn(self.callback.serve(self.state.clone(), sender));
        let answer = async {
            loop {
                tokio::select! {
                    Some(answer) = answers.recv() => return answer,
                    address = pasted.next() => {
                        let url = Url::parse(address.trim()).ok();
                        match url.and_then(|url| Callback::read(&url, &self.state)) {
                            Some(answer) => return answer,
                            None => pasted.refuse(),
                        }
                    }
                }
            }
        };
        let answer = tokio::time::timeout(PERSON, answer).await;
        let (code, issuer) = match answer {
            Ok(Callback::Code { code, issuer }) => (code, issuer),
            denied_or_late => {
                drop(answers);
                let _ = pages.await;
                return Err(match denied_or_late {
                    Ok(Callback::Denied(why)) => LoginError::Denied(why),
                    _ => LoginError::TimedOut(PERSON),
                });
            }
        };
        let issuer = issuer.as_deref();
        let manager = &self.manager;
        let exchanged = manager.exchange_code_for_token_with_issuer(&code, &self.state, issuer);
        let exchanged = exchanged.await;
        drop(answers);
        let _ = pages.await;
        exchanged.map_err(|error| LoginError::of(&error))?;
        let credentials = self.store.load().await;
        let credentials = credentials.map_err(|error| LoginError::of(&error))?;
        let missing = || LoginError::Refused("the answer has no token".to_owned());
        let credentials = credentials.ok_or_else(missing)?;
        let granted = credentials.granted_scopes.iter();
        let scopes = granted.filter(|scope| !scope.is_empty()).cloned();
        let scopes = scopes.collect();
        let saved = Saved::new(
            &self.server.url,
            redirect,
            self.token_endpoint,
            self.client_secret,
            credentials,
        );
        let failed = |source| LoginError::file(&self.file, source);
        let _locked = self.file.lock().await.map_err(failed)?;
        self.file.write(&saved).map_err(failed)?;
        Ok(scopes)
    }
}
