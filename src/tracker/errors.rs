//! The reason why no translation begins on a page.

use std::fmt;

use crate::error::Error;
use crate::page_table::Busy;

/// The reason why a page cannot be translated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// Not at the moment: interpret the instruction, and come back.
    Busy(Busy),
    /// The page is in a region, and not attached: nothing is mapped there, or a mapping that the region's mode
    /// cannot track. Interpret, or translate without the tracker, until another mapping comes.
    /// [`MappingChange::finish_replaced`](super::MappingChange::finish_replaced) has told why. This
    /// answer takes no system call.
    Untrackable,
    /// Permanently.
    Failed(Error),
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(busy) => busy.fmt(f),
            Self::Untrackable => f.write_str(
                "nothing is mapped there, or a mapping that cannot be tracked, as the end of its change said: interpret \
                 until another one comes",
            ),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BeginError {}

impl From<Error> for BeginError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Busy> for BeginError {
    fn from(busy: Busy) -> Self {
        Self::Busy(busy)
    }
}
