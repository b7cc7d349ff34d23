//! The reason why no translation begins on a page.

use std::fmt;

use crate::error::Error;
use crate::page_table::Busy;

/// The reason why a page cannot be translated from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginError {
    /// Not at the moment: interpret the instruction, and come back.
    Busy(Busy),
    /// Permanently.
    Failed(Error),
}

impl fmt::Display for BeginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(busy) => busy.fmt(f),
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
