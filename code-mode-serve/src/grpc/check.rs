//! Ids, names and definitions of a client, checked.

use code_mode_host::{Json, ToolDefinition, ToolKind, ToolName};
use tonic::Status;
use uuid::Uuid;

use super::wire;

/// The longest id or name, in bytes.
const MAX_ID: usize = 256;

/// A text that must not be empty, nor longer than [`MAX_ID`]. `what` names it.
pub(super) fn id(text: String, what: &str) -> Result<String, Status> {
    if text.is_empty() {
        let message = format!("code-mode {what} must not be empty");
        return Err(Status::invalid_argument(message));
    }
    not_too_long(&text, what)?;
    Ok(text)
}

fn not_too_long(text: &str, what: &str) -> Result<(), Status> {
    if text.len() > MAX_ID {
        let message = format!("code-mode {what} exceeds {MAX_ID} bytes");
        return Err(Status::invalid_argument(message));
    }
    Ok(())
}

/// An id that the host made.
pub(super) fn uuid(text: &str, what: &str) -> Result<Uuid, Status> {
    id(text.to_owned(), what)?;
    let invalid = |_| Status::invalid_argument(format!("code-mode {what} must be a UUID"));
    Uuid::try_parse(text).map_err(invalid)
}

/// A tool's name, its parts checked in the order of the fields.
pub(super) fn tool_name(name: wire::ToolName) -> Result<ToolName, Status> {
    let wire::ToolName { name, namespace } = name;
    let name = id(name, "tool name")?;
    if let Some(namespace) = &namespace {
        not_too_long(namespace, "tool namespace")?;
    }
    Ok(ToolName { name, namespace })
}

/// A tool's definition.
pub(super) fn definition(definition: wire::ToolDefinition) -> Result<ToolDefinition, Status> {
    let name = id(definition.name, "tool definition name")?;
    let missing = || Status::invalid_argument("tool definition is missing its tool name");
    let tool_name = tool_name(definition.tool_name.ok_or_else(missing)?)?;
    let kind = match wire::ToolKind::try_from(definition.kind) {
        Ok(wire::ToolKind::Function) => ToolKind::Function,
        Ok(wire::ToolKind::Freeform) => ToolKind::Freeform,
        _ => {
            let message = "tool definition has an invalid kind";
            return Err(Status::invalid_argument(message));
        }
    };
    let mut checked = ToolDefinition::function(name, definition.description);
    checked.tool_name = tool_name;
    checked.kind = kind;
    checked.input_schema = schema(definition.input_schema_json, "input")?;
    checked.output_schema = schema(definition.output_schema_json, "output")?;
    Ok(checked)
}

fn schema(json: Option<Vec<u8>>, which: &str) -> Result<Option<Json>, Status> {
    json.map(json_of)
        .transpose()
        .map_err(|why| Status::invalid_argument(format!("invalid tool {which} schema: {why}")))
}

/// Bytes that must be one JSON value.
pub(super) fn json_of(bytes: Vec<u8>) -> Result<Json, String> {
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    Json::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_may_be_spelt_in_every_form_of_a_uuid() {
        let plain = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        let id = uuid(plain, "session ID").expect("a UUID");
        for form in [
            plain.to_uppercase(),
            plain.replace('-', ""),
            format!("{{{plain}}}"),
            format!("urn:uuid:{plain}"),
        ] {
            assert_eq!(uuid(&form, "session ID").expect("a UUID"), id, "{form}");
        }
        let refused = uuid("nope", "session ID").expect_err("not one");
        assert_eq!(refused.message(), "code-mode session ID must be a UUID");
    }
}
