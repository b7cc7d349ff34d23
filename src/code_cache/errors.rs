//! The reasons why nothing was translated.

use std::fmt;

use crate::error::Error;
use crate::sys::fork::UNDER_GUARD;
use crate::tracker::BeginError;

/// Why a block did not become reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommitError {
    /// A write came to one of its pages since the claim, or a fault handler is at an earlier block
    /// of the key that had an address of the entry. Begin again.
    Written,
    /// The block was made from bytes of a page that was not claimed, according to
    /// [`Ticket::add_source`](crate::Ticket::add_source).
    NotClaimed,
    /// This thread holds the guard of a fork
    /// ([`CodeCache::before_fork`](crate::CodeCache::before_fork)), and would wait for itself.
    UnderForkGuard,
    /// No page was claimed: the block was made from no bytes.
    NoPages,
    /// An address of the entry equals the other one or one of the two stubs, or the key is
    /// `u64::MAX`.
    BadEntry,
    /// A claimed page is written to all the time, and the block has no self-checking entry: see
    /// [`Ticket::needs_check`](crate::Ticket::needs_check).
    NeedsCheck,
}

impl CommitError {
    fn why(&self) -> &'static str {
        match self {
            Self::Written => "a write came to the block's bytes while it was translated; begin again",
            Self::NotClaimed => "the block was made from bytes of a page that was not claimed: claim it before reading",
            Self::UnderForkGuard => UNDER_GUARD,
            Self::NoPages => "the block claimed no page: claim each page before reading it",
            Self::BadEntry => "the entry's addresses must differ from both stubs and the key from u64::MAX",
            Self::NeedsCheck => "a page of the block stays writable: give a self-checking entry, or interpret",
        }
    }
}

impl fmt::Display for CommitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why())
    }
}

impl std::error::Error for CommitError {}

/// Why nothing was translated: the error of a translator's function. Every error between a claim
/// and a commit becomes one by `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TranslateError {
    /// Nothing is wrong. A write is in progress, or came while the block was translated, or the
    /// page is written to all the time. Interpret an instruction, and translate when the guest
    /// comes here again.
    Interpret,
    /// The bytes are on a page that is not tracked ([`BeginError::Untrackable`]): interpret until
    /// another mapping comes.
    Untrackable,
    /// A retry will fail too: the guest's address is in no region, an argument is wrong, or the
    /// system refused a call. A full code buffer ([`Error::Full`]) has room again after
    /// [`CodeCache::evict`](crate::CodeCache::evict).
    Failed(Error),
}

impl fmt::Display for TranslateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interpret => f.write_str("the bytes are being written: interpret, and translate later"),
            Self::Untrackable => BeginError::Untrackable.fmt(f),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for TranslateError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Interpret | Self::Untrackable => None,
            Self::Failed(error) => Some(error),
        }
    }
}

impl From<Error> for TranslateError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<BeginError> for TranslateError {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Busy(_) => Self::Interpret,
            BeginError::Untrackable => Self::Untrackable,
            BeginError::Failed(error) => Self::Failed(error),
        }
    }
}

impl From<CommitError> for TranslateError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Written | CommitError::NeedsCheck => Self::Interpret,
            CommitError::NotClaimed | CommitError::UnderForkGuard | CommitError::NoPages | CommitError::BadEntry => {
                Self::Failed(Error::BadArgument(error.why()))
            }
        }
    }
}
