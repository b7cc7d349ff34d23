//! What a tracker knows of guest memory, and the lock around it.

use std::fmt;
use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::addr::GuestAddr;
use crate::error::Error;
use crate::sync::{Arc, AtomicBool, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::sys::fault::this_thread;

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
    /// The thread that keeps the tracker still for a fork; 0 if there is none.
    standing: Arc<AtomicU64>,
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
        let (has_views, standing) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        Self { space: Arc::new(RwLock::new(space)), has_views, standing }
    }
}

impl<O: PageObserver> Clone for Gate<O> {
    fn clone(&self) -> Self {
        Self { space: self.space.clone(), has_views: self.has_views.clone(), standing: self.standing.clone() }
    }
}

impl<O: PageObserver> fmt::Debug for Gate<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl<O: PageObserver> Gate<O> {
    /// Whether the calling thread holds the fork guard: it would wait for itself here.
    pub(super) fn stands_still_here(&self) -> bool {
        let standing = self.standing.load(Relaxed);
        standing != 0 && standing == this_thread()
    }

    /// An error instead of a wait for ever.
    pub(super) fn check_moves(&self) -> Result<(), Error> {
        let held = "this thread holds the fork guard: drop it first, or call after_fork_child in the child";
        if self.stands_still_here() { Err(Error::BadArgument(held)) } else { Ok(()) }
    }

    /// Lets nobody in until the result is dropped.
    pub(super) fn stand_still(&self) -> Standing<'_, O> {
        let space = self.write();
        self.standing.store(this_thread(), Relaxed);
        Standing { space, standing: &self.standing }
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Space<O>> {
        debug_assert_eq!(self.check_moves(), Ok(()));
        self.space.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Space<O>> {
        debug_assert_eq!(self.check_moves(), Ok(()));
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

/// A tracker's space that stands still over a fork.
#[derive(Debug)]
pub(super) struct Standing<'a, O: PageObserver> {
    pub(super) space: RwLockWriteGuard<'a, Space<O>>,
    standing: &'a AtomicU64,
}

impl<O: PageObserver> Drop for Standing<'_, O> {
    fn drop(&mut self) {
        self.standing.store(0, Relaxed);
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
