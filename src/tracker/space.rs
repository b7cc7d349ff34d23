//! What a tracker knows of guest memory, and the lock around it.

use std::fmt;
use std::ops::Range;
use std::sync::PoisonError;

use crate::addr::GuestAddr;
use crate::sync::{Arc, AtomicBool, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::PageObserver;
use super::region::Region;
use super::views::{SharedMemory, Views};

/// The lock of a tracker's space. It is also the gate of a fork: whoever takes
/// another lock of the tracker or of a mechanism has this one for reading.
pub(super) struct Gate<O: PageObserver> {
    space: Arc<RwLock<Space<O>>>,
    /// Whether a view was ever declared. A translator that does not see it set
    /// claimed its page before that view's declaration ended the claim.
    has_views: Arc<AtomicBool>,
}

/// What a tracker knows of guest memory.
#[derive(Debug)]
pub(super) struct Space<O: PageObserver> {
    pub(super) regions: Vec<Arc<Region<O>>>,
    pub(super) views: Views,
}

impl<O: PageObserver> Default for Gate<O> {
    fn default() -> Self {
        let space = Space { regions: Vec::new(), views: Views::default() };
        Self { space: Arc::new(RwLock::new(space)), has_views: Arc::new(AtomicBool::new(false)) }
    }
}

impl<O: PageObserver> Clone for Gate<O> {
    fn clone(&self) -> Self {
        Self { space: self.space.clone(), has_views: self.has_views.clone() }
    }
}

impl<O: PageObserver> fmt::Debug for Gate<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl<O: PageObserver> Gate<O> {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Space<O>> {
        self.space.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Space<O>> {
        self.space.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other pages that show the bytes of the one at `page`, which the caller
    /// has claimed already.
    pub(super) fn aliases(&self, page: GuestAddr, page_bytes: u64) -> Vec<GuestAddr> {
        if !self.has_views.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.read().views.aliases(page, page_bytes)
    }

    /// Writes a view down, then ends what was begun without knowing of it.
    pub(super) fn declare(&self, space: &mut Space<O>, range: Range<u64>, memory: SharedMemory) {
        self.has_views.store(true, Ordering::Release);
        space.declare(range, memory);
    }
}

impl<O: PageObserver> Space<O> {
    fn declare(&mut self, range: Range<u64>, memory: SharedMemory) {
        self.views.insert(range.clone(), memory);
        for other in self.views.others(range) {
            for region in &self.regions {
                if let Some(pages) = region.pages_within(other.start, other.end) {
                    region.invalidate(pages);
                }
            }
        }
    }
}
