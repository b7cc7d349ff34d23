//! A guest. Its translator encodes the bytes that it read into the entry, so that a stale block
//! shows by its address.
//!
//! # Safety
//!
//! Cells stay as long as their links, which the guest holds.
#![allow(unsafe_code)]

use core::ptr;

use super::kernel::Kernel;
use crate::addr::GuestAddr;
use crate::code_cache::{self, CodeCache, CommitError, EntryCell, EntryStubs, Key, Payload, Ticket};
#[cfg(loom)]
use crate::policy::Adaptive;
use crate::policy::Policy;
#[cfg(loom)]
use crate::protection::Mode;
use crate::sync::Arc;
use crate::tracker::BeginError;

/// The tests' blocks own a payload that is never read.
pub(super) type Cache = CodeCache<u8>;

#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub(super) cache: Cache,
    pub(super) kernel: Arc<Kernel>,
    /// Keeps each link, because the guest copies its address. Not a loom lock: no part of the
    /// model.
    links: Arc<std::sync::Mutex<Vec<code_cache::Link>>>,
}

/// A cache with one region, the kernel's memory, at guest address 0.
pub(super) fn cache_over<P: Payload>(kernel: &Arc<Kernel>, policy: impl Policy) -> CodeCache<P> {
    let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(policy)).unwrap();
    cache.tracker().add_region_on(kernel.region(), None, |_| Ok(kernel.clone())).unwrap();
    cache
}

/// The address that a link to a block gives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link(*const EntryCell);

// SAFETY: a cell is shared between threads by design.
unsafe impl Send for Link {}
// SAFETY: as above.
unsafe impl Sync for Link {}

/// Why there is no block.
#[derive(Debug)]
pub(super) enum Refusal {
    Busy,
    Written,
    /// The region is no longer tracked.
    Lost,
}

impl Guest {
    #[cfg(loom)]
    pub(super) fn new(mode: Mode, pages: usize) -> Self {
        Self::with_policy(mode, pages, Adaptive::new())
    }

    #[cfg(loom)]
    pub(super) fn with_policy(mode: Mode, pages: usize, policy: impl Policy) -> Self {
        Self::over(Kernel::new(mode, pages), policy)
    }

    pub(super) fn over(kernel: Kernel, policy: impl Policy) -> Self {
        let kernel = Arc::new(kernel);
        Self { cache: cache_over(&kernel, policy), kernel, links: Arc::default() }
    }

    /// The whole page, as start and length.
    pub(super) fn span(&self, page: usize) -> (GuestAddr, u64) {
        (self.page_at(page), self.cache.tracker().page_size().bytes() as u64)
    }

    fn page_at(&self, page: usize) -> GuestAddr {
        GuestAddr((page << self.cache.tracker().page_size().shift()) as u64)
    }

    /// Begins, reads and commits a block of `key`, made from the byte of each page.
    pub(super) fn translate(&self, key: u64, pages: &[usize]) -> Result<(), Refusal> {
        let mut ticket = self.cache.begin(Key::new(key));
        let mut entry = 1;
        for &page in pages {
            match ticket.claim(self.page_at(page)) {
                Ok(_) => entry = entry << 8 | usize::from(self.kernel.load(page)),
                Err(BeginError::Busy(_)) => return Err(Refusal::Busy),
                Err(BeginError::Untrackable | BeginError::Failed(_)) => return Err(Refusal::Lost),
            }
        }
        match ticket.commit(entry, 0) {
            Ok(()) => Ok(()),
            Err(CommitError::Written) => Err(Refusal::Written),
            Err(error) => panic!("{error}"),
        }
    }

    /// A ticket with the byte of each page read and declared, and the plain entry of a block of
    /// these bytes. `None` if a page is busy.
    pub(super) fn ticket(&self, key: u64, pages: &[usize]) -> Option<(Ticket<u8>, usize)> {
        let mut ticket = self.cache.begin(Key::new(key));
        let mut entry = 1;
        for &page in pages {
            ticket.claim(self.page_at(page)).ok()?;
            let byte = self.kernel.load(page);
            ticket.add_source(self.page_at(page), &[byte]).unwrap();
            entry = entry << 8 | usize::from(byte);
        }
        Some((ticket, entry))
    }

    /// A link to the blocks of `key`.
    pub(super) fn link(&self, key: u64) -> Link {
        let link = self.cache.link(Key::new(key)).unwrap();
        let cell = ptr::from_ref(link.cell());
        self.links.lock().unwrap().push(link);
        Link(cell)
    }

    /// The byte that the block behind `link` was made from, if there is one; of a block over
    /// several pages, the last page's byte. Takes no lock and no fence, as emitted code does.
    pub(super) fn follow(&self, link: Link) -> Option<u8> {
        let entry = self.entry(link);
        (entry > 1).then_some(entry as u8)
    }

    /// The entry that `link` holds.
    pub(super) fn entry(&self, link: Link) -> usize {
        // SAFETY: the guest has a link to it.
        unsafe { &*link.0 }.load()
    }
}
