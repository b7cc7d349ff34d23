//! How a block is compiled.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

/// A block's reaction to its own stores that hit the block itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OwnStores {
    /// None: the guest announces such stores by an instruction that ends a block.
    #[default]
    Ignore,
    /// Leaves after a store that overlaps the block's bytes.
    Compare,
    /// Leaves after a store if this byte, the block's [`codewarden::Ticket::stale_flag`], is not 0:
    /// the block's bytes have other addresses too. The byte must stay in place as long as the block
    /// can run.
    Poll(NonNull<AtomicU8>),
}

impl OwnStores {
    /// A number for each reaction: a block made for one cannot serve for another.
    pub fn kind(self) -> u64 {
        match self {
            Self::Ignore => 0,
            Self::Compare => 1,
            Self::Poll(_) => 2,
        }
    }
}

/// How a region is to be compiled.
#[derive(Clone, Copy, Debug, Default)]
pub struct BlockOptions<'a> {
    /// The reaction to its own stores. [`OwnStores::Compare`] is for a region of one block.
    pub own_stores: OwnStores,
    /// The byte that says that the region was overwritten
    /// ([`codewarden::Ticket::stale_flag`]), polled in loops. Without it a loop sees that only when
    /// it leaves the region. The byte must stay in place as long as the region can run.
    pub stale_flag: Option<NonNull<AtomicU8>>,
    /// No restart is far: such a fault came before.
    pub near_restarts: bool,
    /// The guest bytes that the instructions were decoded from, at the first one's address. With
    /// them the region, which has one block then, gets a self-checking entry.
    pub source: Option<&'a [u8]>,
}
