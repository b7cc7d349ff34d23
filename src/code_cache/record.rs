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
//! A record keeps a link to its cell until it is freed. Until then walkers may find the record, and
//! through it the cell.
//!
//! # Safety
//!
//! A record's nodes point to the record itself, which does not move from its commit until the epoch
//! frees it. Its flag belongs to the translation that it keeps.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr::{self, NonNull};

use smallvec::SmallVec;

use super::block_list::{Node, PageBlocks};
use super::entry::{Entry, EntryStubs};
use super::key::{Key, Payload};
use super::kill::{Life, Reach, Record};
use super::limit::MemoryUse;
use super::stale_flag::StaleFlag;
use super::table::{CellRef, Link};
use super::translation::Translation;
use crate::addr::GuestAddr;
use crate::sync::Arc;
use crate::tracker::PageClaim;

/// A page that a block lies on, and the block's node in its list.
pub(super) struct BlockPage<P: Payload> {
    pub(super) claim: PageClaim<PageBlocks<Block<P>>>,
    /// The page that the translator asked for. The claimed page may be another one that shows the
    /// same bytes.
    pub(super) shows: GuestAddr,
    pub(super) node: Node<Block<P>>,
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
    link: Option<Link>,
    /// Copied from the translation.
    entry: Entry,
    /// Points into the translation.
    flag: Option<NonNull<StaleFlag>>,
    pub(super) pages: BlockPages<P>,
    pub(super) key: Key,
    /// Its place in the queue of live blocks. Used only under the commit lock.
    pub(super) neighbours: Neighbours<P>,
    pub(super) translation: Arc<Translation<P>>,
}

// SAFETY: threads share nodes by design, and the neighbours are used only under the commit lock;
// all else is Send and Sync.
unsafe impl<P: Payload> Send for Block<P> {}
// SAFETY: as above.
unsafe impl<P: Payload> Sync for Block<P> {}

impl<P: Payload> Block<P> {
    pub(super) fn new(key: Key, pages: BlockPages<P>, translation: Arc<Translation<P>>) -> Self {
        let Translation { entry, flag, .. } = &*translation;
        let (entry, flag) = (*entry, flag.as_deref().map(NonNull::from));
        Self { life: Life::new(), link: None, entry, flag, pages, key, neighbours: Neighbours::none(), translation }
    }

    /// The memory that the record alone takes.
    pub(super) fn record_memory_use(&self) -> MemoryUse {
        let spilled = if self.pages.spilled() { self.pages.capacity() } else { 0 };
        let record_bytes = size_of::<Self>() + spilled * size_of::<BlockPage<P>>();
        MemoryUse { record_bytes, ..MemoryUse::default() }
    }

    /// The memory that the record and its translation take.
    pub(super) fn memory_use(&self) -> MemoryUse {
        let mut used = self.translation.memory_use();
        used += self.record_memory_use();
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

    /// `block` is the one that was committed last behind `cell`, from now on until it is reaped.
    pub(super) fn become_newest(block: NonNull<Self>, cell: CellRef<'_>) {
        cell.set_block(block.as_ptr().cast());
    }

    /// Tells the block its address, `this`, and its cell.
    pub(super) fn bind(&mut self, this: NonNull<Self>, link: Link) {
        self.link = Some(link);
        for page in &mut self.pages {
            page.node.bind(this);
        }
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

    /// The cell no longer leads to this block. Under the commit lock.
    pub(super) fn leave_cell(&self) {
        if let Some(link) = &self.link {
            link.leave(ptr::from_ref(self).cast());
        }
    }

    /// The cell, flag and entries of a block that was committed.
    pub(super) fn reach(&self, stubs: EntryStubs) -> Reach<'_> {
        let link = self.link.as_ref().expect("a commit binds its block before any thread finds it");
        // SAFETY: it lives as long as the translation that we keep.
        let flag = self.flag.map(|flag| unsafe { flag.as_ref() });
        Reach { cell: link.cell(), flag, entry: self.entry, stubs }
    }
}

impl<P: Payload> Record for Block<P> {
    fn life(&self) -> &Life<Self> {
        &self.life
    }
}
