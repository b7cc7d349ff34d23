//! A block's record, and the translation behind it.
//!
//! A record is one life of a translation: from a commit or a revival to the write that ends it. The
//! translation (the embedder's code with its entry, its stale flag and its source) may have several
//! lives.
//!
//! A kill reads only the record and its cell, because each further place in memory costs one more
//! cache miss when many pages were written. So most records contain their one page, and a copy of
//! the translation's entry and flag pointer.
//!
//! Its cell counts a record until the epoch hands it out. Until then walkers may find the record,
//! and through it the cell.
//!
//! # Safety
//!
//! A record's nodes point to the record itself, which does not move from its commit until the epoch
//! frees it. Its flag belongs to its translation. When the block is reaped, the translation goes to
//! another owner, which the epoch frees no earlier than the record.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr::NonNull;

use smallvec::SmallVec;

use super::block_list::{Node, PageBlocks};
use super::entry::{Entry, EntryStubs};
use super::key::Payload;
use super::kill::{Life, Reach, Record};
use super::limit::MemoryUse;
use super::stale_flag::StaleFlag;
use super::table::{CellPtr, CellRef};
use super::translation::Translation;
use crate::addr::GuestAddr;
use crate::tracker::PageClaim;

/// A page that a block lies on, and the block's node in its list. The node is first: a walk comes
/// to the record by it, and then needs the record's beginning.
#[repr(C)]
pub(super) struct BlockPage<P: Payload> {
    pub(super) node: Node<Block<P>>,
    pub(super) claim: PageClaim<PageBlocks<Block<P>>>,
    /// The page that the translator asked for. The claimed page may be another one that shows the
    /// same bytes.
    pub(super) shows: GuestAddr,
}

// SAFETY: before a commit the node points nowhere. After it the node belongs to the record, which
// threads share by design. The claim is Send.
unsafe impl<P: Payload> Send for BlockPage<P> {}

impl<P: Payload> BlockPage<P> {
    pub(super) fn new(claim: PageClaim<PageBlocks<Block<P>>>, shows: GuestAddr) -> Self {
        Self { claim, shows, node: Node::unbound() }
    }
}

/// The pages of one block. Most blocks lie on one page.
pub(super) type BlockPages<P> = SmallVec<[BlockPage<P>; 1]>;

/// A record's place in the queue of live blocks.
pub(super) struct Neighbours<P: Payload> {
    pub(super) older: Cell<Option<NonNull<Block<P>>>>,
    pub(super) newer: Cell<Option<NonNull<Block<P>>>>,
}

impl<P: Payload> Neighbours<P> {
    /// The part of a record that is in no queue.
    fn none() -> Self {
        Self { older: Cell::new(None), newer: Cell::new(None) }
    }
}

/// A translation block's record.
#[repr(C)]
pub(crate) struct Block<P: Payload> {
    pub(super) life: Life<Self>,
    /// Set by `bind`, during the commit.
    cell: Option<CellPtr>,
    /// Copied from the translation.
    entry: Entry,
    /// Points into the translation.
    flag: Option<NonNull<StaleFlag>>,
    pub(super) pages: BlockPages<P>,
    /// Its place in the queue of live blocks. Used only under the commit lock.
    pub(super) neighbours: Neighbours<P>,
    /// Until it is reaped; then only if the translation is not retained. Used only under the commit
    /// lock.
    translation: Cell<Option<Box<Translation<P>>>>,
}

// SAFETY: threads share nodes by design. The cell's address is an address. The neighbours and the
// translation are used only under the commit lock; all else is Send and Sync.
unsafe impl<P: Payload> Send for Block<P> {}
// SAFETY: as above.
unsafe impl<P: Payload> Sync for Block<P> {}

