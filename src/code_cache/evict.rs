//! Translations stay within their limit.
//!
//! A lookup writes nothing that other threads read, so the cache does not know which block ran
//! last. It knows which blocks a translator asked for again after they were gone. So it has two
//! queues, as operating systems have for pages without a "used" bit:
//!
//! ```text
//!   commit ──▶ live, newest ... oldest ──▶ kept, newest ... oldest ──▶ given up,
//!                 ▲              evicted      │                        the epoch passes
//!                 └──────── revived ──────────┘
//! ```
//!
//! If live blocks take more than their share, the oldest are **evicted**. An eviction kills by the
//! same store as any kill. Like other dead blocks, an evicted one is retained with the bytes that
//! it was made from. If it is wanted again, it is revived for the price of a comparison, and is the
//! newest then. If it is not wanted until as much was evicted after it, it is **given up**. A block
//! whose bytes were not recorded cannot be revived, and is given up at once. There is never a flush
//! of everything.
//!
//! The block that was committed last stays within any limit, whatever its weight: the thread that
//! made it is about to run it. Blocks that vCPUs may be inside stay, beyond the limit, until the
//! vCPUs leave. If those are many bytes, the vCPUs are asked to leave.

use super::commit::Commits;
use super::limit::{MemoryLimit, Weight};
use super::{CodeCache, Payload};

/// Evicted beyond the limit's need, so that the next commits need not evict: this much, or an
/// eighth of the limit if that is less.
const AHEAD_BYTES: usize = 64 << 10;

impl<P: Payload> CodeCache<P> {
    /// Keeps the memory of translations within `limit` from now on. Without this call the limit is
    /// [`MemoryLimit::default`]. Each commit and revival evicts as many of the oldest blocks as it
    /// has to; the one that was committed last stays.
    ///
    /// An evicted block is as dead as one that was written to. It is kept for
    /// [`Ticket::revive`](super::Ticket::revive) like the others, so an embedder that revives pays
    /// little for a block that is still in use.
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
        {
            let mut commits = self.commits();
            self.reap(&mut commits);
            commits.live_limit_bytes = limit.live_bytes;
            let given_up = commits.formers.set_limit(limit.former_bytes);
            self.give_up(given_up);
            self.0.waiting.set_patience(limit);
            self.keep_limit(&mut commits);
        }
        self.collect_garbage();
    }

    /// Gives up blocks whose payloads own `payload_bytes`, as declared by
    /// [`Ticket::weighs`](super::Ticket::weighs): first retained dead blocks, then the oldest live
    /// ones. If there are not as many bytes, it gives up every block: `usize::MAX` empties the
    /// cache. For embedders whose memory for code is full before the limit is reached.
    ///
    /// Payloads that a vCPU may be inside are dropped later. Call it while your own vCPU is not
    /// pinned, and be ready to do without the memory for a while. Blocks that were given up before
    /// and still wait count as given up: repeated calls until the memory is free do not lose all
    /// blocks to one vCPU that is slow to leave.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn evict(&self, payload_bytes: usize) {
        let payload_bytes = payload_bytes.saturating_sub(self.0.waiting.get().payload_bytes);
        {
            let mut commits = self.commits();
            self.reap(&mut commits);
            let kept = commits.formers.weight().payload_bytes;
            let wanted = payload_bytes.saturating_sub(kept);
            // If there is not as much, give up all of them: some may weigh nothing.
            if wanted > 0 {
                let enough = commits.live.weight().payload_bytes.checked_sub(wanted);
                self.kill_oldest(&mut commits, |live| enough.is_some_and(|enough| live.payload_bytes <= enough));
            }
            let left = commits.formers.weight().payload_bytes.checked_sub(payload_bytes);
            let is_left = |formers: Weight| left.is_some_and(|left| formers.payload_bytes <= left);
            let given_up = commits.formers.give_up(is_left);
            self.give_up(given_up);
        }
        self.collect_garbage();
        if self.0.waiting.get().blocks > 0 {
            self.epoch().ask_all_to_leave();
        }
    }

    /// Evicts the excess over the limit.
    pub(super) fn keep_limit(&self, commits: &mut Commits<P>) {
        let limit = commits.live_limit_bytes;
        if commits.live.weight().bytes() > limit {
            let ahead = limit - AHEAD_BYTES.min(limit / 8);
            // The newest stays.
            self.kill_oldest(commits, |live| live.bytes() <= ahead || live.blocks == 1);
        }
    }

    /// Evicts until the rest is `fine`.
    fn kill_oldest(&self, commits: &mut Commits<P>, fine: impl Fn(Weight) -> bool) {
        let mut live = commits.live.weight();
        let mut evicted = 0;
        for block in commits.live.oldest_first() {
            if fine(live) {
                break;
            }
            live -= block.weight();
            // Another thread may be killing it: then it goes as well.
            evicted += u64::from(self.0.killer.kill(block));
        }
        self.0.counters.evicted.add(evicted);
        self.reap(commits);
    }
}
