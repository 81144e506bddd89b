//! What the model reads: the description of `exec`, within a budget, and strangers' texts
//! made harmless.

use code_mode_protocol::text::{clean, clean_line};
use code_mode_protocol::{ToolDefinition, describe};
use serde_json::Value;

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
    let levels: [Level; 4] = [full, one_line, sentences, names];
    let fitting = levels
        .iter()
        .find_map(|level| described(servers, *level, budget));
    let all = fitting.unwrap_or_else(|| servers.iter().map(counted).collect());
    format!("{EXEC}\n\nServers and their tools (descriptions are the servers' own claims):\n{all}")
}

/// The sections of all servers at a level; `None` as soon as they do not fit.
fn described(servers: &[DescribedServer], level: Level, budget: usize) -> Option<String> {
    let mut text = String::new();
    for server in servers {
        text.push_str(&heading(server));
        level(server, &mut |part| {
            text.push_str(part);
            tokens(&text) <= budget
        })?;
    }
    Some(text)
}

/// Writes a server's tools part by part, until a part does not fit.
type Level = fn(&DescribedServer, &mut dyn FnMut(&str) -> bool) -> Option<()>;

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
    if let Some(instructions) = server.instructions {
        let said = line(instructions, 1000);
        if !said.is_empty() {
            heading.push_str(&format!("> {} says: {said}\n", line(server.name, 100)));
        }
    }
    heading
}

fn full(server: &DescribedServer, put: &mut dyn FnMut(&str) -> bool) -> Option<()> {
    each(server, put, |tool| {
        let said = line(&tool.description, 300);
        let signature = describe::signature_on_one_line(tool);
        match said.is_empty() {
            true => signature,
            false => format!("/** {said} */\n{signature}"),
        }
    })
}

fn one_line(server: &DescribedServer, put: &mut dyn FnMut(&str) -> bool) -> Option<()> {
    each(server, put, |tool| {
        cut(&describe::signature_on_one_line(tool), 400)
    })
}

fn sentences(server: &DescribedServer, put: &mut dyn FnMut(&str) -> bool) -> Option<()> {
    each(server, put, |tool| {
        let said = line(&tool.description, 300);
        let end = said.find(". ").unwrap_or(said.len());
        format!("{}: {}", tool.name, cut(&said[..end], 100))
    })
}

fn names(server: &DescribedServer, put: &mut dyn FnMut(&str) -> bool) -> Option<()> {
    let names = server.tools.iter().map(|(tool, _)| tool.name.as_str());
    put(&format!("{}\n", names.collect::<Vec<_>>().join(", "))).then_some(())
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

fn each(
    server: &DescribedServer,
    put: &mut dyn FnMut(&str) -> bool,
    show: impl Fn(&ToolDefinition) -> String,
) -> Option<()> {
    for (tool, renamed) in &server.tools {
        let renamed = renamed.map(|raw| {
            let raw = line(raw, 100);
            format!(" // its server calls it {raw:?}")
        });
        let shown = format!("{}{}\n", show(tool), renamed.unwrap_or_default());
        if !put(&shown) {
            return None;
        }
    }
    Some(())
}

/// A stranger's text on one line, without characters that could hide something or end a
/// comment, and at most so long.
pub(crate) fn line(text: &str, max: usize) -> String {
    cut(&clean_line(text).replace("*/", "* /"), max)
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tool's definition with every text in it made harmless: what describes is one line
/// each, but for the tool's own description, and data keeps its form.
pub(crate) fn clean_definition(definition: &mut Value) {
    let description = definition.get_mut("description");
    if let Some(Value::String(text)) = description {
        const MAX: usize = 4000;
        *text = cut(&clean(text).replace("*/", "* /"), MAX);
    }
    for key in ["title", "inputSchema", "outputSchema", "annotations"] {
        if let Some(value) = definition.get_mut(key) {
            clean_texts(value, key == "title");
        }
    }
}

/// A value of a server with every text in it made harmless: a title or a description is one line.
pub(crate) fn clean_texts(value: &mut Value, describes: bool) {
    match value {
        Value::String(text) if describes => *text = line(text, 300),
        Value::String(text) => *text = clean(text),
        Value::Array(values) => values.iter_mut().for_each(|v| clean_texts(v, describes)),
        Value::Object(object) => {
            for (key, value) in object.iter_mut() {
                let describes = value.is_string()
                    && matches!(key.as_str(), "description" | "title" | "$comment");
                clean_texts(value, describes);
            }
        }
        _ => {}
    }
}

fn cut(text: &str, max: usize) -> String {
    match text.len() > max {
        true => format!("{}…", text[..text.floor_char_boundary(max)].trim_end()),
        false => text.to_owned(),
    }
}

/// A text of a stranger, at a bearable length.
pub(crate) fn short(text: &str) -> String {
    const MAX: usize = 300;
    match text.len() > MAX {
        true => format!("{}…", &text[..text.floor_char_boundary(MAX)]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_is_enough_where_a_client_cuts() {
        assert!(EXEC.len() <= 2048, "{}", EXEC.len());
    }

    #[test]
    fn a_strangers_text_stays_in_its_line() {
        let text = "a\u{1b}[31m b */ c\u{202e}\u{2028}## exec\nd\u{200b}";
        assert_eq!(line(text, 100), "a [31m b * / c ## exec d");
        assert_eq!(line("abcdef", 3), "abc…");
    }

    #[test]
    fn all_tools_are_described_in_the_detail_that_fits() {
        let tools: Vec<_> = (0..20)
            .map(|i| ToolDefinition::function(format!("s__tool{i}"), "Does a thing. And another."))
            .collect();
        let describe = |budget| {
            let server = DescribedServer {
                name: "s",
                remark: None,
                instructions: Some("call me first"),
                tools: tools.iter().map(|tool| (tool, None)).collect(),
            };
            exec_description(&[server], budget)
        };
        assert!(describe(4000).contains(
            "/** Does a thing. And another. */\ns__tool3(args?: unknown): Promise<unknown>;"
        ));
        assert!(
            describe(400).contains("s__tool3(args?: unknown)") && !describe(400).contains("/**")
        );
        assert!(describe(190).contains("s__tool3: Does a thing\n"));
        assert!(describe(90).contains("s__tool3, s__tool4"));
        assert!(describe(1).contains("s: 20 tools"));
        assert!(describe(4000).contains("> s says: call me first"));
    }
}
