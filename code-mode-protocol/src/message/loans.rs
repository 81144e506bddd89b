//! Texts that are not sent: the other side reads them where they are.
//!
//! A text that goes through a socket is copied into the kernel and out again, by two
//! processes that wait for each other. Where the receiver may read the sender's
//! memory, as a provider may its worker's, it copies the text once. The sender keeps
//! a text that it has lent until it is told that it was read.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// A text from this size on is lent. For less than that, being told that it was read
/// costs as much as a copy.
pub(super) const LARGE: usize = 1 << 20;

/// A text that is lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loan {
    /// Its name.
    pub id: u64,
    /// Where it is in the lender's memory.
    pub address: u64,
}

/// The texts that a process has lent.
#[derive(Default)]
pub struct Loans(Mutex<Lent>);

#[derive(Default)]
struct Lent {
    last: u64,
    texts: HashMap<u64, String>,
}

impl Loans {
    fn lent(&self) -> MutexGuard<'_, Lent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a text where it is.
    pub(super) fn lend(&self, text: String) -> Loan {
        let mut lent = self.lent();
        lent.last += 1;
        let loan = Loan {
            id: lent.last,
            address: text.as_ptr().expose_provenance() as u64,
        };
        // The text itself does not move with what owns it.
        lent.texts.insert(loan.id, text);
        loan
    }

    /// The text of this name was read. One that is not known is ignored.
    pub fn returned(&self, id: u64) {
        let text = self.lent().texts.remove(&id);
        // Freeing it takes a moment in which others may lend.
        drop(text);
    }
}

/// Prints how many there are, so that a log line never shows a user's data.
impl fmt::Debug for Loans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loans({})", self.lent().texts.len())
    }
}

/// The memory of a process that lends texts.
pub trait Lender: Send {
    /// Appends the `bytes` bytes from `address` on to `to`, whatever they are.
    ///
    /// # Errors
    /// Where there is no such memory, or no such process any more. `to` has a part of
    /// them then.
    fn read(&self, address: u64, bytes: usize, to: &mut Vec<u8>) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_where_it_was_until_it_is_returned() {
        let loans = Loans::default();
        let texts = ["a".repeat(10), "b".repeat(10)];
        let addresses = texts.each_ref().map(|text| text.as_ptr().addr() as u64);
        let lent = texts.map(|text| loans.lend(text));
        assert_eq!(lent.map(|loan| loan.address), addresses);
        loans.returned(lent[0].id);
        loans.returned(lent[0].id);
        let kept = loans.lent();
        assert_eq!(kept.texts.keys().collect::<Vec<_>>(), [&lent[1].id]);
        assert_eq!(
            kept.texts[&lent[1].id].as_ptr().addr() as u64,
            lent[1].address
        );
    }
}
