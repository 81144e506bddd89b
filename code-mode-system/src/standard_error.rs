//! Standard error. A program that asks a person a question holds it back until the answer.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast;

/// How many bytes are kept while standard error is held; more are dropped.
const MAX_HELD: usize = 256 << 10;

/// Text that waits; `None` while standard error is not held.
static HELD: Mutex<Option<Vec<u8>>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<Vec<u8>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to standard error, or keeps the text while that is held. A text that cannot be written,
/// because the reader is gone or the disk is full, is lost.
#[derive(Clone, Copy, Debug)]
pub struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *held() {
            Some(kept) => {
                let room = MAX_HELD.saturating_sub(kept.len());
                kept.extend_from_slice(&bytes[..room.min(bytes.len())]);
                Ok(bytes.len())
            }
            None => {
                let written = io::stderr().write(bytes)?;
                copy(bytes.get(..written).unwrap_or_default());
                Ok(written)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Standard error belongs to the owner of this value: what others write there waits until it is
/// dropped. The owner writes to [`std::io::stderr`].
#[derive(Debug)]
pub struct HeldStandardError(());

impl HeldStandardError {
    /// Holds standard error. One at a time holds it.
    pub fn hold() -> Self {
        held().get_or_insert_default();
        Self(())
    }
}

impl Drop for HeldStandardError {
    fn drop(&mut self) {
        let kept = held().take().unwrap_or_default();
        let _ = io::stderr().write_all(&kept);
    }
}

/// How many of the last bytes a new follower gets.
const RECENT: usize = 8 << 10;
/// Pieces that a slow follower may be behind. Then it misses some.
const BEHIND: usize = 256;

/// The last bytes that were written, and the followers.
struct Followed {
    recent: VecDeque<u8>,
    pieces: broadcast::Sender<Arc<[u8]>>,
}

/// `None` until [`keep_recent_standard_error`].
static FOLLOWED: Mutex<Option<Followed>> = Mutex::new(None);

fn followed() -> MutexGuard<'static, Option<Followed>> {
    FOLLOWED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, the end of what [`StandardError`] writes is kept for followers.
pub fn keep_recent_standard_error() {
    followed().get_or_insert_with(|| Followed {
        recent: VecDeque::new(),
        pieces: broadcast::Sender::new(BEHIND),
    });
}

fn copy(bytes: &[u8]) {
    let Some(followed) = &mut *followed() else {
        return;
    };
    followed.recent.extend(bytes);
    let too_many = followed.recent.len().saturating_sub(RECENT);
    followed.recent.drain(..too_many);
    // Without a follower nobody gets it.
    let _ = followed.pieces.send(bytes.into());
}

/// Follows what this program writes to standard error.
#[derive(Debug)]
pub struct StandardErrorFollower {
    recent: Vec<u8>,
    pieces: broadcast::Receiver<Arc<[u8]>>,
}

impl StandardErrorFollower {
    /// A follower that begins with the last bytes; `None` where they are not kept.
    pub fn new() -> Option<Self> {
        let followed = followed();
        let followed = followed.as_ref()?;
        Some(Self {
            recent: followed.recent.iter().copied().collect(),
            pieces: followed.pieces.subscribe(),
        })
    }

    /// The next bytes. Where this follower is too slow, some are missing.
    pub async fn next(&mut self) -> Arc<[u8]> {
        if !self.recent.is_empty() {
            return std::mem::take(&mut self.recent).into();
        }
        loop {
            match self.pieces.recv().await {
                Ok(piece) => return piece,
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                // The sender is never dropped.
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_while_it_is_held_waits_and_is_bounded() {
        let holding = HeldStandardError::hold();
        let line = [b'x'; 1024];
        for _ in 0..1000 {
            StandardError.write_all(&line).expect("kept");
        }
        assert_eq!(held().as_ref().map(Vec::len), Some(MAX_HELD));
        // The test's own output need not have it.
        held().replace(Vec::new());
        drop(holding);
        assert!(held().is_none());
    }
}
