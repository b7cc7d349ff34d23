//! The stale flag: a byte of a block that the block's own code polls.
//!
//! Code that is already inside the block learns of a kill or a downgrade by this byte, which it
//! polls after its own stores. [`super::kill`] has the order of the cell and the flag.
//!
//! The flag belongs to the translation. It outlives the record if the same translation is used
//! again. At that time a thread may still be inside from before, store to the block's own bytes and
//! then look at the flag. So a commit must not set the flag to valid before it has checked the
//! generations, and must not overwrite a kill after that. It sets the flag to
//! [`StaleFlag::PENDING`] before the block is in any list, and later exchanges this for the
//! published value.

use crate::sync::{AtomicU8, Ordering};

/// The values of the byte that emitted code may poll after its own stores, at
/// [`Ticket::stale_flag`](crate::Ticket::stale_flag). To leave the block after the store is
/// always right, whatever the value. Code that finds a value that it does not know must
/// leave.
#[derive(Debug)]
pub struct StaleFlag(AtomicU8);

impl StaleFlag {
    /// Go on.
    pub const VALID: u8 = 0;
    /// The block is dead: leave right after the store.
    pub const DEAD: u8 = 1;
    /// The block's page is writable: leave after a store that may have hit the
    /// bytes that the block was made from.
    pub const CHECKED: u8 = 2;
    /// The same, and the bytes can be seen at other addresses too: leave after any
    /// store.
    pub const CHECKED_SHARED: u8 = 3;
    /// A commit is under way: treat the block as a dead one.
    pub const PENDING: u8 = 4;

    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(Self::PENDING))
    }

    /// A commit begins. From here on a new kill differs from the kill that ended the last
    /// life. Called before a walker can find the block.
    pub(crate) fn begin(&self) {
        self.0.swap(Self::PENDING, Ordering::AcqRel);
    }

    /// A commit has found that the generations hold. Sets `value`, unless the block was
    /// killed since the commit began.
    pub(crate) fn publish(&self, value: u8) {
        let _ = self.0.compare_exchange(Self::PENDING, value, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Async-signal-safe.
    #[inline]
    pub(super) fn kill(&self) {
        self.0.swap(Self::DEAD, Ordering::AcqRel);
    }

    /// Returns whether it was valid until now: a dead block stays dead. Async-signal-safe.
    #[inline]
    pub(super) fn downgrade(&self, to: u8) -> bool {
        self.0.compare_exchange(Self::VALID, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[cfg(test)]
    pub(crate) fn load(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}
