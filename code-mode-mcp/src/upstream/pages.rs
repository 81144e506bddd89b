//! What a server lists, page by page, within bounds.

use rmcp::RoleClient;
use rmcp::model::{ClientRequest, PaginatedRequestParams};
use rmcp::service::{Peer, ServiceError};
use serde_json::Value;
use tokio::time::Instant;

use super::transport::json_bytes;

/// Pages, items and bytes of JSON of one listing.
const MAX_PAGES: usize = 100;
const MAX_ITEMS: usize = 10_000;
const MAX_BYTES: usize = 4 << 20;

/// Why a listing has nothing.
pub(crate) enum NotListed {
    /// The server answered with an error, or not at all.
    Failed(ServiceError),
    TimedOut,
}

/// The items of all pages, under their key in a page's result. A server without the method has
/// none; where a later page fails, does not fit or comes too late, what came before is kept.
pub(crate) async fn pages(
    peer: &Peer<RoleClient>,
    key: &str,
    until: Instant,
    request: impl Fn(Option<PaginatedRequestParams>) -> ClientRequest,
) -> Result<Vec<Value>, NotListed> {
    const METHOD_NOT_FOUND: i32 = -32601;
    let mut items: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    let mut bytes = 0;
    for page in 0..MAX_PAGES {
        let from = cursor
            .clone()
            .map(|cursor| PaginatedRequestParams::default().with_cursor(Some(cursor)));
        let answer = tokio::time::timeout_at(until, peer.send_request(request(from))).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(ServiceError::McpError(error))) if error.code.0 == METHOD_NOT_FOUND => break,
            Ok(Err(_)) | Err(_) if page > 0 => break,
            Ok(Err(error)) => return Err(NotListed::Failed(error)),
            Err(_) => return Err(NotListed::TimedOut),
        };
        let mut answer = serde_json::to_value(&answer).unwrap_or_default();
        let listed = answer.get_mut(key).map(Value::take);
        bytes += json_bytes(&answer);
        if let Some(Value::Array(listed)) = listed {
            let fitting = listed.into_iter().take_while(|item| {
                bytes += json_bytes(item);
                bytes <= MAX_BYTES
            });
            items.extend(fitting);
        }
        if bytes > MAX_BYTES {
            tracing::warn!(
                "a server lists more than {} MiB of {key}: the rest is left out",
                MAX_BYTES >> 20
            );
            break;
        }
        let next = answer.get("nextCursor").and_then(Value::as_str);
        if next.is_none() || next == cursor.as_deref() || items.len() >= MAX_ITEMS {
            break;
        }
        cursor = next.map(str::to_owned);
    }
    items.truncate(MAX_ITEMS);
    Ok(items)
}
