//! What a cache takes of the host's memory beside the embedder's code.

use super::record::{Block, BlockPage, Translation};
use super::{CodeCache, Payload};
use crate::sync::lock;

/// How much memory a cache's own records take just now. What the embedder's
/// payloads own is not in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Blocks that were committed and not found dead yet.
    pub blocks: usize,
    /// Their records, in bytes, as if each lay on one page.
    pub block_bytes: usize,
    /// Keys that have an entry cell.
    pub cells: usize,
    /// Entry cells, those that are free included, in bytes.
    pub cell_bytes: usize,
    /// The table from keys to cells, in bytes.
    pub table_bytes: usize,
    /// Descriptors of the pages that a translator ever looked at, in bytes.
    pub page_bytes: usize,
    /// What was taken out of use and waits until no vCPU can reach it: blocks,
    /// tables, sweeps of cells.
    pub waiting: usize,
}

impl Footprint {
    /// All that is told in bytes.
    pub fn bytes(&self) -> usize {
        self.block_bytes + self.cell_bytes + self.table_bytes + self.page_bytes
    }
}

impl<P: Payload> CodeCache<P> {
    /// How much memory the cache's own records take just now.
    pub fn footprint(&self) -> Footprint {
        let page_bytes = self.tracker().descriptor_bytes();
        let waiting = self.epoch().waiting();
        let commits = lock(&self.0.commits);
        let blocks = commits.live.0.len();
        let record_bytes = size_of::<Block<P>>() + size_of::<BlockPage<P>>() + size_of::<Translation<P>>();
        Footprint {
            blocks,
            block_bytes: blocks * record_bytes,
            cells: commits.cells.in_table(),
            cell_bytes: commits.cells.bytes(),
            table_bytes: self.table().bytes(&commits.cells),
            page_bytes,
            waiting,
        }
    }
}
