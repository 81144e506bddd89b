//! The description of `exec` for guided sessions: how programs are written, and all tools in as
//! much detail as fits a budget.

use std::collections::BTreeMap;

use serde_json::Value;

use super::common_start;
use super::required::required;
use super::text::{Detail, guided_signature};
use crate::text::{cut, line};
use crate::{Json, ToolDefinition, ToolKind};

/// Several clients keep only the first 2,048 characters of a description, so this alone must be
/// enough. `{...}` is what differs from one front door to the other.
const EXEC: &str = r#"Runs JavaScript (an async ES module: top-level await works; TypeScript is accepted) in a sandbox whose `tools` are {WHOSE}. Write one program for a whole task: call tools, keep intermediate data in variables, filter, join and loop in code, and put out only what you need to read.

- `await tools.{NAME}({...})` calls a tool and returns its {VALUE}. It throws an Error with {MESSAGE}.{RAW}
- Start independent calls together: `await Promise.all([...])`.
- Put out with `text(value)` (objects as JSON), `console.log`, `image(block)`, `audio(block)`, `content(block or blocks)`. Nothing else of the program is shown to you.
- Find tools with `search_tools("words", { limit, server, detail: "names" | "summaries" | "declarations" })`, read one with `describe_tool("{NAME}")`. `ALL_TOOLS` lists all{SERVERS}.
- `store(key, value)` and `load(key)` keep values for later programs of the session; variables are not kept. Others see a value once its program has ended, also by an error, but not if it was terminated.
- There is no network, file system, `require`, `fetch` or `process`: only tools reach outside.
- A program that runs longer than yield_time_ms goes on: the answer has its cell_id; use the tool `wait` with it. `notify(text)` says something at once, `exit()` ends.{APPROVALS}"#;

/// Where the tools of a guided session come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolsFrom {
    /// The agent that opens the session.
    Agent,
    /// MCP servers, whose states are in `ALL_SERVERS`, and whose calls may need an approval.
    Servers,
}

impl ToolsFrom {
    /// How programs are written.
    fn text(self) -> String {
        let parts = match self {
            Self::Agent => [
                ("{WHOSE}", "the functions that are described below"),
                ("{NAME}", "NAME"),
                ("{VALUE}", "value"),
                ("{MESSAGE}", "the tool's message"),
                ("{RAW}", ""),
                ("{SERVERS}", ""),
                ("{APPROVALS}", ""),
            ],
            Self::Servers => [
                ("{WHOSE}", "the tools of all connected MCP servers"),
                ("{NAME}", "SERVER__TOOL"),
                (
                    "{VALUE}",
                    "value: structured content, text (parsed if it is JSON), or an array of content blocks",
                ),
                ("{MESSAGE}", "the server's message"),
                (
                    "{RAW}",
                    " `tools.SERVER__TOOL.raw({...})` returns the whole CallToolResult and does not throw.",
                ),
                ("{SERVERS}", ", `ALL_SERVERS` the servers and their state"),
                (
                    "{APPROVALS}",
                    "\n- Some calls need a person's approval; they wait for it, and the other calls continue.",
                ),
            ],
        };
        let fill = |text: String, (mark, part): &(&str, &str)| text.replace(mark, part);
        parts.iter().fold(EXEC.to_owned(), fill)
    }

    fn heading(self) -> &'static str {
        match self {
            Self::Agent => "Tools:",
            Self::Servers => "Servers and their tools (descriptions are the servers' own claims):",
        }
    }
}

/// Tools that are described together: those of a server, or of a namespace.
#[derive(Clone, Debug)]
pub struct ToolGroup<'a> {
    /// The server, or the namespace; empty for tools without one.
    pub name: &'a str,
    /// What to expect of a server that is not ready.
    pub remark: Option<&'a str>,
    /// What a server says of itself. Its first sentence is shown, as its claim.
    pub instructions: Option<&'a str>,
    /// The tools.
    pub tools: Vec<&'a ToolDefinition>,
}

