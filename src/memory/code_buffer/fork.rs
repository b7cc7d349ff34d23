//! A code buffer across a `fork`.

use std::ops::Range;

use super::buffer::{CodeBuffer, Shared, State, clean_caches};
use crate::error::Error;
use crate::sync::{MutexGuard, lock};
use crate::sys::code_views::CodeCopy;
use crate::sys::fork::{Fork, Keeping};
use crate::sys::membarrier;

/// A buffer that stands still during a `fork`: see [`CodeBuffer::before_fork`].
#[derive(Debug)]
#[must_use = "the buffer stands still until this is dropped"]
pub struct BufferForkGuard<'a> {
    _keeping: Keeping<'a>,
    shared: &'a Shared,
    state: MutexGuard<'a, State>,
    fork: Fork,
    /// The memory that the child will have; `None` for empty memory.
    copy: Option<CodeCopy>,
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
        BufferForkGuard { _keeping: self.shared.keeper.begin(), shared: &self.shared, state, fork, copy: None }
    }

    /// Whether the calling thread holds the guard of a fork ([`CodeBuffer::before_fork`]).
    pub fn stands_still_here(&self) -> bool {
        self.shared.keeper.is_this_thread()
    }
}

impl BufferForkGuard<'_> {
    /// Before the fork: copies the code, so that the child has it too and a cache keeps its blocks
    /// ([`after_fork_child_with_blocks`](crate::CacheForkGuard::after_fork_child_with_blocks)). Hold the
    /// guard of that cache already: then no block is made whose code the copy lacks. The copy takes as
    /// much memory as the allocations do, until the guard is dropped. A child that only calls `exec` needs none.
    ///
    /// One child has it: fork once under a guard. The child has the code as of now, and the blocks as of the fork:
    /// code is not patched between the two, by no fault handler of another thread either. (Links by entry
    /// cells need no patch.)
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the system refuses the mappings or the copying (`process_vm_readv`), and
    /// [`Error::InForkChild`] if the memory is still a parent's: the child begins without code. Memory itself is
    /// found as it is written: a limit of memory may end the process instead.
    pub fn copy_code(&mut self) -> Result<(), Error> {
        self.copy = None;
        self.shared.check_owner()?;
        self.copy = Some(self.shared.views.copy(self.state.free.used())?);
        Ok(())
    }

    /// Whether the child will have the code ([`copy_code`](Self::copy_code)).
    pub fn has_copy(&self) -> bool {
        self.copy.is_some()
    }

    /// In the child: puts memory of its own behind the same addresses. It has the code that was copied
    /// ([`copy_code`](Self::copy_code)), published. Without a copy it is empty of code: allocations
    /// stay, to be dropped as usual, but their contents are gone. Then code of the buffer must not call
    /// this: its return address would be empty.
    ///
    /// [`Allocation::entry`](super::Allocation::entry) needs another
    /// [`publish`](super::Allocation::publish) here, also of code that was copied: another thread, or
    /// this one, may have written it after the copy.
    ///
    /// An allocation that the child drops before this call is not free afterwards: its memory was
    /// the parent's. So call this before
    /// [`after_fork_child`](crate::CacheForkGuard::after_fork_child) of a cache.
    ///
    /// # Errors
    ///
    /// [`Error::NotInForkChild`] in the process that made the guard: nothing was changed.
    /// [`Error::System`], and [`Error::BadArgument`] if another child has taken the copy: the buffer is still the
    /// parent's and must be neither written nor run.
    pub fn after_fork_child(mut self) -> Result<(), Error> {
        self.fork.check_child()?;
        // The registration for `membarrier` is inherited. Pages that were resident may become so
        // here as well: allocations that are dropped are filled.
        let Shared { views, owner, .. } = self.shared;
        match self.copy.take() {
            None => views.renew()?,
            Some(copy) => {
                views.replace_by(copy)?;
                for Range { start, end } in self.state.free.used() {
                    clean_caches(views.rw.wrapping_add(start), views.rx.wrapping_add(start), end - start);
                }
                membarrier::sync_core()?;
                // The cleaning has mapped pages, on a processor that needs it.
                views.unmap_written();
            }
        }
        owner.take_over()
    }
}
