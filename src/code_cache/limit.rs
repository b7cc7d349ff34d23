//! The memory that translations take, and its limit.

use std::ops::{AddAssign, SubAssign};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most memory that the translations of a [`CodeCache`](crate::CodeCache) may take, in bytes:
/// the declared bytes of their payloads ([`Ticket::weighs`](crate::Ticket::weighs)) and the cache's
/// own records.
///
/// Beyond it the oldest blocks are evicted: see
/// [`CodeCache::set_limit`](crate::CodeCache::set_limit).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryLimit {
    /// For reachable blocks.
    pub live_bytes: usize,
    /// For dead and evicted blocks that are retained for [`Ticket::revive`](crate::Ticket::revive).
    /// With 0 none is retained.
    pub former_bytes: usize,
}

impl MemoryLimit {
    /// `bytes` in all, a quarter of it for retained blocks. An evicted block costs only a
    /// comparison if it is wanted again before that many bytes have been evicted after it.
    pub const fn of_bytes(bytes: usize) -> Self {
        Self { live_bytes: bytes - bytes / 4, former_bytes: bytes / 4 }
    }
}

impl Default for MemoryLimit {
    /// 1 GiB for reachable blocks, and 4 MiB for retained ones: if the embedder does not declare
    /// its payloads' memory, retained blocks take more than they weigh.
    fn default() -> Self {
        Self { live_bytes: 1 << 30, former_bytes: 4 << 20 }
    }
}

/// The memory of translations.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Weight {
    /// The number of translations.
    pub blocks: usize,
    /// The declared size of their payloads, in bytes.
    pub payload_bytes: usize,
    /// The cache's own memory for them, in bytes: their records, and the guest bytes that they were
    /// made from.
    pub record_bytes: usize,
}

impl Weight {
    /// The sum of both.
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

/// The weight that waits for the epoch. Each thread that retires or frees counts it, under no lock.
#[derive(Debug)]
pub(super) struct Waiting {
    blocks: AtomicUsize,
    payload_bytes: AtomicUsize,
    record_bytes: AtomicUsize,
    /// Beyond this, vCPUs are asked to leave.
    patience_bytes: AtomicUsize,
}

impl Waiting {
    pub(super) fn new(limit: MemoryLimit) -> Self {
        let [blocks, payload_bytes, record_bytes, patience_bytes] = [0; 4].map(AtomicUsize::new);
        let waiting = Self { blocks, payload_bytes, record_bytes, patience_bytes };
        waiting.set_patience(limit);
        waiting
    }

    /// Called before the weight is retired.
    pub(super) fn add(&self, weight: Weight) {
        self.blocks.fetch_add(weight.blocks, Ordering::Relaxed);
        self.payload_bytes.fetch_add(weight.payload_bytes, Ordering::Relaxed);
        self.record_bytes.fetch_add(weight.record_bytes, Ordering::Relaxed);
    }

    /// Called when it is freed.
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

    /// Sets the patience to an eighth of the whole limit.
    pub(super) fn set_patience(&self, limit: MemoryLimit) {
        let bytes = limit.live_bytes.saturating_add(limit.former_bytes) / 8;
        self.patience_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_too_much(&self) -> bool {
        self.get().bytes() > self.patience_bytes.load(Ordering::Relaxed)
    }
}
