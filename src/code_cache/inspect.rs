//! Numbers for people: counters, the memory that the cache takes, and the last writes.

use super::cache::{CodeCache, Commits};
use super::journal::RecentWrite;
use super::key::Payload;
use super::limit::Footprint;
use crate::stats::{Histograms, Stats};
use crate::sync::lock;

impl<P: Payload> CodeCache<P> {
    /// The counts so far.
    pub fn stats(&self) -> Stats {
        self.0.counters.snapshot()
    }

    /// The histograms so far.
    pub fn histograms(&self) -> Histograms {
        self.0.counters.histograms()
    }

    /// How many writes have hit pages with translated code so far.
    pub fn writes_recorded(&self) -> u64 {
        self.0.invalidator.journal.count()
    }

    /// The last writes that hit pages with translated code, from the `since`-th on. Some hundreds
    /// are retained.
    pub fn recent_writes(&self, since: u64) -> Vec<RecentWrite> {
        self.0.invalidator.journal.since(since)
    }

    /// The memory that the cache takes now.
    pub fn footprint(&self) -> Footprint {
        if self.stands_still_here() {
            return *lock(&self.0.footprint_at_fork);
        }
        let page_bytes = self.tracker().descriptor_bytes();
        let mut commits = self.commits();
        self.reap(&mut commits);
        self.footprint_of(&commits, page_bytes)
    }

    pub(super) fn footprint_of(&self, commits: &Commits<P>, page_bytes: usize) -> Footprint {
        Footprint {
            live: commits.live.memory_use(),
            retained: commits.retained.memory_use(),
            garbage: commits.garbage.memory_use(),
            cells: commits.cells.in_table(),
            cell_bytes: commits.cells.bytes(),
            table_bytes: self.table().bytes(&commits.cells),
            page_bytes,
        }
    }
}
