//! The number of a cell in its session.

use std::fmt;
use std::num::NonZeroU64;

use code_mode_protocol::CellId;

/// Which cell of its session this is, counted from 1. On the wire it is a plain integer, in
/// the API a [`CellId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CellNumber(NonZeroU64);

impl CellNumber {
    /// The number after `last`; the first after `None`.
    pub(crate) fn after(last: Option<Self>) -> Self {
        let last = last.map_or(0, Self::get);
        Self(NonZeroU64::MIN.saturating_add(last))
    }

    /// The number in a message of a worker; `None` for 0, which no cell has.
    pub(crate) fn of_wire(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// The number of the cell with this id; `None` where no cell can have the id.
    pub(crate) fn of(id: &CellId) -> Option<Self> {
        Self::of_wire(id.number()?)
    }

    pub(crate) fn get(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn id(self) -> CellId {
        CellId::nth(self.get())
    }
}

impl fmt::Display for CellNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
