//! One entry of a configuration: a server, as the files of several clients write it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Address, CALL, ConfigError, STARTUP, ServerConfig, Transport, refuse_itself};
use crate::expand::{self, Place};
use crate::login::LoginOptions;
use crate::secrets::Secrets;

/// One entry of a file.
pub(super) struct EntryReader<'a> {
    pub(super) place: &'a str,
    pub(super) name: &'a str,
    pub(super) entry: &'a Value,
    pub(super) secrets: &'a Secrets,
}

impl EntryReader<'_> {
    fn wrong(&self, what: impl std::fmt::Display) -> ConfigError {
        ConfigError(format!("{}: {what}", self.place))
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.entry.get(field).filter(|value| !value.is_null())
    }

    fn text(&self, field: &str) -> Result<Option<&str>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(format!("{field}: not a string"))),
        }
    }

    fn flag(&self, field: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(format!("{field}: not true or false"))),
        }
    }

    fn texts(&self, field: &str) -> Result<Option<Vec<String>>, ConfigError> {
        let Some(value) = self.get(field) else {
            return Ok(None);
        };
        let list = value
            .as_array()
            .ok_or_else(|| self.wrong(format!("{field}: not an array")))?;
        list.iter()
            .map(|element| match element {
                Value::String(text) => Ok(text.clone()),
                _ => Err(self.wrong(format!("{field}: not all strings"))),
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn map(&self, field: &str) -> Result<BTreeMap<String, String>, ConfigError> {
        let none = Map::new();
        let map = match self.get(field) {
            None => &none,
            Some(value) => value
                .as_object()
                .ok_or_else(|| self.wrong(format!("{field}: not an object")))?,
        };
        map.iter()
            .map(|(key, value)| {
                let text = match value {
                    Value::String(text) => text.clone(),
                    Value::Number(number) => number.to_string(),
                    Value::Bool(flag) => flag.to_string(),
                    _ => return Err(self.wrong(format!("{field}.{key}: not a string"))),
                };
                Ok((key.clone(), text))
            })
            .collect()
    }

    fn seconds(&self, field: &str) -> Result<Option<Duration>, ConfigError> {
        match self.get(field) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(seconds) if seconds > 0.0 && seconds < 1e6 => {
                    Ok(Some(Duration::from_secs_f64(seconds)))
                }
                _ => Err(self.wrong(format!("{field}: not a number of seconds"))),
            },
        }
    }

    /// The server; `None` where it is switched off.
    pub(super) fn read<'p>(
        &self,
        place_of: &dyn Fn(&str) -> Place<'p>,
    ) -> Result<Option<ServerConfig>, ConfigError> {
        if !self.entry.is_object() {
            return Err(self.wrong("not an object"));
        }
        if self.flag("disabled")? == Some(true) || self.flag("enabled")? == Some(false) {
            return Ok(None);
        }
        let command = self.text("command")?;
        let urls = ["url", "httpUrl", "serverUrl"];
        let mut url = None;
        for field in urls {
            if let Some(text) = self.text(field)? {
                url = Some((field, text));
            }
        }
        let mut missing = None;
        let mut expanded =
            |field: &str, text: &str| match expand::expand(text, &place_of(field), self.secrets) {
                Ok(text) => text,
                Err(what) => {
                    missing.get_or_insert(what);
                    String::new()
                }
            };
        let transport = match (command, url) {
            (Some(_), Some((field, _))) => {
                return Err(self.wrong(format!("both command and {field}: write one")));
            }
            (None, None) => return Err(self.wrong("neither command nor url")),
            (Some(command), None) if command.trim().is_empty() => {
                return Err(self.wrong("command: empty"));
            }
            (None, Some((field, url))) if !url.contains("${") && url::Url::parse(url).is_err() => {
                return Err(self.wrong(format!("{field}: no address")));
            }
            (Some(command), None) => {
                let mut env = BTreeMap::new();
                if let Some(file) = self.text("envFile")? {
                    let file = expanded("envFile", file);
                    if !file.is_empty() {
                        env.extend(expand::env_file(Path::new(&file)).map_err(|e| self.wrong(e))?);
                    }
                }
                for (key, value) in self.map("env")? {
                    env.insert(key.clone(), expanded(&format!("env.{key}"), &value));
                }
                for name in self.texts("env_vars")?.unwrap_or_default() {
                    if let Ok(value) = std::env::var(&name) {
                        env.insert(name, value);
                    }
                }
                env.values().for_each(|value| self.secrets.add(value));
                let args = self.texts("args")?.unwrap_or_default();
                let args = args.iter().map(|arg| expanded("args", arg)).collect();
                Transport::Stdio {
                    command: expanded("command", command),
                    args,
                    env,
                    cwd: self.text("cwd")?.map(|cwd| expanded("cwd", cwd).into()),
                }
            }
            (None, Some((field, url))) => {
                let url = expanded(field, url);
                let helper = self.text("headersHelper")?;
                let headers_helper = helper.map(|helper| expanded("headersHelper", helper));
                let login = self.login(&mut expanded)?;
                let mut headers = BTreeMap::new();
                for field in ["headers", "http_headers"] {
                    for (key, value) in self.map(field)? {
                        headers.insert(key.clone(), expanded(&format!("{field}.{key}"), &value));
                    }
                }
                for (key, name) in self.map("env_http_headers")? {
                    headers.extend(std::env::var(&name).ok().map(|value| (key, value)));
                }
                if let Some(name) = self.text("bearer_token_env_var")? {
                    match std::env::var(name) {
                        Ok(token) => {
                            headers.insert("Authorization".to_owned(), format!("Bearer {token}"));
                            self.secrets.add(&token);
                        }
                        Err(_) => {
                            missing.get_or_insert(format!(
                                "bearer_token_env_var: the variable {name} is not set"
                            ));
                        }
                    }
                }
                headers.values().for_each(|value| self.secrets.add(value));
                expand::add_secrets_of_url(&url, self.secrets);
                let address = Address {
                    url,
                    headers,
                    headers_helper,
                    login,
                };
                match self.text("type")? {
                    Some("sse") => Transport::Sse(address),
                    _ => Transport::Http(address),
                }
            }
        };
        let wrong_kind = match self.text("type")? {
            None | Some("stdio" | "http" | "streamable-http" | "streamableHttp" | "sse") => None,
            Some(other) => Some(format!("type: {other:?} is not spoken here")),
        };
        // Milliseconds in most files, seconds in a few; below a thousand it can only be
        // the latter.
        let timeout = match self.get("timeout").map(Value::as_f64) {
            None => None,
            Some(Some(number)) if (1000.0..1e12).contains(&number) => {
                Some(Duration::from_secs_f64(number / 1e3))
            }
            Some(Some(number)) if (1.0..1000.0).contains(&number) => {
                Some(Duration::from_secs_f64(number))
            }
            Some(_) => return Err(self.wrong("timeout: not a number")),
        };
        let tools = |fields: [&str; 3]| -> Result<Option<Vec<String>>, ConfigError> {
            for field in fields {
                if let Some(names) = self.texts(field)? {
                    return Ok(Some(names));
                }
            }
            Ok(None)
        };
        let mut server = ServerConfig {
            name: self.name.to_owned(),
            transport,
            startup_timeout: self.seconds("startup_timeout_sec")?.unwrap_or(STARTUP),
            call_timeout: self
                .seconds("tool_timeout_sec")?
                .or(timeout)
                .unwrap_or(CALL),
            enabled_tools: tools(["enabledTools", "includeTools", "enabled_tools"])?,
            disabled_tools: tools(["disabledTools", "excludeTools", "disabled_tools"])?
                .unwrap_or_default(),
            is_shared: self.flag("shared")?.unwrap_or(true),
            unusable: missing.or(wrong_kind),
        };
        refuse_itself(&mut server);
        Ok(Some(server))
    }

    /// What a login needs to know: `oauth`, as Claude Code's files have it.
    fn login(
        &self,
        expanded: &mut dyn FnMut(&str, &str) -> String,
    ) -> Result<LoginOptions, ConfigError> {
        let Some(entry) = self.get("oauth") else {
            return Ok(LoginOptions::default());
        };
        if !entry.is_object() {
            return Err(self.wrong("oauth: not an object"));
        }
        let place = format!("{}.oauth", self.place);
        let oauth = EntryReader {
            place: &place,
            name: self.name,
            entry,
            secrets: self.secrets,
        };
        let mut text = |field: &str| -> Result<Option<String>, ConfigError> {
            let text = oauth.text(field)?;
            Ok(text.map(|text| expanded(&format!("oauth.{field}"), text)))
        };
        let client_secret = text("clientSecret")?;
        client_secret
            .iter()
            .for_each(|secret| self.secrets.add(secret));
        let scopes = match oauth.get("scopes") {
            Some(Value::String(scopes)) => scopes.split_whitespace().map(str::to_owned).collect(),
            _ => oauth.texts("scopes")?.unwrap_or_default(),
        };
        let callback_port = match oauth.get("callbackPort") {
            None => None,
            Some(port) => match port.as_u64().and_then(|port| u16::try_from(port).ok()) {
                Some(port) if port > 0 => Some(port),
                _ => return Err(oauth.wrong("callbackPort: not a port")),
            },
        };
        Ok(LoginOptions {
            client_id: text("clientId")?,
            client_secret,
            client_metadata_url: text("clientMetadataUrl")?,
            scopes,
            callback_port,
            allow_private_addresses: oauth.flag("allowPrivateAddresses")?.unwrap_or(false),
        })
    }
}
