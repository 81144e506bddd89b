//! What may be called: a file of patterns, and the servers' own annotations.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use wildmatch::WildMatchPattern;

use crate::address::forms;
use crate::hook::Hook;
use crate::rule::{Rule, Strictness};

/// The policy's decision about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Decision {
    /// It runs.
    Allow,
    /// A person decides.
    Ask,
    /// It fails.
    Deny,
}

impl Decision {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }
}

/// A policy, as its file has it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    deny: Vec<Rule>,
    ask: Vec<Rule>,
    allow: Vec<Rule>,
    default: Defaults,
    /// Decides about what no rule denies. Default none.
    hook: Option<Hook>,
    /// Whether `wait`'s `decision` is taken for a person's answer.
    pub(crate) model_may_answer: bool,
    /// Whether a person may answer by `code-mode mcp approvals`.
    pub(crate) terminal_may_answer: bool,
    /// Whether a call of a read-only tool whose server was lost is made once more.
    pub(crate) retry_read_only: bool,
    /// How long a person's answer may take.
    answer_minutes: Option<AnswerMinutes>,
    /// A form of a server that has one of these words is declined: it asks for a secret, and
    /// a form must not ask for one.
    secret_words: SecretWords,
    /// The file, for what refers to it.
    #[serde(skip)]
    path: Option<PathBuf>,
}

/// From one minute to 30 days.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u64")]
struct AnswerMinutes(u64);

impl TryFrom<u64> for AnswerMinutes {
    type Error = &'static str;

    fn try_from(minutes: u64) -> Result<Self, Self::Error> {
        match minutes {
            1..=43_200 => Ok(Self(minutes)),
            _ => Err("answer_minutes is from 1 to 43200, 30 days"),
        }
    }
}

/// Words that tell that a form asks for a secret. Compared without case.
#[derive(Clone, Debug, Deserialize)]
#[serde(transparent)]
struct SecretWords(Vec<String>);

impl Default for SecretWords {
    fn default() -> Self {
        let words = [
            "password",
            "passwd",
            "passphrase",
            "secret",
            "api key",
            "apikey",
            "api_key",
            "access token",
            "credential",
        ];
        Self(words.map(str::to_owned).to_vec())
    }
}

/// The decision where no pattern fits, by the server's hints about its tool.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Defaults {
    read_only: Decision,
    destructive: Decision,
    other: Decision,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            read_only: Decision::Allow,
            destructive: Decision::Ask,
            other: Decision::Allow,
        }
    }
}

/// What a server says of a tool. Claims, not facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) read_only: bool,
    pub(crate) destructive: bool,
}

impl Claims {
    /// The claims of reading a resource or a prompt, which changes nothing.
    pub(crate) const READING: Self = Self {
        read_only: true,
        destructive: false,
    };
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read the policy {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },
    /// The file is not a policy.
    #[error("the policy {}: {error}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The problem and its place.
        #[source]
        error: serde_json::Error,
    },
}

impl Policy {
    /// How long a person's answer may take.
    pub(crate) fn answer_time(&self) -> Duration {
        const DEFAULT: u64 = 15;
        self.answer_in(DEFAULT)
    }

    /// How long a person's answer to a kept question may take.
    pub(crate) fn kept_answer_time(&self) -> Duration {
        const DEFAULT: u64 = 7 * 24 * 60;
        self.answer_in(DEFAULT)
    }

