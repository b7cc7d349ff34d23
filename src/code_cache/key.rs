//! The key that names a block, and the payload, the embedder's data in a block.

use crate::addr::GuestAddr;

/// Slots of a vCPU's front; a power of two.
pub const FRONT_SLOTS: usize = if cfg!(miri) { 64 } else { 4096 };

/// The one number that is not a key: cells outside the table and empty slots of fronts have it.
pub(super) const NO_KEY: u64 = u64::MAX;

/// The key of a block: the guest's pc, and any other guest state that its code depends on, in one
/// number that the embedder makes. `u64::MAX` is not a key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(u64);

impl Key {
    /// The key `raw`.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number that it was made from.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Its index in a vCPU's front: `(raw >> 1) % FRONT_SLOTS`.
    pub const fn front_index(self) -> usize {
        (self.0 >> 1) as usize & (FRONT_SLOTS - 1)
    }

    /// Whether a block can have it.
    pub(super) fn is_valid(self) -> bool {
        self.0 != NO_KEY
    }
}

impl From<u64> for Key {
    fn from(raw: u64) -> Self {
        Self(raw)
    }
}

impl From<GuestAddr> for Key {
    fn from(pc: GuestAddr) -> Self {
        Self(pc.0)
    }
}

/// A block's own data. It is dropped when no vCPU can be inside the block any more. The call that
/// detects this drops it, under no lock (a commit, a revival, an eviction,
/// [`CodeCache::collect`](crate::CodeCache::collect)).
///
/// A drop that panics harms no other block: the call frees and counts everything else that it can,
/// and then passes the panic on.
pub trait Payload: Send + Sync + 'static {}

impl<T: Send + Sync + 'static> Payload for T {}
