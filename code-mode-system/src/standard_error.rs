//! Standard error. A program that asks a person a question holds it back until the answer.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
            None => io::stderr().write(bytes),
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
