//! Tools as commands of this machine, described in TOML.

use std::path::{Path, PathBuf};
use std::time::Duration;

use code_mode_protocol::{Json, ToolDefinition, ToolKind, ToolName};
use serde::Deserialize;

/// A file of tools.
///
/// ```toml
/// [[tool]]
/// name = "log"
/// description = "Commits, newest first"
/// command = ["git", "log", "--max-count={count}"]
/// [tool.input_schema]
/// type = "object"
/// properties.count.type = "integer"
/// required = ["count"]
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tools {
    #[serde(default)]
    tool: Vec<CommandTool>,
}

/// One tool.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandTool {
    /// Its name within the namespace.
    pub(crate) name: String,
    /// Scripts reach it as `NAMESPACE__NAME`, models see it under that heading.
    #[serde(default)]
    pub(crate) namespace: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default = "function")]
    pub(crate) kind: ToolKind,
    #[serde(default)]
    input_schema: Option<toml::Table>,
    #[serde(default)]
    output_schema: Option<toml::Table>,
    /// The command asks a person: the script's deadlines stand still while it runs.
    #[serde(default)]
    pub(crate) asks_user: bool,
    /// A second run does no harm: after a restart a durable session runs it again where nobody knows
    /// whether it ran.
    #[serde(default)]
    idempotent: bool,
    /// Left out of what `--list-tools` prints in full.
    #[serde(default)]
    deferred: bool,
    /// A program and its arguments, run without a shell; `{property}` in an
    /// argument stands for that property of the input.
    pub(crate) command: Vec<String>,
    /// Variables of the environment that the command gets besides the common ones, as
    /// `NAME` or `NAME=VALUE`.
    #[serde(default)]
    pub(crate) env: Vec<String>,
    /// Standard output is JSON where it parses as such, not a string.
    #[serde(default)]
    pub(crate) json: bool,
    /// How long the command may run; default one minute.
    #[serde(default = "one_minute")]
    timeout_ms: u64,
    /// How much it may put out; default 1 MiB.
    #[serde(default = "one_mebibyte")]
    pub(crate) max_output_bytes: usize,
    #[serde(skip)]
    input_schema_json: Option<Json>,
    #[serde(skip)]
    output_schema_json: Option<Json>,
}

fn function() -> ToolKind {
    ToolKind::Function
}

fn one_minute() -> u64 {
    60_000
}

fn one_mebibyte() -> usize {
    1 << 20
}

/// Why a tools file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ToolsError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The file is not TOML, or has another shape.
    #[error("{}: {error}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        error: Box<toml::de::Error>,
    },
    /// A tool makes no sense.
    #[error("{}: tool `{name}`: {what}", path.display())]
    Tool {
        /// The file.
        path: PathBuf,
        /// Which tool.
        name: String,
        /// The problem, as text.
        what: String,
    },
}