    fn answer_in(&self, default: u64) -> Duration {
        let minutes = self.answer_minutes.map_or(default, |AnswerMinutes(it)| it);
        Duration::from_secs(60 * minutes)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`PolicyError`], with the file and the place.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let text = std::fs::read_to_string(path).map_err(|error| PolicyError::Read {
            path: path.to_owned(),
            error,
        })?;
        let mut policy: Self = serde_json::from_str(&text).map_err(|error| PolicyError::Json {
            path: path.to_owned(),
            error,
        })?;
        policy.path = Some(path.to_owned());
        Ok(policy)
    }

    /// The decision about a call, and the rule behind it. Without the call's input, rules with
    /// conditions are passed over.
    pub(crate) fn decide(
        &self,
        server: &str,
        tool: &str,
        claims: Claims,
        input: Option<&Map<String, Value>>,
    ) -> (Decision, String) {
        let lists = [
            (Decision::Deny, &self.deny),
            (Decision::Ask, &self.ask),
            (Decision::Allow, &self.allow),
        ];
        let names = names(tool);
        for (decision, rules) in lists {
            // A tool's own name may have a slash, and an address may be written in several ways:
            // what forbids holds for each of them, and what allows must hold for all.
            let fits = |rule: &&Rule| match decision {
                Decision::Allow => {
                    names.iter().all(|name| rule.pattern.fits(server, name))
                        && rule.holds(input, Strictness::Allows)
                }
                Decision::Ask | Decision::Deny => {
                    names.iter().any(|name| rule.pattern.forbids(server, name))
                        && rule.holds(input, Strictness::Forbids)
                }
            };
            if let Some(rule) = rules.iter().find(fits) {
                return (decision, format!("{} {}", decision.word(), rule.in_words()));
            }
        }
        let (decision, key) = if claims.destructive {
            (self.default.destructive, "destructive")
        } else if claims.read_only {
            (self.default.read_only, "read_only")
        } else {
            (self.default.other, "other")
        };
        (decision, format!("default.{key}: {}", decision.word()))
    }

    /// The program that decides about what no rule denies.
    pub(crate) fn hook(&self) -> Option<&Hook> {
        self.hook.as_ref()
    }

    /// Whether a rule denies this, whatever the defaults say.
    pub(crate) fn forbids(&self, server: &str, tool: &str) -> bool {
        let names = names(tool);
        let mut rules = self.deny.iter().filter(|rule| !rule.has_conditions());
        rules.any(|rule| names.iter().any(|name| rule.pattern.forbids(server, name)))
    }

    /// Whether a rule allows resources of this server, whatever the rest of it denies.
    pub(crate) fn allows_any_resource(&self, server: &str) -> bool {
        self.allow
            .iter()
            .map(|rule| &rule.pattern)
            .any(|pattern| pattern.tool.starts_with(RESOURCE) && fits(&pattern.server, server))
    }

    /// The rules that decide about some calls of a tool, by their inputs.
    pub(crate) fn conditional(&self, server: &str, tool: &str) -> Vec<String> {
        let lists = [
            (Decision::Deny, &self.deny),
            (Decision::Ask, &self.ask),
            (Decision::Allow, &self.allow),
        ];
        let rules = lists
            .into_iter()
            .flat_map(|(decision, rules)| rules.iter().map(move |rule| (decision, rule)));
        rules
            .filter(|(_, rule)| rule.has_conditions() && rule.pattern.fits_whole(server, tool))
            .map(|(decision, rule)| format!("{} {}", decision.word(), rule.in_words()))
            .collect()
    }

    /// The rules that fit none of these tools and none of the servers whose tools are unknown:
    /// most are misspelt, and a misspelt `deny` forbids nothing.
    pub(crate) fn unmatched(&self, tools: &[(&str, &str)], unknown: &[&str]) -> Vec<String> {
        let lists = [
            ("deny", &self.deny),
            ("ask", &self.ask),
            ("allow", &self.allow),
        ];
        let rules = lists
            .into_iter()
            .flat_map(|(word, rules)| rules.iter().map(move |rule| (word, rule)));
        rules
            // What servers list beside tools is not known here.
            .filter(|(_, rule)| !rule.pattern.is_of_what_is_read())
            .filter(|(_, rule)| {
                let mut tools = tools.iter();
                !tools.any(|(server, tool)| rule.pattern.fits_whole(server, tool))
                    && !unknown
                        .iter()
                        .any(|server| fits(&rule.pattern.server, server))
            })
            .map(|(word, rule)| format!("{word} {}", rule.in_words()))
            .collect()
    }

    /// Whether the text of a server's form asks for a secret.
    pub(crate) fn asks_for_secret(&self, form: &str) -> bool {
        let form = form.to_lowercase();
        let SecretWords(words) = &self.secret_words;
        words.iter().any(|word| form.contains(&word.to_lowercase()))
    }

    /// Where the rules are, for a person.
    pub(crate) fn place(&self) -> String {
        match &self.path {
            Some(path) => format!("the policy {}", path.display()),
            None => "the default policy (--policy FILE has another)".to_owned(),
        }
    }
}

