//! What a cache takes of the host's memory.

use super::commit::Commits;
use super::limit::Weight;
use super::{CodeCache, Payload};
use crate::sync::lock;

/// How much memory a cache takes just now: what its own records take, and what its
/// payloads own as far as that was said ([`Ticket::weighs`](crate::Ticket::weighs)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Blocks that can be reached.
    pub live: Weight,
    /// Dead and evicted blocks that are kept for
    /// [`Ticket::revive`](crate::Ticket::revive).
    pub former: Weight,
    /// What is given up and waits until no vCPU can be inside: beyond the limit.
    pub waiting: Weight,
    /// Keys that have an entry cell.
    pub cells: usize,
    /// Entry cells, those that are free included, in bytes.
    pub cell_bytes: usize,
    /// The table from keys to cells, in bytes.
    pub table_bytes: usize,
    /// Descriptors of the pages that a translator ever looked at, in bytes.
    pub page_bytes: usize,
}

impl Footprint {
    /// All that is told in bytes.
    pub fn bytes(&self) -> usize {
        let translations = [self.live, self.former, self.waiting].map(|weight| weight.bytes());
        let others = [self.cell_bytes, self.table_bytes, self.page_bytes];
        // Payloads weigh what their embedder says.
        translations.into_iter().chain(others).fold(0, usize::saturating_add)
    }
}

impl<P: Payload> CodeCache<P> {
    /// How much memory the cache takes just now.
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
