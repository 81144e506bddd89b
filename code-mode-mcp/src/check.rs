//! `code-mode mcp check`: every server started, what it offers, and what it costs.

use std::sync::Arc;

use code_mode_protocol::describe::{guided_wait_tool, tokens};
use code_mode_protocol::text::line;
use serde_json::{Value, json};

use crate::audit::CallIds;
use crate::broker::Broker;
use crate::decide::{Subject, rule};
use crate::policy::Claims;
use crate::upstream::{Status, Upstream};

/// How much of a tool's name is shown.
const SHOWN: usize = 200;

/// The findings.
#[derive(Debug)]
pub struct Checked {
    /// Whether every server is ready.
    pub is_well: bool,
    report: Value,
}

/// Waits for every server of a broker and looks at it.
pub async fn check(broker: &Broker) -> Checked {
    broker.all_started().await;
    let listed = broker.tools();
    let mut servers = Vec::new();
    let mut is_well = true;
    let mut all = 0;
    for upstream in &broker.upstreams {
        let status = upstream.status();
        is_well &= status == Status::Ready;
        let own: Vec<_> = listed
            .entries
            .iter()
            .filter(|entry| Arc::ptr_eq(&entry.upstream, upstream))
            .collect();
        let cost: usize = own
            .iter()
            .map(|entry| tokens(&definition(&entry.tool.definition)))
            .sum();
        all += cost;
        let tools: Vec<Value> = own
            .iter()
            .map(|entry| {
                let server = upstream.name();
                let policy = &broker.policy;
                let (name, claims) = (&entry.tool.name, entry.tool.claims);
                let (decision, rule) = policy.decide(server, name, claims, None);
                json!({
                    "tool": entry.tool.name,
                    "name": entry.identifier,
                    "decision": decision,
                    "rule": rule,
                    "byInput": policy.conditional(server, name),
                })
            })
            .collect();
        servers.push(json!({
            "server": upstream.name(),
            "status": status.words(),
            "tools": tools,
            "tokens": cost,
        }));
    }
    let with = tokens(&listed.description) + tokens(guided_wait_tool());
    Checked {
        is_well,
        report: json!({
            "servers": servers,
            "unmatchedRules": broker.unmatched_rules(),
            "tokensWithout": all,
            "tokensWith": with,
        }),
    }
}

/// The last line: whether all is well.
fn verdict(servers: &[Value]) -> String {
    let down = servers.iter().filter(|server| server["status"] != "ready");
    match (servers.len(), down.count()) {
        (0, _) => "no servers are configured\n".to_owned(),
        (1, 0) => "the server is ready\n".to_owned(),
        (all, 0) => format!("all {all} servers are ready\n"),
        (all, down) => format!("{down} of {all} servers cannot be used\n"),
    }
}

/// What a client gives its model of a tool.
fn definition(tool: &Value) -> String {
    let part = |key: &str| tool.get(key).cloned().unwrap_or_default();
    json!({
        "name": part("name"),
        "description": part("description"),
        "parameters": part("inputSchema"),
    })
    .to_string()
}

/// What the policy says of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// `allow`, `ask` or `deny`.
    pub decision: &'static str,
    /// The rule, or the default, that decides.
    pub rule: String,
    /// Where the rule is.
    pub place: String,
    /// Why the hook denies the call.
    pub reason: Option<String>,
    /// The input that the hook sends in place of this one.
    pub rewritten: Option<Value>,
}

