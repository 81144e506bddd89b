//! Places of connections: for those that were let in, and for strangers.
//!
//! A stranger has shown nothing yet: no token, no whole request. Strangers have places of their
//! own, and the newest takes that of the oldest, so that no number of them keeps anybody out who
//! shows a token at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Connections of strangers at once: the more there are, the longer a flood of new ones takes to
/// push out a client that is about to show its token.
const MAX_STRANGERS: usize = 4096;
/// The same where the program may have few descriptors.
const FEW_STRANGERS: usize = 512;

/// How many strangers the descriptors of the program allow.
fn max_strangers() -> usize {
    #[cfg(target_os = "linux")]
    let enough = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .is_none_or(|most| most >= 4 * MAX_STRANGERS as u64);
    #[cfg(not(target_os = "linux"))]
    let enough = cfg!(windows);
    match enough {
        true => MAX_STRANGERS,
        false => FEW_STRANGERS,
    }
}

/// The places of a listener.
#[derive(Debug)]
pub(crate) struct Places {
    admitted: Arc<Semaphore>,
    max_strangers: usize,
    strangers: Mutex<Strangers>,
}

/// Strangers in the order in which they came.
#[derive(Debug, Default)]
struct Strangers {
    last: u64,
    waiting: BTreeMap<u64, CancellationToken>,
}

impl Places {
    pub(crate) fn new(admitted: usize) -> Arc<Self> {
        Arc::new(Self {
            admitted: Arc::new(Semaphore::new(admitted)),
            max_strangers: max_strangers(),
            strangers: Mutex::default(),
        })
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a stranger. Where there are too many, the oldest loses its own.
    pub(crate) fn stranger(self: &Arc<Self>) -> Place {
        let lost = CancellationToken::new();
        let mut strangers = self.strangers();
        strangers.last += 1;
        let number = strangers.last;
        strangers.waiting.insert(number, lost.clone());
        if strangers.waiting.len() > self.max_strangers
            && let Some((_, oldest)) = strangers.waiting.pop_first()
        {
            oldest.cancel();
        }
        Place(Arc::new(Inner {
            places: self.clone(),
            number,
            lost,
            permit: Mutex::default(),
        }))
    }
}

/// The place of a connection, which it has until the last of its clones is dropped.
#[derive(Clone, Debug)]
pub struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Arc<Places>,
    number: u64,
    lost: CancellationToken,
    permit: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    fn permit(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.0.permit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client was let in: its connection may stay. False where all places of such clients are
    /// taken; another call may find one that is free by then.
    pub fn admit(&self) -> bool {
        let mut permit = self.permit();
        if permit.is_none() {
            *permit = self.0.places.admitted.clone().try_acquire_owned().ok();
            if permit.is_some() {
                self.0.places.strangers().waiting.remove(&self.0.number);
            }
        }
        permit.is_some()
    }

    /// Whether the client was let in.
    pub fn is_admitted(&self) -> bool {
        self.permit().is_some()
    }

    /// Cancelled when a newer stranger took the place.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.0.lost.clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.places.strangers().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_stranger_makes_room_and_who_was_let_in_stays() {
        let places = Places::new(1);
        let owner = places.stranger();
        assert!(owner.admit());
        let strangers: Vec<_> = (0..=places.max_strangers)
            .map(|_| places.stranger())
            .collect();
        assert!(!owner.lost().is_cancelled());
        assert!(strangers[0].lost().is_cancelled());
        assert!(!strangers[1].lost().is_cancelled());
        assert!(!strangers[1].admit(), "there is one place");
        drop(owner);
        assert!(strangers[1].admit());
    }
}
