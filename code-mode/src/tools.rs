//! A session's tools, in the form isolates use.

use std::collections::HashMap;
use std::sync::OnceLock;

use code_mode_protocol::wire::native::WireTool;

/// A set of tools, made once and shared by every cell that has them, so that an
/// unchanged set costs nothing for each cell.
#[derive(Debug, Default)]
pub(crate) struct ToolTable {
    tools: Vec<WireTool>,
    /// Made when a cell first asks: most cells never do.
    by_name: OnceLock<HashMap<String, u32>>,
    /// `ALL_TOOLS` as JSON text.
    listing: OnceLock<String>,
}

impl ToolTable {
    /// A table of these tools; of two with one name the last is reached.
    pub(crate) fn new(tools: Vec<WireTool>) -> Self {
        Self {
            tools,
            by_name: OnceLock::new(),
            listing: OnceLock::new(),
        }
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
            }
            let list: Vec<_> = self
                .tools
                .iter()
                .map(|tool| Listed {
                    name: &tool.name,
                    description: &tool.description,
                })
                .collect();
            // Strings alone cannot fail to serialise.
            serde_json::to_string(&list).unwrap_or_else(|_| "[]".to_owned())
        })
    }
}