/// What the policy says of a call of `SERVER/TOOL` with this input; of `SERVER/resource:ADDRESS` and
/// `SERVER/prompt:NAME` too. Waits until every server has started or failed.
///
/// # Errors
/// Why such a call cannot be made, in words.
pub async fn decided(broker: &Broker, call: &str, input: &Value) -> Result<Decided, String> {
    let Some(input) = input.as_object() else {
        return Err("the input of a call is an object".to_owned());
    };
    broker.all_started().await;
    let of_server = |upstream: &&Arc<Upstream>| {
        let rest = call.strip_prefix(upstream.name());
        rest.is_some_and(|rest| rest.starts_with('/'))
    };
    // Of a server whose name begins another's, the longer is meant.
    let servers = broker.upstreams.iter().filter(of_server);
    let Some(upstream) = servers.max_by_key(|upstream| upstream.name().len()) else {
        let names: Vec<_> = broker.upstreams.iter().map(|one| one.name()).collect();
        let names = names.join(", ");
        return Err(format!(
            "{call:?} is of no server: write SERVER/TOOL; the servers are {names}"
        ));
    };
    let name = call.get(upstream.name().len() + 1..).unwrap_or_default();
    let tools = broker.tools();
    let mut entries = tools.entries.iter();
    let entry =
        entries.find(|entry| Arc::ptr_eq(&entry.upstream, upstream) && entry.tool.name == name);
    let is_read = name.starts_with("resource:") || name.starts_with("prompt:");
    let claims = match entry {
        Some(entry) => entry.tool.claims,
        None if is_read => Claims::READING,
        None => {
            let state = upstream.state_in_words();
            return Err(format!("{call:?} is not a tool: {state}"));
        }
    };
    let subject = Subject {
        server: upstream.name(),
        name,
        claims,
        definition: &Value::Null,
        input_schema: None,
        arguments: input,
        is_read: entry.is_none(),
    };
    let ruling = rule(&broker.policy, &subject, &CallIds::default()).await;
    Ok(Decided {
        decision: ruling.decision.word(),
        rule: ruling.rule,
        place: broker.policy.place(),
        reason: ruling.reason,
        rewritten: ruling.rewritten.map(Value::from),
    })
}

impl Checked {
    /// For programs.
    pub fn json(&self) -> String {
        self.report.to_string()
    }

    /// For people.
    pub fn table(&self) -> String {
        let text = |value: &Value, key: &str| {
            value
                .get(key)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
        let servers = self.report["servers"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let width = servers
            .iter()
            .map(|s| text(s, "server").len())
            .max()
            .unwrap_or(0)
            .max(6);
        let mut table = format!(
            "{:width$}  {:>5}  {:>7}  status\n",
            "server", "tools", "tokens"
        );
        for server in &servers {
            let tools = server["tools"].as_array().map_or(0, Vec::len);
            table.push_str(&format!(
                "{:width$}  {tools:>5}  {:>7}  {}\n",
                text(server, "server"),
                number(server, "tokens"),
                text(server, "status"),
            ));
        }
        table.push_str(&format!(
            "\ntokens of definitions (about): {} without this program, {} with it\n",
            number(&self.report, "tokensWithout"),
            number(&self.report, "tokensWith"),
        ));
        table.push_str(&self.warnings());
        table.push_str(&verdict(&servers));
        table
    }

    /// The rules of the policy that fit no tool, a line each.
    fn warnings(&self) -> String {
        let rules = self.report["unmatchedRules"].as_array();
        rules
            .into_iter()
            .flatten()
            .map(|rule| {
                let rule = rule.as_str().unwrap_or_default();
                format!("warning: the rule {rule} fits no tool\n")
            })
            .collect()
    }

    /// The policy's decision about each tool, for people.
    pub fn policy_table(&self) -> String {
        let mut lines = Vec::new();
        for server in self.report["servers"].as_array().into_iter().flatten() {
            let name = server["server"].as_str().unwrap_or_default();
            let status = server["status"].as_str().unwrap_or_default();
            if status != "ready" {
                lines.push(("-".to_owned(), format!("{name}/*"), status.to_owned()));
            }
            for tool in server["tools"].as_array().into_iter().flatten() {
                let word = |key: &str| tool[key].as_str().unwrap_or_default().to_owned();
                lines.push((
                    word("decision"),
                    // A line end in a stranger's name would make another row.
                    line(&format!("{name}/{}", word("tool")), SHOWN),
                    word("rule"),
                ));
                for rule in tool["byInput"].as_array().into_iter().flatten() {
                    let rule = rule.as_str().unwrap_or_default().to_owned();
                    lines.push((String::new(), "  but".to_owned(), rule));
                }
            }
        }
        let width = lines
            .iter()
            .map(|(_, tool, _)| tool.len())
            .max()
            .unwrap_or(0);
        let rows = lines
            .iter()
            .map(|(decision, tool, rule)| format!("{decision:5}  {tool:width$}  {rule}\n"));
        rows.chain([self.warnings()]).collect()
    }
}
