//! A session's tools, in the form isolates use.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use code_mode_protocol::describe::common_start;
use code_mode_protocol::wire::native::{ToolDetails, WireTool};
use code_mode_protocol::{ToolDefinition, describe, normalize_tool_name};
use serde_json::{Value, json};

use crate::shapes::Shapes;
use crate::tool_search::{Index, near, parameters, schema, summary};

/// A set of tools, made once and shared by every cell that has them, so that an
/// unchanged set costs nothing for each cell.
#[derive(Debug, Default)]
pub(crate) struct ToolTable {
    tools: Vec<WireTool>,
    /// Made when a cell first asks: most cells never do.
    by_name: OnceLock<HashMap<String, u32>>,
    /// `ALL_TOOLS` as JSON text.
    listing: OnceLock<String>,
    index: OnceLock<Index>,
    /// For each server: how much of its tools' descriptions says the same.
    common: OnceLock<HashMap<String, usize>>,
    /// For each tool that was called in this set: the names of its parameters.
    parameters: Mutex<HashMap<u32, Arc<[String]>>>,
}

impl ToolTable {
    /// A table of these tools; of two with one name the last is reached.
    pub(crate) fn new(tools: Vec<WireTool>) -> Self {
        Self {
            tools,
            by_name: OnceLock::new(),
            listing: OnceLock::new(),
            index: OnceLock::new(),
            common: OnceLock::new(),
            parameters: Mutex::default(),
        }
    }

    /// Whether a cell may ask how a tool is called.
    pub(crate) fn has_details(&self) -> bool {
        self.tools.iter().any(|tool| tool.details.is_some())
    }

    /// The tool at a place.
    pub(crate) fn get(&self, index: u32) -> Option<&WireTool> {
        self.tools.get(index as usize)
    }

    /// The place of the tool that a name reaches.
    pub(crate) fn index_of(&self, name: &str) -> Option<u32> {
        self.by_name
            .get_or_init(|| {
                let numbered = (0u32..).zip(&self.tools);
                numbered.map(|(i, t)| (t.name.clone(), i)).collect()
            })
            .get(name)
            .copied()
    }

    /// The names of a tool's parameters, where its schema lists them.
    pub(crate) fn parameters(&self, index: u32) -> Arc<[String]> {
        let mut known = self
            .parameters
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let read = || {
            let details = self.get(index).and_then(|tool| tool.details.as_ref());
            parameters(details.and_then(|details| details.input_schema.as_deref())).into()
        };
        known.entry(index).or_insert_with(read).clone()
    }

