//! Links, which keep entry cells allocated.
//!
//! # Safety
//!
//! A link keeps its cell's slab.
#![allow(unsafe_code)]

use std::fmt;

use super::slab::{CellPtr, ColdWords};
use crate::code_cache::entry::EntryCell;
use crate::sync::{Arc, Ordering};

/// Leads to the present and future blocks of one key. Emitted code that jumps to the address in
/// [`Link::cell`] enters the valid block, or the stub if there is none.
///
/// The cell stays as long as there is a link to it, even after the cache is gone. A holder of the
/// cell's address must hold a link. A block whose code jumps through a cell gets it from
/// [`Ticket::link`](crate::Ticket::link), which keeps the link with the block.
pub struct Link {
    /// Its slab is counted once for the link.
    cell: CellPtr,
}

impl Link {
    /// One more link to `cell`.
    ///
    /// # Safety
    ///
    /// The cell's slab lives. For the first link to it, under the commit lock.
    pub(super) unsafe fn new(cell: CellPtr) -> Self {
        // SAFETY: by this function's contract.
        unsafe { Arc::increment_strong_count(cell.owner()) };
        let link = Self { cell };
        link.cold().links.fetch_add(1, Ordering::Relaxed);
        link
    }

    /// The cell to jump through, under a vCPU's pin: a write fault looks for pins alone when it
    /// decides whether a core may be about to use the cell. While there is a link to the key, every
    /// link to it has the same cell.
    pub fn cell(&self) -> &EntryCell {
        // SAFETY: of the slab that the link keeps.
        &unsafe { self.cell.as_ref() }.entry
    }

    fn cold(&self) -> &ColdWords {
        // SAFETY: as above.
        unsafe { self.cell.cold() }
    }
}

impl Clone for Link {
    fn clone(&self) -> Self {
        // SAFETY: this link keeps the slab.
        unsafe { Self::new(self.cell) }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cold().links.fetch_sub(1, Ordering::Release);
        // SAFETY: the count that `new` raised.
        unsafe { Arc::decrement_strong_count(self.cell.owner()) };
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("cell", self.cell()).finish_non_exhaustive()
    }
}
