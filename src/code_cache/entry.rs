//! A block's entry cell, the only way to the block.
//!
//! The cell is one word that holds the address of the block's code. Each key has one cell, which
//! outlives the key's blocks. Lookup tables and links hold the cell's address, so one store to the
//! cell kills a block.
//!
//! | content of the cell | meaning |
//! |---|---|
//! | the block's plain entry | the block is valid |
//! | the block's self-checking entry | the block is valid if its comparison finds its bytes unchanged |
//! | [`EntryStubs::pending`] | a commit is under way; nothing to run |
//! | [`EntryStubs::dead`] | nothing to run |

use std::num::NonZeroUsize;

use crate::sync::{AtomicUsize, Ordering, Rule, left_out};

/// The two addresses that an entry cell holds while there is nothing to run.
///
/// Emitted code jumps to any address that a cell holds, so both must be code of the embedder that
/// goes back to its dispatcher. They must differ from each other and from every block's entry, and
/// live as long as the cache and every [`Link`](crate::Link). An embedder that never jumps through
/// cells, and asks for each entry instead, can use [`EntryStubs::NOT_CODE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryStubs {
    /// The address in a dead block's cell.
    pub dead: usize,
    /// The address in the cell of a block that is being committed.
    pub pending: usize,
}

impl EntryStubs {
    /// For embedders that never jump through cells.
    pub const NOT_CODE: EntryStubs = EntryStubs { dead: 0, pending: 1 };
}

/// The entry addresses of a block's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) plain: usize,
    /// Not zero, so that no entry takes a third word: each block has two entries.
    checked: Option<NonZeroUsize>,
}

impl Entry {
    /// An entry that trusts that the block's bytes are unchanged.
    pub const fn plain(address: usize) -> Self {
        Self { plain: address, checked: None }
    }

    /// A block with a second entry. Each time, the code at `checked` first compares the guest bytes
    /// with those that the block was made from. If they are the same it goes on like the plain
    /// entry. If not, it goes back to the dispatcher, which calls
    /// [`CodeCache::remove`](crate::CodeCache::remove).
    ///
    /// A block with a self-checking entry can stay valid on a page that is written to.
    ///
    /// No code is at address 0: as `checked`, it is refused like an address equal to `plain`.
    pub const fn with_check(plain: usize, checked: usize) -> Self {
        let checked = match NonZeroUsize::new(checked) {
            None => NonZeroUsize::new(plain),
            checked => checked,
        };
        Self { plain, checked }
    }

    /// The self-checking entry.
    #[inline]
    pub(super) fn checked(self) -> Option<usize> {
        self.checked.map(NonZeroUsize::get)
    }

    /// The address to enter at, with the comparison or without one.
    pub(crate) fn address(self, is_self_checking: bool) -> Option<usize> {
        if is_self_checking { self.checked() } else { Some(self.plain) }
    }

    /// Whether `address`, in a cell, leads into the block.
    #[inline]
    pub(crate) fn has(self, address: usize) -> bool {
        self.plain == address || self.checked() == Some(address)
    }

    /// Whether each address differs from the other and from both stubs.
    pub(crate) fn is_usable(self, stubs: EntryStubs) -> bool {
        self.checked() != Some(self.plain) && !self.has(stubs.dead) && !self.has(stubs.pending)
    }
}

impl From<usize> for Entry {
    fn from(address: usize) -> Self {
        Self::plain(address)
    }
}

/// The word that blocks are reached through. It stays as long as there is a [`Link`](crate::Link)
/// to it, even after the cache is gone. A cell without a link may be given to another key.
#[repr(transparent)]
#[derive(Debug)]
pub struct EntryCell(AtomicUsize);

impl EntryCell {
    pub(crate) fn new(stubs: EntryStubs) -> Self {
        Self(AtomicUsize::new(stubs.dead))
    }

    /// The address to jump to: a block's entry or one of the stubs.
    #[inline]
    pub fn load(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// A commit begins. Called under the commit lock.
    pub(crate) fn begin(&self, stubs: EntryStubs) {
        self.0.store(stubs.pending, Ordering::Relaxed);
    }

    /// A commit ends. Returns whether the cell now leads to `address`.
    pub(crate) fn publish(&self, stubs: EntryStubs, address: usize) -> bool {
        if left_out(Rule::PublishByExchange) {
            self.0.store(address, Ordering::Release);
            return true;
        }
        self.0.compare_exchange(stubs.pending, address, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Makes the cell lead to no block if it leads to the block of `entry` or is about to.
    #[inline]
    pub(super) fn kill(&self, stubs: EntryStubs, entry: Entry) {
        // One loop over all values: meanwhile a commit or a downgrade may turn one into
        // another.
        let mut seen = self.0.load(Ordering::Relaxed);
        while entry.has(seen) || seen == stubs.pending {
            match self.0.compare_exchange_weak(seen, stubs.dead, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// If the cell leads to `plain`, makes it lead to `checked`. Returns the value found.
    #[inline]
    pub(super) fn downgrade(&self, plain: usize, checked: usize) -> usize {
        if left_out(Rule::DowngradeByExchange) {
            let seen = self.0.load(Ordering::Relaxed);
            if seen == plain {
                self.0.store(checked, Ordering::Release);
            }
            return seen;
        }
        match self.0.compare_exchange(plain, checked, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(seen) | Err(seen) => seen,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const STUBS: EntryStubs = EntryStubs::NOT_CODE;

    #[test]
    fn distinct_entries() {
        assert!(Entry::from(10).is_usable(STUBS) && Entry::with_check(10, 11).is_usable(STUBS));
        for bad in [
            Entry::plain(STUBS.dead),
            Entry::with_check(10, 10),
            Entry::with_check(10, 0),
            Entry::with_check(10, STUBS.pending),
        ] {
            assert!(!bad.is_usable(STUBS));
        }
    }
}