impl<P: Payload> Block<P> {
    #[inline]
    pub(super) fn new(pages: BlockPages<P>, translation: Box<Translation<P>>) -> Self {
        let Translation { entry, flag, .. } = &*translation;
        let (entry, flag) = (*entry, flag.as_deref().map(NonNull::from));
        let translation = Cell::new(Some(translation));
        Self { life: Life::new(), cell: None, entry, flag, pages, neighbours: Neighbours::none(), translation }
    }

    /// The translation's entry.
    pub(super) fn entry(&self) -> Entry {
        self.entry
    }

    /// Its translation, until another owner has it. Under the commit lock, or while no other thread
    /// knows of the record.
    pub(super) fn translation(&self) -> Option<&Translation<P>> {
        // SAFETY: only `take_translation` changes it, under the same condition.
        unsafe { (*self.translation.as_ptr()).as_deref() }
    }

    /// # Safety
    ///
    /// As [`Block::translation`]; none of its results is in use.
    pub(super) unsafe fn take_translation(&self) -> Option<Box<Translation<P>>> {
        self.translation.take()
    }

    /// The memory that the record and its translation take.
    pub(super) fn memory_use(&self) -> MemoryUse {
        let spilled = if self.pages.spilled() { self.pages.capacity() } else { 0 };
        let mut used = self.translation().map_or(MemoryUse::default(), Translation::memory_use);
        used.record_bytes += size_of::<Self>() + spilled * size_of::<BlockPage<P>>();
        used
    }

    /// The block that was committed last behind `cell`, if it was not reaped.
    ///
    /// # Safety
    ///
    /// `cell` is one of this block's cache, and no block is reaped while the result is used.
    pub(super) unsafe fn newest<'a>(cell: CellRef<'a>) -> Option<&'a Self> {
        // SAFETY: the cells of a cache get only pointers to its blocks, by `become_newest`. The
        // block was not reaped, so it is alive; or the pointer is null.
        unsafe { cell.block().cast::<Self>().as_ref() }
    }

    /// Tells the block its address, `this`, and its cell. From now on until it is reaped it is the
    /// one that was committed last behind `cell`.
    pub(super) fn bind(&mut self, this: NonNull<Self>, cell: CellRef<'_>) {
        self.cell = Some(cell.ptr());
        for page in &mut self.pages {
            page.node.bind(this);
        }
        cell.enter(this.as_ptr().cast());
    }

    /// Its cell, if it was committed.
    ///
    /// # Safety
    ///
    /// Under the commit lock; not after [`CellRef::forget_record`] for this block.
    pub(super) unsafe fn cell(&self) -> Option<CellRef<'_>> {
        // SAFETY: by this function's contract. A sweep leaves the cell of a counted record.
        self.cell.map(|cell| unsafe { CellRef::new(cell) })
    }

    /// Whether no write came to any of its pages since the claims.
    pub(super) fn is_current(&self) -> bool {
        self.pages.iter().all(|page| page.claim.is_current())
    }

    /// Whether it must compare its bytes at each entry.
    pub(super) fn needs_check(&self) -> bool {
        self.pages.iter().any(|page| page.claim.is_self_checking())
    }

    /// The stale flag's value while the block is entered by its self-checking entry.
    pub(super) fn checked_flag(&self) -> u8 {
        let is_shared = self.pages.iter().any(|page| page.claim.guest_page() != page.shows);
        if is_shared { StaleFlag::CHECKED_SHARED } else { StaleFlag::CHECKED }
    }

    /// The cell, flag and entries of a block that was committed.
    pub(super) fn reach(&self, stubs: EntryStubs) -> Reach<'_> {
        let cell = self.cell.expect("a commit binds its block before any thread finds it");
        // SAFETY: no sweep takes the cell of a record that a thread may find.
        let cell = &unsafe { cell.as_ref() }.entry;
        // SAFETY: its translation is freed no earlier than the record.
        let flag = self.flag.map(|flag| unsafe { flag.as_ref() });
        Reach { cell, flag, entry: self.entry, stubs }
    }
}

impl<P: Payload> Record for Block<P> {
    fn life(&self) -> &Life<Self> {
        &self.life
    }
}
