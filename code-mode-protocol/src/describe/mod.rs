//! The texts for a model: the `exec` and `wait` tools, and every nested tool as a
//! TypeScript declaration.
//!
//! All text is a function of the definitions alone, so that an unchanged set of
//! tools gives an unchanged prompt.

mod common;
mod guided;
mod required;
mod schema;
mod shape;
mod text;

pub use common::common_start;
pub use guided::{ToolGroup, ToolsFrom, guided_exec_tool, guided_wait_tool, tokens};
pub use required::required;
pub use schema::type_of;
pub use shape::Shape;
pub use text::{
    Detail, declaration, exec_tool, guided_declaration, guided_signature, tool_section, wait_tool,
};

/// The MCP types that [`declaration`] names, as TypeScript. A prompt has them
/// once, before the first declaration that needs them.
pub const MCP_TYPES: &str = "\
type ContentBlock =
  | { type: \"text\"; text: string; }
  | { type: \"image\"; data: string; mimeType: string; }
  | { type: \"audio\"; data: string; mimeType: string; }
  | { type: \"resource_link\"; uri: string; name: string; mimeType?: string; }
  | { type: \"resource\"; resource: { uri: string; mimeType?: string; text?: string; blob?: string; }; };
type CallToolResult<T = { [key: string]: unknown; }> = {
  content: Array<ContentBlock>;
  structuredContent?: T;
  isError?: boolean;
  _meta?: { [key: string]: unknown; };
};";
