//! The description of `exec` that a model reads: how programs are written, and all tools in as
//! much detail as fits a budget.

use code_mode_protocol::describe::common_start;
use code_mode_protocol::describe::{self, Detail};
use code_mode_protocol::{Json, ToolDefinition};
use serde_json::Value;

use crate::texts::{cut, line};

/// How the tool `exec` is used. Several clients keep only the first 2,048 characters of a
/// description, so this alone must be enough.
const EXEC: &str = r#"Runs JavaScript (an async ES module: top-level await works; TypeScript is accepted) in a sandbox whose `tools` are the tools of all connected MCP servers. Write one program for a whole task: call tools, keep intermediate data in variables, filter, join and loop in code, and put out only what you need to read.

- `await tools.SERVER__TOOL({...})` calls a tool and returns its value: structured content, text (parsed if it is JSON), or an array of content blocks. It throws an Error with the server's message. `tools.SERVER__TOOL.raw({...})` returns the whole CallToolResult and does not throw.
- Start independent calls together: `await Promise.all([...])`.
- Put out with `text(value)` (objects as JSON), `console.log`, `image(block)`, `audio(block)`, `content(block or blocks)`. Nothing else of the program is shown to you.
- Find tools with `search_tools("words", { limit, server, detail: "names" | "summaries" | "declarations" })`, read one with `describe_tool("SERVER__TOOL")`. `ALL_TOOLS` lists all, `ALL_SERVERS` the servers and their state.
- `store(key, value)` and `load(key)` keep values for later programs of the session; variables are not kept.
- There is no network, file system, `require`, `fetch` or `process`: only tools reach outside.
- A program that runs longer than yield_time_ms goes on: the answer has its cell_id; use the tool `wait` with it. `notify(text)` says something at once, `exit()` ends.
- Some calls need a person's approval; they wait for it, and the others go on."#;

/// The description of `wait`.
pub(crate) const WAIT: &str = "Waits for a program that `exec` left running: returns its output since the last answer, and its end when it ends. terminate: true stops it.";

/// One server, for the description.
pub(crate) struct DescribedServer<'a> {
    pub(crate) name: &'a str,
    /// Where it is not ready: what to expect of it.
    pub(crate) remark: Option<&'static str>,
    pub(crate) instructions: Option<&'a str>,
    /// Its tools: definition, and the raw name where it differs from the identifier's.
    pub(crate) tools: Vec<(&'a ToolDefinition, Option<&'a str>)>,
}

