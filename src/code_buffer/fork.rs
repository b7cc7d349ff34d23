//! A buffer over a `fork`.

use std::sync::MutexGuard;

use super::{CodeBuffer, Shared, State};
use crate::code_buffer::lock;
use crate::error::Error;
use crate::sys::fork::{Fork, Keeping};

/// A buffer that stands still over a `fork`: see [`CodeBuffer::before_fork`].
#[derive(Debug)]
#[must_use = "the buffer stands still until this is dropped"]
pub struct ForkGuard<'a> {
    _keeping: Keeping<'a>,
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    fork: Fork,
}

impl Drop for ForkGuard<'_> {
    fn drop(&mut self) {
        for range in lock(&self.shared.meanwhile).freed.drain(..) {
            self.shared.free(&mut self.state, range);
        }
    }
}

impl CodeBuffer {
    /// Called before `fork`: until the guard is dropped, in the parent, or
    /// [`ForkGuard::after_fork_child`] is called, in the child, no other thread
    /// allocates or frees, and none makes a code buffer, or adds or removes a region.
    ///
    /// Until then [`CodeBuffer::alloc`] by this thread is [`Error::BadArgument`], another
    /// `before_fork` panics, and what the thread drops is free when the guard is gone.
    /// [`CodeBuffer::stands_still_here`] tells.
    ///
    /// # Panics
    ///
    /// If this thread holds a guard of the buffer already.
    #[track_caller]
    pub fn before_fork(&self) -> ForkGuard<'_> {
        self.shared.keeper.assert();
        let (state, fork) = Fork::around(|| lock(&self.shared.state));
        lock(&self.shared.meanwhile).stats = self.shared.stats_of(&state);
        ForkGuard { _keeping: self.shared.keeper.begin(), shared: &self.shared, state, fork }
    }

    /// Whether the calling thread holds the guard of a fork ([`CodeBuffer::before_fork`]).
    pub fn stands_still_here(&self) -> bool {
        self.shared.keeper.is_this_thread()
    }
}

impl ForkGuard<'_> {
    /// In the child: puts new memory, empty of code, behind the same addresses.
    /// Allocations stay, to be dropped as usual, but what was in them is gone. So no
    /// code of the buffer calls this: there is nothing to return to.
    ///
    /// What is dropped in the child before is not free afterwards: its memory was the
    /// parent's. So call it before
    /// [`after_fork_child`](crate::ForkGuard::after_fork_child) of a cache.
    ///
    /// # Errors
    ///
    /// [`Error::NotInForkChild`] in the process that made the guard: nothing was changed.
    /// [`Error::System`]: the buffer is still the parent's and must be
    /// neither written nor run.
    pub fn after_fork_child(self) -> Result<(), Error> {
        self.fork.check_child()?;
        // The registration for `membarrier` is inherited. What was resident may be so here as well:
        // allocations that are dropped are filled.
        self.shared.views.renew()?;
        self.shared.owner.take_over()
    }
}