impl Tools {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ToolsError`], which names the file, the tool and the mistake.
    pub fn read(path: &Path) -> Result<Self, ToolsError> {
        let text = std::fs::read_to_string(path).map_err(|error| ToolsError::Read {
            path: path.to_owned(),
            error,
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file.
    ///
    /// # Errors
    /// Those of [`read`](Self::read) but the reading.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ToolsError> {
        let mut tools: Self = toml::from_str(text).map_err(|error| ToolsError::Toml {
            path: path.to_owned(),
            error: Box::new(error),
        })?;
        for tool in &mut tools.tool {
            if let Err(what) = tool.check() {
                return Err(ToolsError::Tool {
                    path: path.to_owned(),
                    name: tool.name.clone(),
                    what,
                });
            }
        }
        Ok(tools)
    }

    /// The definitions of the tools, for scripts and models.
    pub fn definitions(&self) -> Vec<ToolDefinition> {
        self.tool.iter().map(CommandTool::definition).collect()
    }

    /// What in the file is probably not meant, for the person who wrote it.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (at, tool) in self.tool.iter().enumerate() {
            let name = match &tool.namespace {
                Some(namespace) => format!("{namespace}__{}", tool.name),
                None => tool.name.clone(),
            };
            let is_same =
                |other: &CommandTool| other.name == tool.name && other.namespace == tool.namespace;
            if self.tool[..at].iter().any(is_same) {
                warnings.push(format!(
                    "tool `{name}` is defined twice; the last one is used"
                ));
            }
            let of_tool = tool.warnings().into_iter();
            warnings.extend(of_tool.map(|what| format!("tool `{name}`: {what}")));
        }
        warnings
    }

    /// The tool that an invocation names.
    pub(crate) fn get(&self, name: &ToolName) -> Option<&CommandTool> {
        // As on `tools`, the last of one name wins.
        self.tool
            .iter()
            .rev()
            .find(|tool| tool.name == name.name && tool.namespace == name.namespace)
    }
}

impl CommandTool {
    fn check(&mut self) -> Result<(), String> {
        if self.name.is_empty() {
            return Err("the name is empty".to_owned());
        }
        let Some(program) = self.command.first() else {
            return Err("the command is empty".to_owned());
        };
        if program.is_empty() || !super::command_tool::placeholders(program)?.is_empty() {
            return Err("the command's program cannot come from the input".to_owned());
        }
        if let Some(odd) = self.env.iter().find(|env| {
            let name = env.split_once('=').map_or(env.as_str(), |(name, _)| name);
            name.is_empty() || env.contains('\0')
        }) {
            return Err(format!(
                "`{odd}` is not the name of an environment variable"
            ));
        }
        for argument in &self.command {
            super::command_tool::placeholders(argument)?;
        }
        let json = |schema: &Option<toml::Table>| {
            schema
                .as_ref()
                .map(Json::from_value)
                .transpose()
                .map_err(|error| error.to_string())
        };
        self.input_schema_json = match &self.input_schema {
            None if self.kind == ToolKind::Function => self.schema_of_placeholders(),
            schema => json(schema)?,
        };
        self.output_schema_json = json(&self.output_schema)?;
        Ok(())
    }

    /// The properties that the command takes from the input, each once.
    fn placeholders(&self) -> Vec<&str> {
        let mut all: Vec<&str> = Vec::new();
        for argument in &self.command {
            // A mistake in an argument was reported before.
            for name in super::command_tool::placeholders(argument).unwrap_or_default() {
                if !all.contains(&name) {
                    all.push(name);
                }
            }
        }
        all
    }

    /// What a command takes whose tool has no schema: its placeholders.
    fn schema_of_placeholders(&self) -> Option<Json> {
        let names = self.placeholders();
        if names.is_empty() {
            return None;
        }
        let scalar = serde_json::json!({"type": ["string", "number", "boolean"]});
        let properties: serde_json::Map<_, _> = names
            .iter()
            .map(|name| ((*name).to_owned(), scalar.clone()))
            .collect();
        let schema =
            serde_json::json!({"type": "object", "properties": properties, "required": names});
        Json::from_value(&schema).ok()
    }

    /// Warnings about the definition, each with the text to write instead.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let properties = self
            .input_schema
            .as_ref()
            .and_then(|schema| schema.get("properties"));
        if let (ToolKind::Function, Some(toml::Value::Table(properties))) = (self.kind, properties)
        {
            let unfed = self
                .placeholders()
                .into_iter()
                .filter(|name| !properties.contains_key(*name));
            warnings.extend(unfed.map(|name| {
                format!("`{{{name}}}` in its command is not a property of its input_schema: add properties.{name}")
            }));
        }
        if let Some(argument) = self.shell_text() {
            warnings.push(format!(
                "its shell runs what the script puts into `{argument}`: write [\"sh\", \"-c\", \"... \\\"$1\\\"\", \"sh\", \"{{name}}\"], or no shell"
            ));
        }
        warnings
    }

    /// The text that a shell runs, where it contains a placeholder.
    fn shell_text(&self) -> Option<&str> {
        const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "fish"];
        let [program, options @ ..] = self.command.as_slice() else {
            return None;
        };
        let name = Path::new(program).file_name()?.to_str()?;
        if !SHELLS.contains(&name) {
            return None;
        }
        let is_text = |option: &String| option.starts_with('-') && option.ends_with('c');
        let text = options.get(options.iter().position(is_text)? + 1)?;
        let takes = super::command_tool::placeholders(text).ok()?;
        (!takes.is_empty()).then_some(text)
    }

    fn definition(&self) -> ToolDefinition {
        let name = match &self.namespace {
            Some(namespace) => format!("{namespace}__{}", self.name),
            None => self.name.clone(),
        };
        ToolDefinition::function(name, &self.description)
            .tool_name(ToolName {
                name: self.name.clone(),
                namespace: self.namespace.clone(),
            })
            .kind(self.kind)
            .input_schema(self.input_schema_json.clone())
            .output_schema(self.output_schema_json.clone())
            .deferred(self.deferred)
            .idempotent(self.idempotent)
    }

    /// How long the command may run.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            head in "(\\[\\[tool\\]\\]\nname = 'x'\n)?",
            text in "(command = \\[('[a-z{}]{0,6}',?){0,3}\\]\n)?\\PC{0,30}"
        ) {
            let _ = Tools::parse(&format!("{head}{text}"), Path::new("tools.toml"));
        }
    }
}