/// The description of `exec`: all tools in as much detail as fits the budget in tokens.
pub(crate) fn exec_description(servers: &[DescribedServer], budget: usize) -> String {
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
    format!(
        "{EXEC}\n\nServers and their tools (descriptions are the servers' own claims):\n{all}{example}"
    )
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
fn described(servers: &[DescribedServer], level: Level, budget: usize) -> Option<String> {
    let mut text = String::new();
    for server in servers {
        text.push_str(&heading(server));
        let descriptions = server
            .tools
            .iter()
            .map(|(tool, _)| tool.description.as_str());
        let common = common_start(&descriptions.collect::<Vec<_>>());
        for (at, (tool, renamed)) in server.tools.iter().enumerate() {
            text.push_str(&level.show(tool, common));
            if let Some(raw) = renamed {
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
    let mut signatures = less.map(|detail| describe::guided_signature(tool, detail));
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

/// A text's tokens, about.
pub(crate) fn tokens(text: &str) -> usize {
    text.len() * 2 / 7
}

fn heading(server: &DescribedServer) -> String {
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

fn counted(server: &DescribedServer) -> String {
    let remark = server.remark.map(|remark| format!(" ({remark})"));
    format!(
        "\n{}: {} tools{}",
        line(server.name, 100),
        server.tools.len(),
        remark.unwrap_or_default()
    )
}

/// A program that uses a tool of each of two servers, those with the fewest required arguments.
fn example(servers: &[DescribedServer]) -> Option<String> {
    let calls = servers.iter().filter_map(|server| {
        let tools = server.tools.iter().filter_map(|(tool, _)| {
            let arguments = required(tool.input_schema.as_ref())?;
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
fn required(schema: Option<&Json>) -> Option<Vec<(String, &'static str)>> {
    let Some(schema) = schema else {
        return Some(Vec::new());
    };
    let schema: Value = schema.to().ok()?;
    let names = schema.get("required").and_then(Value::as_array);
    let names = names.into_iter().flatten().filter_map(Value::as_str);
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
        assert!(EXEC.len() <= 2048, "{}", EXEC.len());
    }

    fn tool(name: &str, description: &str, schema: &str) -> ToolDefinition {
        let schema = Json::parse(schema.to_owned()).expect("JSON");
        ToolDefinition::function(name, description).input_schema(Some(schema))
    }

    fn server<'a>(name: &'a str, tools: &'a [ToolDefinition]) -> DescribedServer<'a> {
        DescribedServer {
            name,
            remark: None,
            instructions: Some("Call me first. Then call me again."),
            tools: tools.iter().map(|tool| (tool, None)).collect(),
        }
    }

    #[test]
    fn all_tools_are_described_in_the_detail_that_fits() {
        let schema = r#"{"required": ["to"], "properties": {
            "to": {"type": "string", "description": "whom"},
            "note": {"enum": ["a long value", "another long value"]}}}"#;
        let tools: Vec<_> = (0..20)
            .map(|n| tool(&format!("s__tool{n}"), "Does a thing. And another.", schema))
            .collect();
        let describe = |budget| exec_description(&[server("s", &tools)], budget);
        let note = r#"note?: "a long value" | "another long value";"#;
        let levels = [
            format!(
                "/** Does a thing. And another. */\ns__tool3(args: {{ to: string; /* whom */ {note} }}): Promise<unknown>;\n"
            ),
            format!(
                "s__tool3(args: {{ to: string; {note} }}): Promise<unknown>; /* Does a thing */\n"
            ),
            format!("s__tool3(args: {{ to: string; {note} }}); /* Does a thing */\n"),
            "s__tool3(args: { to: string; /* 1 optional */ }); /* Does a thing */\n".to_owned(),
            "s__tool3: Does a thing\n".to_owned(),
            "s__tool3, s__tool4".to_owned(),
            "s: 20 tools".to_owned(),
        ];
        let mut seen = Vec::new();
        for budget in (1..=1000).rev() {
            let described = describe(budget);
            let level = levels.iter().position(|level| described.contains(level));
            seen.push(level.expect("some detail"));
            assert!(tokens(&described[EXEC.len()..]) <= budget + 30, "{budget}");
        }
        assert!(seen.is_sorted());
        seen.dedup();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert!(describe(4000).contains("> s says: Call me first\n"));
    }

    #[test]
    fn every_tool_of_many_servers_is_named_in_the_usual_budget() {
        let long = "Says a lot about everything that it can do for whoever asks. ".repeat(10);
        let servers: Vec<(String, Vec<ToolDefinition>)> = (0..14)
            .map(|s| {
                let tools = (0..15)
                    .map(|t| tool(&format!("server{s}__a_rather_long_name_{t}"), &long, "{}"));
                (format!("server{s}"), tools.collect())
            })
            .collect();
        let described: Vec<_> = servers
            .iter()
            .map(|(name, tools)| DescribedServer {
                instructions: Some(&long),
                ..server(name, tools)
            })
            .collect();
        let text = exec_description(&described, 4000);
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
        assert!(exec_description(&servers, 4000).ends_with(
            "Promise.all([tools.time__now({}), tools.git__log({ \"repo\": \"...\", \"n\": 1 })]); text({ a, b });\n"
        ));
        assert!(!exec_description(&servers[..1], 4000).contains("For example"));
    }
}
