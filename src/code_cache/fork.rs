//! A cache across a `fork`.

use std::fmt;

use super::block_list::PageBlocks;
use super::cache::{CodeCache, Commits};
use super::epoch::EpochForkGuard;
use super::key::Payload;
use super::record::Block;
use crate::error::Error;
use crate::sync::{MutexGuard, lock};
use crate::sys::fork::{Fork, Keeping};
use crate::tracker::{Blocks, Standing};

/// A cache that stands still during a `fork`: see [`CodeCache::before_fork`].
#[must_use = "the cache stands still until this is dropped"]
pub struct CacheForkGuard<'a, P: Payload> {
    cache: &'a CodeCache<P>,
    keeping: Keeping<'a>,
    tracker: Standing<'a, PageBlocks<Block<P>>>,
    commits: MutexGuard<'a, Commits<P>>,
    epoch: EpochForkGuard<'a>,
    fork: Fork,
}

impl<P: Payload> fmt::Debug for CacheForkGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheForkGuard").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<P: Payload> CodeCache<P> {
    /// Call it before `fork`: it waits until no other thread is inside the cache. In the parent,
    /// drop the guard. In the child, call [`CacheForkGuard::after_fork_child`] or
    /// [`CacheForkGuard::after_fork_child_with_blocks`] before anything else
    /// except a [code buffer's](crate::code_buffer::BufferForkGuard::after_fork_child), which comes
    /// first: [`forks`](crate::guide::forks) has both sides.
    ///
    /// Until then, a call of this thread that would wait for itself returns [`Error::BadArgument`],
    /// or [`CommitError::UnderForkGuard`](super::CommitError). If it has no error to return, it
    /// panics, and the guard stays as it was. These calls are [`CodeCache::remove`],
    /// [`CodeCache::evict`], [`CodeCache::collect`], [`CodeCache::set_limit`],
    /// [`CodeCache::attach_vcpu`], another `before_fork`, and those that [the
    /// tracker](crate::tracker::Tracker::before_fork) lists. The thread can still look up blocks,
    /// ask for numbers, and drop its tickets, links and vCPUs. [`CodeCache::stands_still_here`]
    /// tells whether a thread holds a guard.
    ///
    /// Until then no other thread can add or remove a region or a code buffer of any other
    /// instance. A child never waits for the locks of instances that have no guard: it leaves those
    /// instances alone.
    ///
    /// # Panics
    ///
    /// If this thread holds a guard of the cache, or of its tracker, already.
    #[track_caller]
    pub fn before_fork(&self) -> CacheForkGuard<'_, P> {
        // Not under the static locks, which a panic would lose.
        self.0.keeper.assert();
        self.0.tracker.assert_moves();
        let take_locks = || {
            let tracker = self.0.tracker.stand_still();
            let commits = lock(&self.0.commits);
            // The epoch's locks come last: dead blocks are only counted.
            let footprint = self.footprint_of(&commits, self.0.tracker.descriptor_bytes());
            *lock(&self.0.footprint_at_fork) = footprint;
            (tracker, commits, self.epoch().before_fork())
        };
        let ((tracker, commits, epoch), fork) = Fork::around(take_locks);
        CacheForkGuard { cache: self, keeping: self.0.keeper.begin(), tracker, commits, epoch, fork }
    }
}

impl<P: Payload> CacheForkGuard<'_, P> {
    /// In the child: every block is dead, and the child's own memory is tracked from now on. vCPUs
    /// of the parent's other threads hold nothing back. A vCPU that this thread has pinned stays
    /// pinned: the blocks that it is inside are dead, and stay in memory until it is unpinned.
    ///
    /// # Errors
    ///
    /// [`Error::NotInForkChild`] in the process that made the guard: nothing was changed. Otherwise
    /// the error of a region that cannot be tracked here: nothing can be translated from it.
    pub fn after_fork_child(self) -> Result<(), Error> {
        self.fork.check_child()?;
        let cache = self.cache;
        let done = self.continue_in_child(Blocks::Die);
        // No translation is retained either: code may lie in memory that belongs to the parent.
        cache.discard_retained();
        done
    }

    /// Like [`after_fork_child`](Self::after_fork_child), but blocks stay valid. The child must have their code at the
    /// same addresses: either no code lies in shared memory, or
    /// [`copy_code`](crate::code_buffer::BufferForkGuard::copy_code) copied each buffer that has some. Blocks die on
    /// the pages that [`TrackerForkGuard::after_fork_child`](crate::tracker::TrackerForkGuard::after_fork_child) lists.
    /// Its rules hold here too: until this call nothing in the child stores to guest memory. Declare memory that both
    /// processes share: blocks of undeclared memory stay, and the parent's stores to it are not noticed.
    ///
    /// # Errors
    ///
    /// As [`after_fork_child`](Self::after_fork_child).
    pub fn after_fork_child_with_blocks(self) -> Result<(), Error> {
        self.fork.check_child()?;
        self.continue_in_child(Blocks::Stay)
    }

    fn continue_in_child(self, blocks: Blocks) -> Result<(), Error> {
        let Self { keeping, tracker, commits, epoch, fork, .. } = self;
        drop((keeping, commits));
        // This drops hooks of the embedder.
        epoch.after_fork_child();
        let done = tracker.continue_in_child(blocks);
        drop(fork);
        done
    }
}
