//! How much memory translations take, and how much they may.

use std::ops::{AddAssign, SubAssign};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How much memory the translations of a [`CodeCache`](crate::CodeCache) may take, in
/// bytes: what the embedder says of their payloads
/// ([`Ticket::weighs`](crate::Ticket::weighs)) and what the cache's own records take.
///
/// Beyond it the oldest blocks are evicted: see
/// [`CodeCache::set_limit`](crate::CodeCache::set_limit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLimit {
    /// Of blocks that can be reached.
    pub live_bytes: usize,
    /// Of dead and evicted ones that are kept for
    /// [`Ticket::revive`](crate::Ticket::revive). With 0 none is kept.
    pub former_bytes: usize,
}

impl MemoryLimit {
    /// `bytes` for all, a quarter of it for what is kept: an evicted block that is
    /// wanted again before as much has been evicted after it costs a comparison.
    pub const fn of_bytes(bytes: usize) -> Self {
        Self { live_bytes: bytes - bytes / 4, former_bytes: bytes / 4 }
    }
}

impl Default for MemoryLimit {
    /// 1 GiB for what can be reached, and 4 MiB for what is kept: an embedder that
    /// says nothing of its payloads has more behind it.
    fn default() -> Self {
        Self { live_bytes: 1 << 30, former_bytes: 4 << 20 }
    }
}

/// What translations take.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Weight {
    /// How many there are.
    pub blocks: usize,
    /// What the embedder said that their payloads own, in bytes.
    pub payload_bytes: usize,
    /// What the cache needs for them, in bytes: their records, and the guest bytes
    /// that they were made from.
    pub record_bytes: usize,
}

impl Weight {
    /// All of it.
    pub fn bytes(&self) -> usize {
        self.payload_bytes.saturating_add(self.record_bytes)
    }
}

impl AddAssign for Weight {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.payload_bytes = self.payload_bytes.wrapping_add(other.payload_bytes);
        self.record_bytes += other.record_bytes;
    }
}

impl SubAssign for Weight {
    fn sub_assign(&mut self, other: Self) {
        self.blocks -= other.blocks;
        self.payload_bytes = self.payload_bytes.wrapping_sub(other.payload_bytes);
        self.record_bytes -= other.record_bytes;
    }
}

/// What waits for the epoch. Counted by whoever retires and frees, under no lock.
#[derive(Debug)]
pub(super) struct Waiting {
    blocks: AtomicUsize,
    payload_bytes: AtomicUsize,
    record_bytes: AtomicUsize,
    /// Beyond it vCPUs are asked to leave.
    patience_bytes: AtomicUsize,
}

impl Waiting {
    pub(super) fn new(limit: MemoryLimit) -> Self {
        let [blocks, payload_bytes, record_bytes, patience_bytes] = [0; 4].map(AtomicUsize::new);
        let waiting = Self { blocks, payload_bytes, record_bytes, patience_bytes };
        waiting.set_patience(limit);
        waiting
    }

    /// Before it is retired.
    pub(super) fn add(&self, weight: Weight) {
        self.blocks.fetch_add(weight.blocks, Ordering::Relaxed);
        self.payload_bytes.fetch_add(weight.payload_bytes, Ordering::Relaxed);
        self.record_bytes.fetch_add(weight.record_bytes, Ordering::Relaxed);
    }

    /// When it is freed.
    pub(super) fn sub(&self, weight: Weight) {
        self.blocks.fetch_sub(weight.blocks, Ordering::Relaxed);
        self.payload_bytes.fetch_sub(weight.payload_bytes, Ordering::Relaxed);
        self.record_bytes.fetch_sub(weight.record_bytes, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> Weight {
        Weight {
            blocks: self.blocks.load(Ordering::Relaxed),
            payload_bytes: self.payload_bytes.load(Ordering::Relaxed),
            record_bytes: self.record_bytes.load(Ordering::Relaxed),
        }
    }

    /// An eighth of what may be kept beside it.
    pub(super) fn set_patience(&self, limit: MemoryLimit) {
        let bytes = limit.live_bytes.saturating_add(limit.former_bytes) / 8;
        self.patience_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_too_much(&self) -> bool {
        self.get().bytes() > self.patience_bytes.load(Ordering::Relaxed)
    }
}