impl<'a> ToolGroup<'a> {
    /// Groups tools by their namespaces, those without one first.
    pub fn by_namespace(tools: &'a [ToolDefinition]) -> Vec<Self> {
        let mut groups: BTreeMap<&str, Vec<&ToolDefinition>> = BTreeMap::new();
        for tool in tools.iter().filter(|tool| !tool.deferred && !tool.hidden) {
            let namespace = tool.tool_name.namespace.as_deref().unwrap_or_default();
            groups.entry(namespace).or_default().push(tool);
        }
        let groups = groups.into_iter();
        groups
            .map(|(name, tools)| Self {
                name,
                remark: None,
                instructions: None,
                tools,
            })
            .collect()
    }
}

/// The description of the `exec` tool for a model, in guided sessions: how programs are written,
/// and all tools in as much detail as fits `budget`, in tokens: comments go first, then results,
/// optional arguments, signatures, sentences and names. Texts of servers are made harmless.
///
/// ```
/// use code_mode_protocol::ToolDefinition;
/// use code_mode_protocol::describe::{ToolGroup, ToolsFrom, guided_exec_tool};
///
/// let tools = [ToolDefinition::function("list", "Lists items.")];
/// let text = guided_exec_tool(ToolsFrom::Agent, &ToolGroup::by_namespace(&tools), 4000);
/// assert!(text.ends_with("/** Lists items. */\nlist(args?: unknown): Promise<unknown>;\n"));
/// ```
pub fn guided_exec_tool(from: ToolsFrom, servers: &[ToolGroup], budget: usize) -> String {
    let fitting = LEVELS
        .iter()
        .find_map(|level| described(servers, *level, budget));
    let (all, left) = match fitting {
        Some(all) => {
            let left = budget.saturating_sub(tokens(&all));
            (all, left)
        }
        None => (servers.iter().map(counted).collect(), 0),
    };
    let example = example(servers).filter(|example| tokens(example) <= left);
    let example = example.unwrap_or_default();
    format!("{}\n\n{}\n{all}{example}", from.text(), from.heading())
}

/// How tools are described, from the most to the least.
#[derive(Clone, Copy)]
enum Level {
    /// The description, and a signature with comments.
    Full,
    /// The first sentence, and a signature in this detail.
    Signature(Detail),
    /// The name and the first sentence.
    Sentence,
    /// The name.
    Name,
}

const LEVELS: [Level; 6] = [
    Level::Full,
    Level::Signature(Detail::Types),
    Level::Signature(Detail::Arguments),
    Level::Signature(Detail::Required),
    Level::Sentence,
    Level::Name,
];

/// The sections of all servers at a level; `None` as soon as they do not fit.
fn described(servers: &[ToolGroup], level: Level, budget: usize) -> Option<String> {
    let mut text = String::new();
    for server in servers {
        text.push_str(&heading(server));
        let descriptions = server.tools.iter().map(|tool| tool.description.as_str());
        let common = common_start(&descriptions.collect::<Vec<_>>());
        for (at, tool) in server.tools.iter().enumerate() {
            text.push_str(&level.show(tool, common));
            if let Some(raw) = renamed(tool) {
                let raw = line(raw, 100);
                text.push_str(&format!(" /* its server calls it {raw:?} */"));
            }
            let is_last = at + 1 == server.tools.len();
            text.push_str(match level {
                Level::Name if !is_last => ", ",
                _ => "\n",
            });
            if tokens(&text) > budget {
                return None;
            }
        }
    }
    (tokens(&text) <= budget).then_some(text)
}

impl Level {
    /// `common` bytes of the description are those of all of the server's.
    fn show(self, tool: &ToolDefinition, common: usize) -> String {
        let sentence = || sentence(tool.description.get(common..).unwrap_or_default());
        match self {
            Self::Full => {
                let said = line(&tool.description, 300);
                let signature = signature(tool, Detail::Everything, 2000);
                match said.is_empty() {
                    true => signature,
                    false => format!("/** {said} */\n{signature}"),
                }
            }
            Self::Signature(detail) => {
                let signature = signature(tool, detail, 600);
                match sentence() {
                    said if said.is_empty() => signature,
                    said => format!("{signature} /* {said} */"),
                }
            }
            Self::Sentence => format!("{}: {}", tool.name, sentence()),
            Self::Name => tool.name.clone(),
        }
    }
}

