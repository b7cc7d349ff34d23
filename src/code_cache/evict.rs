//! Kills blocks because the embedder asks for it, or to keep translations within their limit.
//!
//! A lookup writes nothing that other threads read, so the cache does not know which block ran
//! last. It knows only which blocks a translator asked for again after they were gone. So it has
//! two queues, like an operating system for pages without a "used" bit:
//!
//! ```text
//!   commit ──▶ live, newest ... oldest ──▶ retained, newest ... oldest ──▶ discarded,
//!                 ▲              evicted      │                            the epoch passes
//!                 └──────── revived ──────────┘
//! ```
//!
//! If live blocks take more than their share, the oldest are **evicted**. An eviction kills by the
//! same store as any kill. Like other dead blocks, an evicted one is retained with the bytes that
//! it was made from. If a translator asks for it again, it is revived for the price of a
//! comparison, and is then the newest. If none asks before newer ones fill the queue of retained
//! blocks, it is **discarded**. A block whose bytes were not recorded cannot be revived, and is
//! discarded at once. The cache never flushes everything.
//!
//! The block that was committed last stays, whatever its size and the limit: the thread that made
//! it is about to run it. The memory of blocks that vCPUs may be inside stays, beyond the limit,
//! until the vCPUs leave. If these are many bytes, the cache asks the vCPUs to leave.
//!
//! # Safety
//!
//! A block is reaped by the thread that killed it, under the commit lock.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::cache::{CodeCache, Commits};
use super::key::{Key, Payload};
use super::limit::{MemoryLimit, MemoryUse};

/// An eviction takes this much more than the excess, or an eighth of the limit if that is less. So
/// the next commits need not evict.
const AHEAD_BYTES: usize = 64 << 10;

impl<P: Payload> CodeCache<P> {
    /// Makes the block of `key` unreachable: the embedder found at its entry that its bytes have
    /// changed, or no longer wants it. [`Ticket::revive`](super::Ticket::revive) can still find it.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn remove(&self, key: Key) {
        let commits = self.commits();
        let Some(block) = self.0.table.cell(&commits.cells, key).and_then(Self::newest) else {
            return;
        };
        self.0.counters.removed.add(u64::from(self.0.invalidator.kill(block)));
    }

    /// As [`CodeCache::remove`], but [`Ticket::revive`](super::Ticket::revive) does not find the
    /// block, so it takes no room from dead blocks that may come back. For a block that another one
    /// replaces for ever, for instance better code under another key. If a write has just killed the
    /// block, it is retained like any other.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn remove_for_good(&self, key: Key) {
        let mut commits = self.commits();
        let newest = self.0.table.cell(&commits.cells, key).and_then(Self::newest);
        let Some(block) = newest.filter(|block| block.life.kill(block.reach(self.0.invalidator.stubs))) else {
            return;
        };
        self.0.counters.removed.add(1);
        let block = NonNull::from(block);
        // SAFETY: committed, not reaped, and killed by this call. The epoch frees it, which only a
        // collection asks for.
        unsafe { self.reap_for_good(&mut commits, block.as_ref()) };
    }

    /// Keeps the memory of translations within `limit` from now on. Without this call the limit is
    /// [`MemoryLimit::default`]. Each commit and revival evicts as many of the oldest blocks as it
    /// has to; the one that was committed last stays.
    ///
    /// An evicted block is as dead as one that was written to. It is retained for
    /// [`Ticket::revive`](super::Ticket::revive) like the others, so an embedder that revives pays
    /// little for a block that is still in use.
    ///
    /// A little garbage, up to 8 objects or 8 KiB, may wait beyond the limit for the next commit.
    ///
    /// The limit does not include entry cells and descriptors of pages. Guest memory bounds the
    /// descriptors. The number of keys with a block or a [`Link`](super::Link) bounds the cells: a
    /// cell without a link stays until the table of keys is full, and is then used again.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn set_limit(&self, limit: MemoryLimit) {
        let mut commits = self.commits();
        self.reap(&mut commits);
        commits.live_limit_bytes = limit.live_bytes;
        let discarded = commits.retained.set_limit(limit.retained_bytes);
        self.retire(&mut commits, discarded);
        commits.garbage.set_limit(limit);
        self.enforce_limit(&mut commits);
        self.collect_garbage(commits);
    }

    /// Discards blocks whose payloads own `payload_bytes`, as declared by
    /// [`Ticket::set_payload_bytes`](super::Ticket::set_payload_bytes): first retained dead blocks,
    /// then the oldest live ones. If there are not as many bytes, it discards every block:
    /// `usize::MAX` empties the cache. For embedders whose memory for code is full before the limit
    /// is reached.
    ///
    /// Payloads that a vCPU may be inside are dropped later. Call it while your own vCPU is not
    /// pinned, and be ready to do without the memory for a while. Garbage that is not free yet
    /// counts: repeated calls until the memory is free do not lose all blocks to one vCPU that is
    /// slow to leave.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn evict(&self, payload_bytes: usize) {
        let mut commits = self.commits();
        let payload_bytes = payload_bytes.saturating_sub(commits.garbage.memory_use().payload_bytes);
        self.reap(&mut commits);
        let retained = commits.retained.memory_use().payload_bytes;
        let wanted = payload_bytes.saturating_sub(retained);
        // If there is not as much, discard all of them: some may have declared nothing.
        if wanted > 0 {
            let enough = commits.live.memory_use().payload_bytes.checked_sub(wanted);
            self.kill_oldest(&mut commits, |live| enough.is_some_and(|enough| live.payload_bytes <= enough));
        }
        let left = commits.retained.memory_use().payload_bytes.checked_sub(payload_bytes);
        let is_left = |used: MemoryUse| left.is_some_and(|left| used.payload_bytes <= left);
        let discarded = commits.retained.discard(is_left);
        self.retire(&mut commits, discarded);
        if self.collect_garbage(commits) {
            self.epoch().ask_all_to_leave();
        }
    }

    /// Evicts the excess over the limit.
    pub(super) fn enforce_limit(&self, commits: &mut Commits<P>) {
        let limit = commits.live_limit_bytes;
        if commits.live.memory_use().bytes() > limit {
            let ahead = limit - AHEAD_BYTES.min(limit / 8);
            // The newest stays.
            self.kill_oldest(commits, |live| live.bytes() <= ahead || live.blocks == 1);
        }
    }

    /// Evicts until the rest is `small_enough`.
    fn kill_oldest(&self, commits: &mut Commits<P>, small_enough: impl Fn(MemoryUse) -> bool) {
        let mut live = commits.live.memory_use();
        let mut evicted = 0;
        for block in commits.live.oldest_first() {
            if small_enough(live) {
                break;
            }
            live -= block.memory_use();
            // Another thread may be killing it: then it goes as well.
            evicted += u64::from(self.0.invalidator.kill(block));
        }
        self.0.counters.evicted.add(evicted);
        self.reap(commits);
    }
}
