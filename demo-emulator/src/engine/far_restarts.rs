//! The places that a fault went far back to. Regions with such a place are compiled without far
//! restarts from then on: see [`crate::translate`], `restart`.
//!
//! A table of fixed size without a lock: a fork's child has it as it is. A place that displaces another
//! one makes the other's loop lose its progress once more, no worse.

use std::sync::atomic::{AtomicU64, Ordering};

const SLOTS: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct FarRestarts(Box<[AtomicU64]>);

impl FarRestarts {
    pub(super) fn new() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }

    /// A fault went far back to `pc`, which is not 0.
    pub(super) fn add(&self, pc: u64) {
        self.slot(pc).store(pc, Ordering::Relaxed);
    }

    pub(super) fn has(&self, pc: u64) -> bool {
        self.slot(pc).load(Ordering::Relaxed) == pc
    }

    fn slot(&self, pc: u64) -> &AtomicU64 {
        &self.0[(pc.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_and_others_are_not() {
        let places = FarRestarts::new();
        assert!(!places.has(0x1000));
        places.add(0x1000);
        assert!(places.has(0x1000));
        assert!((0x1002..0x4000).step_by(2).all(|pc| !places.has(pc)));
        // The last one is there whatever it displaces.
        assert!((0x4000..0x8000).step_by(2).all(|pc| {
            places.add(pc);
            places.has(pc)
        }));
    }
}