/// A name, or those that an address has.
fn names(tool: &str) -> Vec<String> {
    match tool.strip_prefix(RESOURCE) {
        Some(address) => {
            let forms = forms(address).into_iter();
            forms.map(|form| format!("{RESOURCE}{form}")).collect()
        }
        None => vec![tool.to_owned()],
    }
}

/// How the name of a resource begins, and that of a prompt.
const RESOURCE: &str = "resource:";
const PROMPT: &str = "prompt:";

/// `SERVER/TOOL`, where `*` stands for any run of characters. Split at the last `/`, or before
/// `resource:` and `prompt:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern {
    text: String,
    server: String,
    tool: String,
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let read = [RESOURCE, PROMPT].map(|what| text.find(&format!("/{what}")));
        let split = match read.into_iter().flatten().min() {
            Some(at) => Some((&text[..at], &text[at + 1..])),
            None => text.rsplit_once('/'),
        };
        match split {
            Some((server, tool)) if !server.is_empty() && !tool.is_empty() => Ok(Self {
                server: server.to_owned(),
                tool: tool.to_owned(),
                text,
            }),
            _ => Err(format!("{text:?} is not a pattern: write SERVER/TOOL")),
        }
    }
}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::try_from(text.to_owned())
    }
}

impl Pattern {
    /// As it is written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is meant for resources or prompts.
    fn is_of_what_is_read(&self) -> bool {
        self.tool.starts_with(RESOURCE) || self.tool.starts_with(PROMPT)
    }

    /// Whether a rule that forbids holds for these raw names: an address also where it differs in
    /// case, which many file systems do not tell apart.
    fn forbids(&self, server: &str, tool: &str) -> bool {
        self.fits_whole(server, tool)
            || tool.starts_with(RESOURCE)
                && fits(&self.server, server)
                && fits(&self.tool.to_lowercase(), &tool.to_lowercase())
    }

    /// Whether it fits these raw names as they are written together.
    fn fits_whole(&self, server: &str, tool: &str) -> bool {
        self.fits(server, tool) || fits(&self.text, &format!("{server}/{tool}"))
    }

    /// Whether it fits these raw names.
    pub(crate) fn fits(&self, server: &str, tool: &str) -> bool {
        fits(&self.server, server) && fits(&self.tool, tool)
    }
}

