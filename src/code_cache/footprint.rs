//! The host memory that a cache takes.

use super::commit::Commits;
use super::limit::Weight;
use super::{CodeCache, Payload};
use crate::sync::lock;

/// The memory that a cache takes now: its own records, and the payload bytes that were declared
/// ([`Ticket::weighs`](crate::Ticket::weighs)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Reachable blocks.
    pub live: Weight,
    /// Dead and evicted blocks that are retained for [`Ticket::revive`](crate::Ticket::revive).
    pub former: Weight,
    /// Blocks given up, which wait until no vCPU can be inside: beyond the limit.
    pub waiting: Weight,
    /// Keys that have an entry cell.
    pub cells: usize,
    /// Entry cells, free ones included, in bytes.
    pub cell_bytes: usize,
    /// The table from keys to cells, in bytes.
    pub table_bytes: usize,
    /// Descriptors of the pages that a translator has ever looked at, in bytes.
    pub page_bytes: usize,
}

impl Footprint {
    /// The sum of all fields that are in bytes.
    pub fn bytes(&self) -> usize {
        let translations = [self.live, self.former, self.waiting].map(|weight| weight.bytes());
        let others = [self.cell_bytes, self.table_bytes, self.page_bytes];
        // Payloads weigh as much as their embedder declares.
        translations.into_iter().chain(others).fold(0, usize::saturating_add)
    }
}

impl<P: Payload> CodeCache<P> {
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
            live: commits.live.weight(),
            former: commits.formers.weight(),
            waiting: self.0.waiting.get(),
            cells: commits.cells.in_table(),
            cell_bytes: commits.cells.bytes(),
            table_bytes: self.table().bytes(&commits.cells),
            page_bytes,
        }
    }
}
