//! The mark of a mechanism whose pages are about to be opened all at once.

use crate::error::Error;
use crate::sync::{
    AtomicBool,
    Ordering::{AcqRel, Acquire, Release},
    Rule, fence,
};

/// A thread that gives a mechanism up sets the mark before it tells the ranges of it. A thread that
/// attaches a range enters it where it will be told, and then asks for the mark. So each range is told
/// or refused.
#[derive(Debug)]
pub(crate) struct GivenUp(AtomicBool);

impl Default for GivenUp {
    fn default() -> Self {
        Self(AtomicBool::new(false))
    }
}

impl GivenUp {
    /// All ranges are told from here on. Async-signal-safe.
    pub(crate) fn mark(&self) {
        self.0.store(true, Release);
        fence(Rule::FenceBehindGivenUp);
    }

    /// In a fork's child, with no other thread inside, of a mechanism that is this process's own from
    /// now on: nothing is lost yet. Returns whether the parent's was.
    pub(crate) fn clear(&self) -> bool {
        self.0.swap(false, AcqRel)
    }

    /// An error if a range that was entered just now may not have been told.
    pub(crate) fn check(&self) -> Result<(), Error> {
        fence(Rule::FenceBeforeGivenUpCheck);
        if self.0.load(Acquire) { Err(Error::TrackingLost) } else { Ok(()) }
    }
}