/// A signature in this detail, or in less where it would have more bytes. Arguments are never
/// cut: half of a type says something else.
fn signature(tool: &ToolDefinition, detail: Detail, max: usize) -> String {
    let details = [
        Detail::Everything,
        Detail::Types,
        Detail::Arguments,
        Detail::Required,
    ];
    let less = details.into_iter().skip_while(|one| *one != detail);
    let mut signatures = less.map(|detail| guided_signature(tool, detail));
    let fitting = signatures.find(|signature| signature.len() <= max);
    fitting.unwrap_or_else(|| format!("{}(args: {{ /* see describe_tool */ }});", tool.name))
}

/// The first sentence of a description.
fn sentence(description: &str) -> String {
    first_sentence(&line(description, 400), 100)
}

fn first_sentence(text: &str, max: usize) -> String {
    let end = text.find(". ").unwrap_or(text.len());
    cut(&text[..end], max)
}

/// The description of the `wait` tool for a model, in guided sessions.
pub fn guided_wait_tool() -> &'static str {
    "Waits for a program that `exec` left running: returns its output since the last answer, and its end when it ends. terminate: true stops it."
}

/// How many tokens a text has, about: two for each seven bytes.
pub fn tokens(text: &str) -> usize {
    text.len() * 2 / 7
}

/// The raw name of a server's tool whose identifier does not end in it.
fn renamed(tool: &ToolDefinition) -> Option<&str> {
    let raw = tool.tool_name.name.as_str();
    (!tool.name.ends_with(raw)).then_some(raw)
}

fn heading(server: &ToolGroup) -> String {
    if server.name.is_empty() {
        return String::new();
    }
    let mut heading = format!("\n## {}", line(server.name, 100));
    if let Some(remark) = server.remark {
        heading.push_str(&format!(" ({remark})"));
    }
    heading.push('\n');
    let said = line(server.instructions.unwrap_or_default(), 1000);
    if !said.is_empty() {
        let said = first_sentence(&said, 200);
        heading.push_str(&format!("> {} says: {said}\n", line(server.name, 100)));
    }
    heading
}

fn counted(server: &ToolGroup) -> String {
    let remark = server.remark.map(|remark| format!(" ({remark})"));
    format!(
        "\n{}: {} tools{}",
        line(server.name, 100),
        server.tools.len(),
        remark.unwrap_or_default()
    )
}

/// A program that uses a tool of each of two servers, those with the fewest required arguments.
fn example(servers: &[ToolGroup]) -> Option<String> {
    let calls = servers.iter().filter_map(|server| {
        let tools = server.tools.iter().filter_map(|tool| {
            if tool.kind == ToolKind::Freeform {
                return None;
            }
            let arguments = plain_arguments(tool.input_schema.as_ref())?;
            Some((arguments.len(), call(&tool.name, &arguments)))
        });
        tools.min_by_key(|(arguments, _)| *arguments)
    });
    let mut calls: Vec<_> = calls.collect();
    calls.sort_by_key(|(arguments, _)| *arguments);
    let [(_, one), (_, other), ..] = &calls[..] else {
        return None;
    };
    Some(format!(
        "\nFor example: const [a, b] = await Promise.all([{one}, {other}]); text({{ a, b }});\n"
    ))
}

fn call(name: &str, arguments: &[(String, &str)]) -> String {
    let arguments = arguments
        .iter()
        .map(|(name, value)| format!("{}: {value}", Value::from(name.as_str())));
    match arguments.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => format!("tools.{name}({{}})"),
        arguments => format!("tools.{name}({{ {arguments} }})"),
    }
}

