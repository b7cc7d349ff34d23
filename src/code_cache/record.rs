//! A block's record, and the translation behind it.
//!
//! A record is one life of a translation: from a commit or a revival to the write that ends it. The
//! translation (the embedder's code with its entry, its stale flag and its source) may have several
//! lives.
//!
//! A kill reads only the record and its cell. If many pages were written, each further place in
//! memory costs one more cache miss. So most records contain their one page, and a copy of the
//! translation's entry and flag pointer.
//!
//! A record keeps a link to its cell until it is freed. Until then walkers may find the record, and
//! through it the cell.
//!
//! # Safety
//!
//! A record's nodes point to the record itself, which does not move from its commit until the epoch
//! frees it. Its flag belongs to the translation that it keeps.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use smallvec::SmallVec;

use super::cells::Link;
use super::former::Source;
use super::killer::PageBlocks;
use super::limit::Weight;
use super::live::Neighbours;
use super::table::Swept;
use super::{Key, Payload};
use crate::addr::GuestAddr;
use crate::block::{Entry, EntryStubs, Life, Node, Reach, Record, StaleFlag};
use crate::sync::Arc;
use crate::tracker::PageClaim;

/// A page that a block lies on, and the block's node in its list.
pub(super) struct BlockPage<P: Payload> {
    pub(super) claim: PageClaim<PageBlocks<P>>,
    /// The page that the translator asked for. The claimed page may be another one that shows the
    /// same bytes.
    pub(super) shows: GuestAddr,
    pub(super) node: Node<Block<P>>,
}

// SAFETY: before a commit the node points nowhere. After it the node belongs to the record, which
// threads share by design. The claim is Send.
unsafe impl<P: Payload> Send for BlockPage<P> {}

impl<P: Payload> BlockPage<P> {
    pub(super) fn new(claim: PageClaim<PageBlocks<P>>, shows: GuestAddr) -> Self {
        Self { claim, shows, node: Node::unbound() }
    }
}

/// The pages of one block. Most blocks lie on one page.
pub(super) type BlockPages<P> = SmallVec<[BlockPage<P>; 1]>;

/// Code that was made from guest bytes. Records and the list of formers share it. The last of these
/// owners goes through the epoch, so that no vCPU is inside the code when it is dropped.
pub(super) struct Translation<P: Payload> {
    pub(super) entry: Entry,
    /// Present if emitted code has its address.
    pub(super) flag: Option<Arc<StaleFlag>>,
    /// The guest bytes that it was made from, if the translator declared them.
    pub(super) source: Option<Source>,
    /// The number from `Ticket::made_with`.
    pub(super) options: u64,
    /// The declared size of the payload.
    pub(super) payload_bytes: usize,
    /// Only to be dropped.
    pub(super) _payload: P,
}

impl<P: Payload> Translation<P> {
    /// Its own weight, without any record.
    pub(super) fn weight(&self) -> Weight {
        // Each allocation has the two counts of an `Arc`.
        let arc_bytes = |bytes: usize| bytes.next_multiple_of(align_of::<usize>()) + 2 * size_of::<usize>();
        let flag_bytes = self.flag.as_ref().map_or(0, |_| arc_bytes(size_of::<StaleFlag>()));
        let shared_bytes = arc_bytes(size_of::<Self>()) + flag_bytes;
        let source_bytes = self.source.as_ref().map_or(0, Source::heap_bytes);
        Weight { blocks: 1, payload_bytes: self.payload_bytes, record_bytes: shared_bytes + source_bytes }
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

    /// The weight of the record alone.
    pub(super) fn record_weight(&self) -> Weight {
        let spilled = if self.pages.spilled() { self.pages.capacity() } else { 0 };
        let record_bytes = size_of::<Self>() + spilled * size_of::<BlockPage<P>>();
        Weight { record_bytes, ..Weight::default() }
    }

    /// The weight of the record and its translation.
    pub(super) fn weight(&self) -> Weight {
        let mut weight = self.translation.weight();
        weight += self.record_weight();
        weight
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
        self.pages.iter().any(|page| page.claim.is_checked())
    }

    /// The stale flag's value while the block is entered by its comparison.
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
        let link = self.link.as_ref().expect("a commit binds its block before anybody finds it");
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

/// A box held as a raw pointer while readers may still see it. It is a box again when it is dropped
/// or taken back. Before the epoch has passed it cannot be one: a box would be the only way to its
/// contents, and the compiler may rely on that.
pub(crate) struct Retired<T>(NonNull<T>);

// SAFETY: it owns a `T`.
unsafe impl<T: Send> Send for Retired<T> {}

impl<T> Retired<T> {
    /// # Safety
    ///
    /// `this` comes from a box, and no other code turns it back into one. Every reader has finished
    /// when the result is dropped or taken back.
    pub(super) unsafe fn new(this: NonNull<T>) -> Self {
        Self(this)
    }

    pub(super) fn into_box(self) -> Box<T> {
        // SAFETY: by the contract of `new`; `self` is forgotten.
        unsafe { Box::from_raw(ManuallyDrop::new(self).0.as_ptr()) }
    }
}

impl<T> Drop for Retired<T> {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Objects that wait for the epoch.
pub(crate) enum Garbage<P: Payload> {
    Block(Retired<Block<P>>),
    Former(Arc<Translation<P>>),
    Swept(Swept),
}