/// Whether a text fits a pattern, in which `*` stands for any run of characters.
pub(crate) fn fits(pattern: &str, text: &str) -> bool {
    // The library has another character for a single one; names have no NUL.
    WildMatchPattern::<'*', '\0'>::new(pattern).matches(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Policy {
        serde_json::from_str(json).expect("a policy")
    }

    #[test]
    fn a_rule_that_fits_no_tool_is_named_unless_its_server_is_down() {
        let policy = policy(
            r#"{"deny": ["filesytem/*", "git/push", "git/resource:*"], "allow": ["down/*"]}"#,
        );
        let tools = [("filesystem", "write"), ("git", "push")];
        assert_eq!(
            policy.unmatched(&tools, &["down"]),
            [r#"deny "filesytem/*""#]
        );
    }

    #[test]
    fn an_answer_may_take_from_a_minute_to_thirty_days() {
        assert_eq!(policy("{}").answer_time(), Duration::from_secs(900));
        let kept = policy("{}").kept_answer_time();
        assert_eq!(kept, Duration::from_secs(7 * 24 * 60 * 60));
        let day = policy(r#"{"answer_minutes": 1440}"#).answer_time();
        assert_eq!(day, Duration::from_secs(24 * 60 * 60));
        for minutes in ["0", "43201", "-1", "1.5", r#""15""#] {
            let text = format!(r#"{{"answer_minutes": {minutes}}}"#);
            assert!(serde_json::from_str::<Policy>(&text).is_err(), "{minutes}");
        }
    }

    #[test]
    fn deny_beats_ask_beats_allow_beats_annotations() {
        let policy = policy(
            r#"{"deny": ["git/push*"], "ask": ["git/*"], "allow": ["*/log", "git/push_tags"]}"#,
        );
        let decide = |tool| policy.decide("git", tool, Claims::default(), None).0;
        assert_eq!(decide("push_tags"), Decision::Deny);
        assert_eq!(decide("log"), Decision::Ask);
        let destructive = Claims {
            destructive: true,
            read_only: true,
        };
        assert_eq!(
            policy.decide("fs", "log", destructive, None).0,
            Decision::Allow
        );
        assert_eq!(
            policy.decide("fs", "rm", destructive, None).0,
            Decision::Ask
        );
        assert_eq!(
            policy.decide("git", "push/x", Claims::default(), None).0,
            Decision::Deny
        );
        assert_eq!(
            policy.decide("fs", "rm", Claims::default(), None).1,
            "default.other: allow"
        );
    }

    #[test]
    fn patterns_are_of_raw_names_and_split_at_the_last_slash() {
        let fits = |pattern: &str, server, tool| {
            pattern
                .parse::<Pattern>()
                .expect("a pattern")
                .fits(server, tool)
        };
        assert!(fits("@scope/pkg/read", "@scope/pkg", "read"));
        assert!(fits("*/*", "a", "b"));
        assert!(fits("a*c/x*y*z", "abbc", "x12y34z"));
        assert!(!fits("a/b", "A", "b"));
        assert!(!fits("a*/b", "b", "b"));
        assert!("nothing".parse::<Pattern>().is_err());
    }

    #[test]
    fn an_address_is_denied_however_it_is_written() {
        let policy = policy(
            r#"{"deny": ["s/resource:file:///etc/*"], "allow": ["s/resource:file:///home/*"],
                "default": {"other": "ask"}}"#,
        );
        let decide = |address: &str| {
            let name = format!("resource:{address}");
            policy.decide("s", &name, Claims::default(), None).0
        };
        for address in [
            "file:///etc/shadow",
            "file:///./etc/shadow",
            "file:////etc/shadow",
            "file:///%65tc/shadow",
            "file:///home/../etc/shadow",
            "file:///ETC/shadow",
            "file:///et\tc/shadow",
            "file:///home\\..\\etc/shadow",
            "file://localhost/etc/shadow",
        ] {
            assert_eq!(decide(address), Decision::Deny, "{address}");
        }
        assert_eq!(decide("file:///tmp/../home/x"), Decision::Ask);
        assert_eq!(decide("file:///home/x"), Decision::Allow);
    }

    #[test]
    fn a_host_is_denied_however_it_is_written() {
        let policy = policy(
            r#"{"deny": ["s/resource:https://internal.example/*", "s/resource:http://127.0.0.1/*"]}"#,
        );
        for address in [
            "https://INTERNAL.example/x",
            "https://internal.example:443/x",
            "https://internal.example./x",
            "https://internal.example?/x",
            "https://ｉnternal.example/x",
            "http://2130706433/x",
        ] {
            let name = format!("resource:{address}");
            let (decision, _) = policy.decide("s", &name, Claims::READING, None);
            assert_eq!(decision, Decision::Deny, "{address}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        assert!(serde_json::from_str::<Policy>(r#"{"alow": []}"#).is_err());
    }
}
