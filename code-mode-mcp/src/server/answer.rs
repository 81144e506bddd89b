//! What a client reads about a cell: its status, its calls, its output.

use code_mode_host::{CellResponse, ContentItem, SessionError};
use rmcp::model::{CallToolResponse, CallToolResult, ContentBlock};

use super::cell::Cell;
use super::client::Client;
use super::failure;
use super::observe::Observed;
use super::session::Session;

impl Observed<'_> {
    /// How a person can answer whom the client does not ask.
    fn way_to_answer(&self) -> String {
        let server = self.client.server;
        let policy = &server.broker.policy;
        let of_durable = (server.sessions.way_to_answer()).filter(|_| policy.terminal_may_answer);
        match of_durable {
            _ if policy.model_may_answer => {
                "ask the user, then call wait with their decision".into()
            }
            Some(way) => way,
            None if server.broker.pending.is_open() => {
                "the user can answer with `code-mode mcp approvals`".into()
            }
            None => "the user can allow it in the policy file".into(),
        }
    }

    /// The answer about a cell that was admitted.
    pub(super) fn answer(&self, response: Result<CellResponse, SessionError>) -> CallToolResponse {
        self.session.save();
        let mut response = match response {
            Ok(response) => response,
            Err(error) => return failure(error.to_string()),
        };
        if response.is_missing()
            && let Some(words) = self.cell.last_words()
        {
            return given_before(&words);
        }
        let items = response.content_items_mut();
        let left_out = self.cell.keep_output(items, self.max_output_tokens);
        self.session.known.bound_outputs();
        let mut blocks: Vec<ContentBlock> = response.content_items().iter().map(block).collect();
        let mut failed = false;
        let mut status = match &response {
            CellResponse::Yielded { .. } | CellResponse::Pending { .. } => {
                let mut text = running(&self.client.name_of(self.cell));
                for waiting in self.cell.waits_for() {
                    text.push_str(&format!("\nwaits for {waiting}; {}", self.way_to_answer()));
                }
                text
            }
            CellResponse::Terminated { .. } => TERMINATED.to_owned(),
            CellResponse::Result {
                error_text: None, ..
            } => "status: completed".to_owned(),
            CellResponse::Result {
                error_text: Some(error),
                ..
            } => {
                failed = true;
                format!(
                    "status: failed\n{}",
                    self.client.server.broker.secrets.hide(error)
                )
            }
        };
        self.client.name_session(&mut status, self.session);
        if failed {
            status.push_str(&self.client.server.broker.servers_missed(&status));
        }
        if let Some(calls) = self.cell.calls_in_words() {
            status.push('\n');
            status.push_str(&calls);
        }
        if let Some(left_out) = left_out {
            let name = self.client.name_of(self.cell);
            status.push_str(&format!(
                "\n{} bytes of the output are left out: output({name:?}) in a program is {}, and wait {{\"cell_id\": {name:?}, \"from\": {}}} shows it from there",
                left_out.bytes,
                match left_out.is_cut {
                    true => "its first 7 MiB, which alone are kept",
                    false => "all of it",
                },
                left_out.from
            ));
        }
        if response.is_final() {
            self.cell.set_last_words(status.clone());
        }
        // First, because clients cut at the end; and words, because one client takes a first text
        // that is JSON for structured content.
        blocks.insert(0, ContentBlock::text(status));
        match failed {
            true => CallToolResult::error(blocks).into(),
            false => CallToolResult::success(blocks).into(),
        }
    }
}

/// The answer about a cell whose program has not begun, or has ended without.
pub(super) fn not_begun(
    client: &Client<'_>,
    session: &Session,
    cell: &Cell,
    missing: &[String],
) -> CallToolResponse {
    if let Some(words) = cell.last_words() {
        return given_before(&words);
    }
    let mut status = running(cell.key.as_str());
    for server in missing {
        status.push_str(&format!("\nit has not begun: {server}"));
    }
    client.name_session(&mut status, session);
    success(status)
}

/// The answer to whoever ends a cell whose program has not begun.
pub(super) fn dropped(client: &Client<'_>, session: &Session, cell: &Cell) -> CallToolResponse {
    let mut status = TERMINATED.to_owned();
    client.name_session(&mut status, session);
    cell.end_with(status.clone());
    success(status)
}

pub(super) const TERMINATED: &str = "status: terminated";

fn running(cell: &str) -> String {
    format!("status: running\ncell_id: {cell} (call wait to continue)")
}

/// The answer to a request that comes too late.
fn given_before(last_words: &str) -> CallToolResponse {
    success(format!(
        "{last_words}\n(all of its output was given before; wait with from: 0 shows it again)"
    ))
}

/// The answer to a client that wants the output of a cell from some byte on.
pub(super) fn output_from(
    client: &Client<'_>,
    cell: &Cell,
    from: u64,
    tokens: u64,
) -> CallToolResponse {
    let name = client.name_of(cell);
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let Some(part) = cell.output_from(from, tokens) else {
        return failure(format!(
            "wait: the output of the cell {name} is not kept any more: later programs put out more than the 8 MiB that are kept of a session"
        ));
    };
    let mut status = format!(
        "output of cell {name}: bytes {} to {} of {}",
        part.from, part.to, part.whole
    );
    if part.to < part.whole {
        status.push_str(&format!(
            "\nwait {{\"cell_id\": {name:?}, \"from\": {}}} shows more",
            part.to
        ));
    }
    let blocks = vec![ContentBlock::text(status), ContentBlock::text(part.text)];
    CallToolResult::success(blocks).into()
}

fn success(status: String) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(status)]).into()
}

/// An item of output as a content block.
fn block(item: &ContentItem) -> ContentBlock {
    match item {
        ContentItem::Text { text, .. } => ContentBlock::text(text),
        ContentItem::Image { image_url, .. } => match data_url(image_url) {
            Some((media_type, data)) => ContentBlock::image(data, media_type),
            None => ContentBlock::text(image_url),
        },
        ContentItem::Audio { audio_url } => match data_url(audio_url) {
            Some((media_type, data)) => ContentBlock::audio(data, media_type),
            None => ContentBlock::text(audio_url),
        },
    }
}

/// The media type and the base64 of a `data:` URL.
fn data_url(url: &str) -> Option<(&str, &str)> {
    let (header, data) = url.strip_prefix("data:")?.split_once(',')?;
    let media_type = header.strip_suffix(";base64")?;
    Some((media_type.split(';').next().unwrap_or_default(), data))
}
