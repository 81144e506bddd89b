//! When a call of a cell may go out to a client.

use std::pin::pin;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

/// What the script is told of a call that nobody answers any more.
pub(crate) const CANCELLED: &str = "the call was cancelled";

/// Waits for the turn of a call; `None` where it is not wanted any more.
///
/// A call whose cell has ended meanwhile is sent all the same where there is room for
/// it at once: the client sees what the cell did, and that it is cancelled. One that had
/// to wait is dropped.
pub(crate) async fn at_once_or_wanted<T>(
    turn: impl Future<Output = T>,
    cancelled: &CancellationToken,
) -> Option<T> {
    let mut turn = pin!(turn);
    if let Some(turn) = turn.as_mut().now_or_never() {
        return Some(turn);
    }
    tokio::select! {
        biased;
        () = cancelled.cancelled() => None,
        turn = turn => Some(turn),
    }
}