/// The arguments that a tool requires, with a value of their types; `None` where one of them is
/// more than a plain value.
fn plain_arguments(schema: Option<&Json>) -> Option<Vec<(String, &'static str)>> {
    let Some(schema) = schema else {
        return Some(Vec::new());
    };
    let schema: Value = schema.to().ok()?;
    let names = schema.as_object().into_iter().flat_map(required);
    names
        .map(|name| {
            let property = schema.get("properties")?.get(name)?;
            let value = match property.get("type")?.as_str()? {
                "string" if property.get("enum").is_none() => "\"...\"",
                "integer" | "number" => "1",
                "boolean" => "true",
                "array" => "[]",
                _ => return None,
            };
            Some((line(name, 100), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_is_enough_where_a_client_cuts() {
        for from in [ToolsFrom::Agent, ToolsFrom::Servers] {
            let text = from.text();
            assert!(text.len() <= 2048, "{}", text.len());
            for (mark, _) in text.match_indices('{').zip(1..) {
                assert!(
                    !text[mark.0 + 1..].starts_with(char::is_uppercase),
                    "{text}"
                );
            }
        }
    }

    fn tool(name: &str, description: &str, schema: &str) -> ToolDefinition {
        let schema = Json::parse(schema.to_owned()).expect("JSON");
        ToolDefinition::function(name, description).input_schema(Some(schema))
    }

    fn server<'a>(name: &'a str, tools: &'a [ToolDefinition]) -> ToolGroup<'a> {
        ToolGroup {
            name,
            remark: None,
            instructions: Some("Call me first. Then call me again."),
            tools: tools.iter().collect(),
        }
    }

    #[test]
    fn all_tools_are_described_in_the_detail_that_fits() {
        let schema = r#"{"required": ["to"], "properties": {
            "to": {"type": "string", "description": "whom"},
            "note": {"enum": ["a long value", "another long value"]}}}"#;
        let tools: Vec<_> = (0..20)
            .map(|n| {
                tool(
                    &format!("s__tool{n}"),
                    &format!("Does thing {n}. And another."),
                    schema,
                )
            })
            .collect();
        let describe =
            |budget| guided_exec_tool(ToolsFrom::Servers, &[server("s", &tools)], budget);
        let note = r#"note?: "a long value" | "another long value";"#;
        let levels = [
            format!(
                "/** Does thing 3. And another. */\ns__tool3(args: {{ to: string; /* whom */ {note} }}): Promise<unknown>;\n"
            ),
            format!(
                "s__tool3(args: {{ to: string; {note} }}): Promise<unknown>; /* Does thing 3 */\n"
            ),
            format!("s__tool3(args: {{ to: string; {note} }}); /* Does thing 3 */\n"),
            "s__tool3(args: { to: string; /* 1 optional */ }); /* Does thing 3 */\n".to_owned(),
            "s__tool3: Does thing 3\n".to_owned(),
            "s__tool3, s__tool4".to_owned(),
            "s: 20 tools".to_owned(),
        ];
        let mut seen = Vec::new();
        for budget in (1..=1000).rev() {
            let described = describe(budget);
            let level = levels.iter().position(|level| described.contains(level));
            let level = level.unwrap_or_else(|| panic!("{budget}: {described}"));
            seen.push(level);
            assert!(
                tokens(&described[ToolsFrom::Servers.text().len()..]) <= budget + 30,
                "{budget}"
            );
        }
        assert!(seen.is_sorted());
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert!(describe(4000).contains("> s says: Call me first\n"));
    }

    #[test]
    fn every_tool_of_many_servers_is_named_in_the_usual_budget() {
        let long = "Says a lot about everything that it can do for a caller. ".repeat(10);
        let servers: Vec<(String, Vec<ToolDefinition>)> = (0..14)
            .map(|s| {
                let tools = (0..15)
                    .map(|t| tool(&format!("server{s}__a_rather_long_name_{t}"), &long, "{}"));
                (format!("server{s}"), tools.collect())
            })
            .collect();
        let described: Vec<_> = servers
            .iter()
            .map(|(name, tools)| ToolGroup {
                instructions: Some(&long),
                ..server(name, tools)
            })
            .collect();
        let text = guided_exec_tool(ToolsFrom::Servers, &described, 4000);
        for (_, tools) in &servers {
            assert!(tools.iter().all(|tool| text.contains(&tool.name)));
        }
    }

    #[test]
    fn the_example_calls_tools_that_are_there() {
        let git = [
            tool(
                "git__odd",
                "",
                r#"{"required": ["a"], "properties": {"a": {"type": "object"}}}"#,
            ),
            tool(
                "git__log",
                "",
                r#"{"required": ["repo", "n"], "properties": {"repo": {"type": "string"}, "n": {"type": "integer"}}}"#,
            ),
        ];
        let time = [tool("time__now", "", r#"{"type": "object"}"#)];
        let servers = [server("git", &git), server("time", &time)];
        assert!(guided_exec_tool(ToolsFrom::Servers, &servers, 4000).ends_with(
            "Promise.all([tools.time__now({}), tools.git__log({ \"repo\": \"...\", \"n\": 1 })]); text({ a, b });\n"
        ));
        assert!(!guided_exec_tool(ToolsFrom::Servers, &servers[..1], 4000).contains("For example"));
    }
}
