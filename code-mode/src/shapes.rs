//! Shapes of tools' results as a session saw them.

use std::collections::BTreeMap;

use code_mode_protocol::describe::Shape;
use code_mode_protocol::wire::native::WireTool;

/// The shapes of a session's tools, by the tools' names.
#[derive(Debug, Default)]
pub(crate) struct Shapes(BTreeMap<String, Shape>);

/// Tools whose shapes are kept.
const MAX_TOOLS: usize = 1024;

impl Shapes {
    /// A tool answered with this JSON.
    pub(crate) fn see(&mut self, tool: &WireTool, json: &str) {
        if let Some(known) = self.0.get_mut(&tool.name) {
            known.see_result(tool.answer, json);
            return;
        }
        let mut shape = Shape::default();
        if self.0.len() < MAX_TOOLS && shape.see_result(tool.answer, json) {
            self.0.insert(tool.name.clone(), shape);
        }
    }

    pub(crate) fn of(&self, tool: &str) -> Option<&Shape> {
        self.0.get(tool)
    }
}
