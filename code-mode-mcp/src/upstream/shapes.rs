//! What the results of a server's tools looked like, kept on disk: types and keys, never values.
//!
//! A shape belongs to the hash of its tool's definition, so that a tool that changed has none. The
//! shapes of earlier days are read once, when the gateway starts: a text that changed with every new
//! result would cost clients their models' caches.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use code_mode_protocol::ToolAnswer;
use code_mode_protocol::describe::Shape;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::UpstreamTool;
use super::known::cache_file;
use crate::config::ServerConfig;
use crate::folders;
use crate::texts::hex;

/// The largest file.
const MAX_BYTES: u64 = 8 << 20;
/// Tools whose shapes are kept.
const MAX_TOOLS: usize = 1024;

type ByDefinition = HashMap<String, Shape>;

/// The shapes of one server's results.
#[derive(Debug)]
pub(crate) struct KnownShapes {
    file: Option<PathBuf>,
    /// As they were when the gateway started.
    earlier: ByDefinition,
    now: Arc<Mutex<Now>>,
}

#[derive(Debug, Default)]
struct Now {
    shapes: ByDefinition,
    /// A thread writes them.
    is_written: bool,
    /// They have changed since that thread looked.
    is_dirty: bool,
}

impl KnownShapes {
    /// The shapes of a server's results so far.
    pub(super) fn read(config: &ServerConfig) -> Self {
        let file = cache_file(config, "shapes.json");
        let earlier = file.as_deref().map(read).unwrap_or_default();
        let shapes = earlier.clone();
        Self {
            file,
            earlier,
            now: Arc::new(Mutex::new(Now {
                shapes,
                ..Now::default()
            })),
        }
    }

    /// The type of the results that a tool gave before the gateway started, as TypeScript.
    pub(crate) fn earlier(&self, tool: &UpstreamTool) -> Option<String> {
        if self.earlier.is_empty() || tool.output_schema.is_some() {
            return None;
        }
        let shape = self.earlier.get(&hash(&tool.definition))?;
        Some(format!("/* as observed before */ {}", shape.typescript()))
    }

    /// A call of the tool gave this result, which is JSON.
    pub(crate) fn saw(&self, tool: &UpstreamTool, result: &str) {
        let Some(file) = self.file.as_ref().filter(|_| tool.output_schema.is_none()) else {
            return;
        };
        let hash = hash(&tool.definition);
        let mut now = lock(&self.now);
        if now.shapes.len() >= MAX_TOOLS && !now.shapes.contains_key(&hash) {
            return;
        }
        let mut shape = now.shapes.get(&hash).cloned().unwrap_or_default();
        shape.see_result(ToolAnswer::McpResult, result);
        let shape = shape.without_data();
        if shape == Shape::default() || now.shapes.get(&hash) == Some(&shape) {
            return;
        }
        now.shapes.insert(hash, shape);
        now.is_dirty = true;
        if !std::mem::replace(&mut now.is_written, true) {
            let (file, now) = (file.clone(), self.now.clone());
            tokio::task::spawn_blocking(move || write(&file, &now));
        }
    }

    /// Forgets the shapes of definitions that the server does not list any more.
    pub(super) fn only_of(&self, tools: &[UpstreamTool]) {
        let hashes: Vec<String> = tools.iter().map(|tool| hash(&tool.definition)).collect();
        let mut now = lock(&self.now);
        now.shapes.retain(|known, _| hashes.contains(known));
    }
}

fn lock(now: &Mutex<Now>) -> MutexGuard<'_, Now> {
    now.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the shapes until they do not change meanwhile. A server is as good without the file, so a
/// failure is only logged.
fn write(file: &Path, now: &Mutex<Now>) {
    loop {
        let text = {
            let mut now = lock(now);
            if !std::mem::take(&mut now.is_dirty) {
                now.is_written = false;
                return;
            }
            serde_json::to_vec(&now.shapes)
        };
        let written = text
            .map_err(std::io::Error::from)
            .and_then(|text| folders::replace(file, &text));
        if let Err(error) = written {
            tracing::debug!(%error, "the shapes of a server's results cannot be kept");
        }
    }
}

/// The shapes in a file that anyone may have written.
fn read(file: &Path) -> ByDefinition {
    let read = || {
        let file = std::fs::File::open(file).ok()?;
        let mut text = String::new();
        file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
        serde_json::from_str::<ByDefinition>(&text).ok()
    };
    let mut shapes = read().unwrap_or_default();
    shapes.retain(|_, shape| shape.is_bounded());
    match shapes.len() > MAX_TOOLS {
        true => ByDefinition::default(),
        false => shapes,
    }
}

fn hash(definition: &Value) -> String {
    let text = definition.to_string();
    hex(&Sha256::digest(text.as_bytes())[..16])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::listing::tool_of;
    use super::*;

    fn known(file: &Path) -> KnownShapes {
        KnownShapes {
            file: Some(file.to_owned()),
            earlier: read(file),
            now: Arc::new(Mutex::new(Now {
                shapes: read(file),
                ..Now::default()
            })),
        }
    }

    fn tool(description: &str) -> UpstreamTool {
        tool_of(json!({"name": "t", "description": description})).expect("a tool")
    }

    fn result(value: &Value) -> String {
        json!({"content": [{"type": "text", "text": value.to_string()}]}).to_string()
    }

    #[tokio::test]
    async fn the_second_day_knows_the_types_of_the_first_and_a_changed_tool_has_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("s.shapes.json");
        let first = known(&file);
        assert_eq!(first.earlier(&tool("a")), None);
        first.saw(
            &tool("a"),
            &result(&json!({"id": 7, "by": "ann@example.org"})),
        );
        assert_eq!(first.earlier(&tool("a")), None, "the text of a day stays");
        while lock(&first.now).is_written {
            tokio::task::yield_now().await;
        }
        let text = std::fs::read_to_string(&file).expect("written");
        assert!(!text.contains("ann") && !text.contains('7'), "{text}");
        let second = known(&file);
        assert_eq!(
            second.earlier(&tool("a")).as_deref(),
            Some("/* as observed before */ { id: number; by: string; }")
        );
        assert_eq!(second.earlier(&tool("b")), None);
        second.only_of(&[tool("b")]);
        second.saw(&tool("b"), &result(&json!([1])));
        while lock(&second.now).is_written {
            tokio::task::yield_now().await;
        }
        assert_eq!(read(&file).len(), 1);
    }

    #[tokio::test]
    async fn errors_and_results_with_a_schema_leave_no_shape() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("s.shapes.json");
        let shapes = known(&file);
        let error = json!({"isError": true, "content": [{"type": "text", "text": "{}"}]});
        shapes.saw(&tool("a"), &error.to_string());
        let mut with_schema = tool("a");
        with_schema.output_schema = Some(json!({"type": "object"}));
        shapes.saw(&with_schema, &result(&json!({"a": 1})));
        assert!(lock(&shapes.now).shapes.is_empty() && !file.exists());
    }
}
