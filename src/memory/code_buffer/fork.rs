//! A code buffer across a `fork`.

use super::buffer::{CodeBuffer, Shared, State};
use crate::error::Error;
use crate::sync::{MutexGuard, lock};
use crate::sys::fork::{Fork, Keeping};

/// A buffer that stands still during a `fork`: see [`CodeBuffer::before_fork`].
#[derive(Debug)]
#[must_use = "the buffer stands still until this is dropped"]
pub struct BufferForkGuard<'a> {
    _keeping: Keeping<'a>,
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    fork: Fork,
}

impl Drop for BufferForkGuard<'_> {
    fn drop(&mut self) {
        for range in lock(&self.shared.meanwhile).freed.drain(..) {
            self.shared.free(&mut self.state, range);
        }
    }
}

impl CodeBuffer {
    /// Call it before `fork`. In the parent, drop the guard; in the child, call
    /// [`BufferForkGuard::after_fork_child`]. Until then no other thread allocates or frees, makes
    /// a code buffer, or adds or removes a region.
    ///
    /// Until then [`CodeBuffer::alloc`] by this thread returns [`Error::BadArgument`], and another
    /// `before_fork` panics. Allocations that this thread drops are free when the guard is gone.
    /// [`CodeBuffer::stands_still_here`] tells whether a thread holds a guard.
    ///
    /// # Panics
    ///
    /// If this thread holds a guard of the buffer already.
    #[track_caller]
    pub fn before_fork(&self) -> BufferForkGuard<'_> {
        self.shared.keeper.assert();
        let (state, fork) = Fork::around(|| lock(&self.shared.state));
        lock(&self.shared.meanwhile).stats = self.shared.stats_of(&state);
        BufferForkGuard { _keeping: self.shared.keeper.begin(), shared: &self.shared, state, fork }
    }

    /// Whether the calling thread holds the guard of a fork ([`CodeBuffer::before_fork`]).
    pub fn stands_still_here(&self) -> bool {
        self.shared.keeper.is_this_thread()
    }
}

impl BufferForkGuard<'_> {
    /// In the child: puts new memory, empty of code, behind the same addresses. Allocations stay,
    /// to be dropped as usual, but their contents are gone. So code of the buffer must not call
    /// this: there is nothing to return to.
    ///
    /// An allocation that the child drops before this call is not free afterwards: its memory was
    /// the parent's. So call this before
    /// [`after_fork_child`](crate::CacheForkGuard::after_fork_child) of a cache.
    ///
    /// # Errors
    ///
    /// [`Error::NotInForkChild`] in the process that made the guard: nothing was changed.
    /// [`Error::System`]: the buffer is still the parent's and must be neither written nor run.
    pub fn after_fork_child(self) -> Result<(), Error> {
        self.fork.check_child()?;
        // The registration for `membarrier` is inherited. Pages that were resident may become so
        // here as well: allocations that are dropped are filled.
        self.shared.views.renew()?;
        self.shared.owner.take_over()
    }
}
