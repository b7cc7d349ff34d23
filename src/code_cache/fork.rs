//! A cache over a `fork`.

use std::fmt;

use super::commit::Commits;
use super::record::Garbage;
use super::{CodeCache, Killer, Payload};
use crate::epoch;
use crate::error::Error;
use crate::sync::{MutexGuard, lock};
use crate::tracker;

/// A cache that stands still over a `fork`: see [`CodeCache::before_fork`].
#[must_use = "the cache stands still until this is dropped"]
pub struct ForkGuard<'a, P: Payload> {
    cache: &'a CodeCache<P>,
    tracker: tracker::ForkGuard<'a, Killer<P>>,
    commits: MutexGuard<'a, Commits<P>>,
    epoch: epoch::ForkGuard<'a, Garbage<P>>,
}

impl<P: Payload> fmt::Debug for ForkGuard<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkGuard").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<P: Payload> CodeCache<P> {
    /// Called before `fork`, by a thread whose vCPU is not pinned: waits until no
    /// other thread is inside the cache. In the parent, drop the guard; in the child
    /// call [`ForkGuard::after_fork_child`] before anything else but a
    /// [code buffer's](crate::code_buffer::ForkGuard::after_fork_child), which comes
    /// first: [`forks`](crate::guide::forks) has both sides.
    pub fn before_fork(&self) -> ForkGuard<'_, P> {
        ForkGuard {
            cache: self,
            tracker: self.0.tracker.before_fork(),
            commits: lock(&self.0.commits),
            epoch: self.epoch().before_fork(),
        }
    }
}

impl<P: Payload> ForkGuard<'_, P> {
    /// In the child: every block is dead, and the child's own memory is tracked
    /// from now on. vCPUs of the parent's other threads hold nothing back.
    ///
    /// # Errors
    ///
    /// A region that cannot be tracked here: nothing can be translated from it.
    pub fn after_fork_child(self) -> Result<(), Error> {
        let Self { cache, tracker, commits, epoch } = self;
        epoch.after_fork_child();
        drop(commits);
        let done = tracker.after_fork_child();
        // Nor are there formers: code may lie in memory that is the parent's.
        cache.forget_formers();
        done
    }
}
