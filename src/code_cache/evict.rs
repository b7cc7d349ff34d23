//! Translations stay within their limit.
//!
//! A lookup writes nothing that others read, so nobody knows which block ran last.
//! What is known is which one somebody asked for again after it was gone. Hence two
//! queues, as operating systems have had them for pages without a bit that says
//! "used":
//!
//! ```text
//!   commit ──▶ live, newest ... oldest ──▶ kept, newest ... oldest ──▶ given up,
//!                 ▲              evicted      │                        the epoch passes
//!                 └──────── revived ──────────┘
//! ```
//!
//! Where live blocks take more than their share, the oldest are **evicted**: killed by
//! the store that any kill is, and kept like other dead blocks with the bytes that they
//! were made from. One that is wanted again is revived, for the price of a comparison,
//! and is the newest then. What nobody asked for until as much was evicted after it is
//! **given up**. A block whose bytes nobody knows cannot be revived, and is given up at
//! once. Everything is never flushed.
//!
//! The block that was committed last stays within any limit, whatever it weighs: who made
//! it is about to run it. What vCPUs may be inside is beyond the limit until they leave; where
//! that is much they are asked to.

use super::commit::Commits;
use super::limit::{MemoryLimit, Weight};
use super::{CodeCache, Payload};

/// Evicted beyond what the limit wants, so that the next commits need not: as much,
/// or an eighth of the limit.
const AHEAD_BYTES: usize = 64 << 10;

impl<P: Payload> CodeCache<P> {
    /// Keeps the memory of translations within `limit` from now on, which is
    /// [`MemoryLimit::default`] where this is not called. Each commit and revival evicts
    /// the oldest blocks as far as it has to; the one that was committed last stays.
    ///
    /// An evicted block is as dead as one that was written to. It is kept for
    /// [`Ticket::revive`](super::Ticket::revive) as others are, so that an embedder who
    /// revives where it can pays little for one that is still in use.
    ///
    /// Entry cells and descriptors of pages are not in it. Guest memory bounds the
    /// descriptors. The keys that have a block or a [`Link`](super::Link) bound the
    /// cells: a cell that no link leads to stays until the table of keys is full, and is
    /// used again then.
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

    /// Gives up blocks whose payloads own `payload_bytes`, as was said of them
    /// ([`Ticket::weighs`](super::Ticket::weighs)): dead blocks that are kept, then the
    /// oldest that can be reached. If there are not as many bytes, it gives up every
    /// block: `usize::MAX` empties the cache. For embedders whose memory for code is
    /// full before the limit is reached.
    ///
    /// Payloads that a vCPU may be inside are dropped later: call it while the own vCPU
    /// is not pinned, and do without the memory for a while where it is not there yet.
    /// What was given up before and waits for that counts: who calls it again and again
    /// until the memory is there does not lose all blocks to one vCPU that is slow to leave.
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
            // If there is not as much, all of them: some may weigh nothing.
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

    /// Evicts what is too much.
    pub(super) fn keep_limit(&self, commits: &mut Commits<P>) {
        let limit = commits.live_limit_bytes;
        if commits.live.weight().bytes() > limit {
            let ahead = limit - AHEAD_BYTES.min(limit / 8);
            // The newest stays.
            self.kill_oldest(commits, |live| live.bytes() <= ahead || live.blocks == 1);
        }
    }

    /// Evicts until what is left is `fine`.
    fn kill_oldest(&self, commits: &mut Commits<P>, fine: impl Fn(Weight) -> bool) {
        let mut live = commits.live.weight();
        let mut evicted = 0;
        for block in commits.live.oldest_first() {
            if fine(live) {
                break;
            }
            live -= block.weight();
            // Somebody else may be killing it: then it goes as well.
            evicted += u64::from(self.0.killer.kill(block));
        }
        self.0.counters.evicted.add(evicted);
        self.reap(commits);
    }
}
