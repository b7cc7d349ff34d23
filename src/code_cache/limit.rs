//! The memory that a cache takes, and its limit.

use std::ops::{AddAssign, SubAssign};

/// The most memory that the translations of a [`CodeCache`](crate::CodeCache) may take, in bytes:
/// the declared bytes of their payloads
/// ([`Ticket::set_payload_bytes`](crate::Ticket::set_payload_bytes)) and the cache's own records.
///
/// Beyond it the oldest blocks are evicted: see
/// [`CodeCache::set_limit`](crate::CodeCache::set_limit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLimit {
    /// For reachable blocks.
    pub live_bytes: usize,
    /// For dead and evicted blocks that are retained for [`Ticket::revive`](crate::Ticket::revive).
    /// With 0 none is retained.
    pub retained_bytes: usize,
}

impl MemoryLimit {
    /// `bytes` in all, a quarter of it for retained blocks. An evicted block costs only a
    /// comparison if it is wanted again before that many bytes have been evicted after it.
    pub const fn of_bytes(bytes: usize) -> Self {
        Self { live_bytes: bytes - bytes / 4, retained_bytes: bytes / 4 }
    }
}

impl Default for MemoryLimit {
    /// 1 GiB for reachable blocks, and 4 MiB for retained ones: if the embedder does not declare
    /// its payloads' memory, retained blocks take more than is counted.
    fn default() -> Self {
        Self { live_bytes: 1 << 30, retained_bytes: 4 << 20 }
    }
}

/// The memory that some translations take.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct MemoryUse {
    /// The number of translations.
    pub blocks: usize,
    /// The declared size of their payloads, in bytes.
    pub payload_bytes: usize,
    /// The cache's own memory for them, in bytes: their records, and the guest bytes that they were
    /// made from.
    pub record_bytes: usize,
}

impl MemoryUse {
    /// The sum of both.
    pub fn bytes(&self) -> usize {
        self.payload_bytes.saturating_add(self.record_bytes)
    }
}

impl AddAssign for MemoryUse {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.payload_bytes = self.payload_bytes.wrapping_add(other.payload_bytes);
        self.record_bytes += other.record_bytes;
    }
}

impl SubAssign for MemoryUse {
    fn sub_assign(&mut self, other: Self) {
        self.blocks -= other.blocks;
        self.payload_bytes = self.payload_bytes.wrapping_sub(other.payload_bytes);
        self.record_bytes -= other.record_bytes;
    }
}

/// The memory that a cache takes now: its own records, and the payload bytes that were declared
/// ([`Ticket::set_payload_bytes`](crate::Ticket::set_payload_bytes)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Reachable blocks.
    pub live: MemoryUse,
    /// Dead and evicted blocks that are retained for [`Ticket::revive`](crate::Ticket::revive).
    pub retained: MemoryUse,
    /// Discarded blocks that a vCPU may still be inside. The limit does not include them.
    pub garbage: MemoryUse,
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
        let translations = [self.live, self.retained, self.garbage].map(|used| used.bytes());
        let others = [self.cell_bytes, self.table_bytes, self.page_bytes];
        // The embedder may declare any size for its payloads.
        translations.into_iter().chain(others).fold(0, usize::saturating_add)
    }
}
