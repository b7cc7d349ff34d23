//! Atomics, locks and fences, and the rules of the protocol by name.

#[cfg(all(test, not(loom)))]
pub(crate) mod interruptible;
mod prefetch;
mod primitives;
mod rule;
#[cfg(all(tsan, not(any(loom, test))))]
mod tsan;

pub(crate) use prefetch::prefetch;
pub use primitives::lock_waits;
pub(crate) use primitives::*;
#[cfg(test)]
pub(crate) use rule::LEFT_OUT;
#[cfg(loom)]
pub(crate) use rule::count_fences;
pub(crate) use rule::{Rule, fence, fence_behind_rmw, left_out};
