//! A translation in progress: from `begin` to `commit`.

use std::fmt;
use std::ptr::NonNull;

use super::{Block, CodeCache, CommitError, Key, Payload};
use crate::addr::{GuestAddr, HostRange};
use crate::sync::AtomicU8;
use crate::tracker::BeginError;

/// A translation in progress. Dropped without a commit, it leaves nothing
/// behind; the pages stay protected.
pub struct Ticket<P: Payload> {
    cache: CodeCache<P>,
    key: Key,
    block: Box<Block<P>>,
}

impl<P: Payload> fmt::Debug for Ticket<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key).finish_non_exhaustive()
    }
}

impl<P: Payload> Ticket<P> {
    pub(super) fn new(cache: CodeCache<P>, key: Key) -> Self {
        Self { cache, key, block: Box::new(Block::new()) }
    }

    /// What the block will be found by.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Protects the page that holds `guest`, if this ticket did not yet, and every
    /// page that is known to show the same bytes, and says
    /// where it lies in this process. Its bytes may be read from now on, each of
    /// them once: in a deferred region a second reading may differ.
    ///
    /// # Errors
    ///
    /// [`BeginError::Busy`]: interpret, and begin again later.
    /// [`BeginError::Failed`]: no region is there, or the kernel refused.
    pub fn claim(&mut self, guest: GuestAddr) -> Result<HostRange, BeginError> {
        let page_bytes = self.cache.tracker().page_size().bytes() as u64;
        let mut claims = self.block.pages.iter().map(|page| &page.claim);
        if let Some(claim) = claims.find(|claim| guest.0.wrapping_sub(claim.guest_page().0) < page_bytes) {
            return Ok(claim.host_page());
        }
        let claim = self.cache.claim(guest)?;
        let host = claim.host_page();
        let before = self.block.pages.len();
        self.block.add_page(claim);
        for alias in self.cache.tracker().aliases(guest) {
            match self.cache.claim(alias) {
                Ok(claim) => self.block.add_page(claim),
                Err(error) => {
                    // All of the page's views or none: the caller may ask again,
                    // and a page that is found here is not claimed again.
                    self.block.pages.truncate(before);
                    return Err(error);
                }
            }
        }
        Ok(host)
    }

    /// A byte that becomes 1 when the block is killed. Emitted code may poll it,
    /// for instance after a store of its own; it lives as long as the block's
    /// payload.
    pub fn stale_flag(&self) -> *const u8 {
        let flag: *const AtomicU8 = self.block.stale_flag();
        flag.cast()
    }

    /// Whether a write came already: then a commit would be refused.
    pub fn is_current(&self) -> bool {
        self.block.is_current()
    }

    /// Makes the block reachable: lookups of its key and links to it lead to
    /// `entry` until a write to one of its pages arrives. A block of the same key
    /// is superseded. `payload` is dropped when no vCPU can be inside the block
    /// any more.
    ///
    /// # Errors
    ///
    /// [`CommitError::Written`]: a write came since a page was claimed; nothing
    /// of the block can be reached, `payload` was dropped.
    pub fn commit(self, entry: usize, payload: P) -> Result<(), CommitError> {
        let Self { cache, key, mut block } = self;
        if block.pages.is_empty() {
            return Err(CommitError::NoPages);
        }
        if cache.live(entry).is_none() || key.raw() == u64::MAX {
            return Err(CommitError::BadEntry);
        }
        block.entry = entry;
        block.payload = Some(payload);
        // From here on the block belongs to the cache.
        cache.commit(key, NonNull::from(Box::leak(block)))
    }
}