    /// A tool's description without what all of its server's begin with.
    fn own_description<'a>(&self, tool: &'a WireTool) -> &'a str {
        let Some(server) = tool.details.as_ref().and_then(server) else {
            return &tool.description;
        };
        let common = self.common.get_or_init(|| {
            let mut by_server: HashMap<&str, Vec<&str>> = HashMap::new();
            for tool in &self.tools {
                if let Some(server) = tool.details.as_ref().and_then(crate::tools::server) {
                    by_server.entry(server).or_default().push(&tool.description);
                }
            }
            let by_server = by_server.into_iter();
            by_server
                .map(|(server, all)| (server.to_owned(), common_start(&all)))
                .collect()
        });
        let common = common.get(server).copied().unwrap_or_default();
        tool.description.get(common..).unwrap_or(&tool.description)
    }

    /// Every name, in definition order; a name defined twice stands where it was
    /// defined first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let mut seen = std::collections::HashSet::new();
        self.tools
            .iter()
            .map(|tool| tool.name.as_str())
            .filter(move |name| seen.insert(*name))
    }

    /// The value of `ALL_TOOLS`, as JSON text.
    pub(crate) fn listing(&self) -> &str {
        self.listing.get_or_init(|| {
            #[derive(serde::Serialize)]
            struct Listed<'a> {
                name: &'a str,
                description: &'a str,
                #[serde(skip_serializing_if = "Option::is_none")]
                server: Option<&'a str>,
                #[serde(skip_serializing_if = "Option::is_none")]
                tool: Option<&'a str>,
                /// Says to `bootstrap.js` that there is a declaration.
                #[serde(skip_serializing_if = "std::ops::Not::not")]
                described: bool,
            }
            let list: Vec<_> = self
                .tools
                .iter()
                .filter(|tool| !tool.hidden)
                .map(|tool| {
                    let server = tool.details.as_ref().and_then(server);
                    Listed {
                        name: &tool.name,
                        description: &tool.description,
                        server,
                        tool: server.and(tool.details.as_ref().map(|d| d.tool_name.name.as_str())),
                        described: tool.details.is_some(),
                    }
                })
                .collect();
            // Strings alone cannot fail to serialise.
            serde_json::to_string(&list).unwrap_or_else(|_| "[]".to_owned())
        })
    }

    /// The tools of a server, each with its own name and the name that it is called by; a server
    /// may be named as an identifier writes it.
    pub(crate) fn of_server(&self, server: &str) -> impl Iterator<Item = (String, &str)> {
        self.tools.iter().filter_map(move |tool| {
            let full = &tool.details.as_ref()?.tool_name;
            let namespace = full.namespace.as_deref()?;
            let normal = normalize_tool_name(namespace);
            let own = tool.name.strip_prefix(&normal)?.strip_prefix("__")?;
            (namespace == server || normal == server).then(|| (own.to_owned(), tool.name.as_str()))
        })
    }

    /// What to say of a name that no tool has, and that was called with this text.
    pub(crate) fn unknown(&self, name: &str, argument: &str) -> String {
        let help = self.instead_of(name, argument);
        format!("no tool is called `{name}`: {help}")
    }

    fn instead_of(&self, name: &str, argument: &str) -> String {
        const CALLS: [&str; 11] = [
            "call",
            "invoke",
            "execute",
            "run",
            "callTool",
            "call_tool",
            "get",
            "find",
            "filter",
            "map",
            "forEach",
        ];
        if self.tools.is_empty() {
            return "this cell has no tools".to_owned();
        }
        if CALLS.contains(&name) {
            let near = near(argument, self.names());
            let called = match near.first() {
                Some(tool) if !argument.is_empty() => tool,
                _ => "NAME",
            };
            return format!("a tool is called by its name: await tools.{called}(input)");
        }
        let near = near(name, self.names());
        if near.is_empty() {
            return "search_tools(\"words\") finds one, ALL_TOOLS has them all (\"NAME\" in tools tests for one)".to_owned();
        }
        let near: Vec<_> = near.iter().map(|name| format!("tools.{name}")).collect();
        format!("did you mean {}?", near.join(", "))
    }

    /// How a tool is called, as TypeScript.
    pub(crate) fn declaration(&self, name: &str, shapes: &Shapes) -> Option<String> {
        let tool = self.get(self.index_of(name)?)?;
        let details = tool.details.as_ref()?;
        let definition = ToolDefinition::function(&tool.name, "")
            .tool_name(details.tool_name.clone())
            .kind(tool.kind)
            .input_schema(schema(details.input_schema.as_ref()))
            .output_schema(schema(details.output_schema.as_ref()))
            .observed(match shapes.of(name) {
                Some(shape) => Some(format!(
                    "/* as observed in this session */ {}",
                    shape.typescript()
                )),
                None => details.observed.clone(),
            })
            .answer(tool.answer);
        Some(describe::guided_declaration(&definition))
    }

    /// The declaration with the description above it.
    pub(crate) fn description(&self, name: &str, shapes: &Shapes) -> Option<String> {
        let declaration = self.declaration(name, shapes)?;
        let tool = self.get(self.index_of(name)?)?;
        let description = tool.description.trim().replace("*/", "* /");
        if description.is_empty() {
            return Some(declaration);
        }
        let lines = description
            .lines()
            .map(|line| format!(" * {line}").trim_end().to_owned());
        let lines: Vec<_> = lines.collect();
        Some(format!("/**\n{}\n */\n{declaration}", lines.join("\n")))
    }

    /// What `search_tools` finds, as JSON: `{"tools": [...], "servers": [...]}`.
    pub(crate) fn search(
        &self,
        query: &str,
        limit: usize,
        of_server: Option<&str>,
        detail: &str,
        shapes: &Shapes,
    ) -> String {
        let found = if query.trim().is_empty() {
            self.by_server()
        } else {
            self.index
                .get_or_init(|| Index::new(&self.tools))
                .search(&self.tools, query)
        };
        let is_of = |tool: &&WireTool| match of_server {
            _ if tool.hidden => false,
            None => true,
            Some(name) => tool.details.as_ref().and_then(server) == Some(name),
        };
        /// Declarations of so many bytes are given; tools beyond have their descriptions alone.
        const MAX_DECLARED: usize = 1 << 20;
        let mut declared = 0;
        let tools: Vec<Value> = found
            .into_iter()
            .filter_map(|index| self.get(index))
            .filter(is_of)
            .take(limit)
            .map(|tool| match detail {
                "names" => Value::from(tool.name.as_str()),
                "declarations" if declared <= MAX_DECLARED => {
                    let declaration = self.declaration(&tool.name, shapes);
                    declared += declaration.as_ref().map_or(0, String::len);
                    json!({
                        "name": tool.name,
                        "description": summary(self.own_description(tool)),
                        "declaration": declaration,
                    })
                }
                _ => json!({
                    "name": tool.name,
                    "description": summary(self.own_description(tool)),
                }),
            })
            .collect();
        let servers: BTreeSet<&str> = self
            .tools
            .iter()
            .filter_map(|tool| tool.details.as_ref().and_then(server))
            .collect();
        json!({"tools": tools, "servers": servers}).to_string()
    }

    /// All tools, by server and then by name.
    fn by_server(&self) -> Vec<u32> {
        let mut all: Vec<u32> = (0u32..).zip(&self.tools).map(|(index, _)| index).collect();
        let key = |index: &u32| {
            let tool = self.get(*index);
            let server = tool.and_then(|tool| tool.details.as_ref()).and_then(server);
            (server, tool.map(|tool| tool.name.as_str()))
        };
        all.sort_by(|a, b| key(a).cmp(&key(b)));
        all
    }
}

fn server(details: &ToolDetails) -> Option<&str> {
    details.tool_name.namespace.as_deref()
}
