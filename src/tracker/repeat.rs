//! Tells a fault that is not ours from one that lost a race.
//!
//! A store that faults on a page whose word says writable may have been
//! overtaken by another thread's un-protect: it only has to be tried again. Or
//! it can never succeed (it lies past the end of its memfd, or the guest may not
//! write there): then un-protecting helps nothing and the same fault comes back
//! for ever. Such a fault is the second one of the same store while the page's
//! state and generation are what the first one left: no protecting system call
//! was made in between.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::protection::WriteFault;
use crate::sys::fault::this_thread;

/// Threads whose last fault is remembered; more of them overwrite each other's,
/// which costs a needless retry.
const SLOTS: usize = 64;

#[derive(Debug)]
pub(super) struct Repeats {
    slots: [AtomicU64; SLOTS],
}

impl Repeats {
    pub(super) fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// After the un-protect for `fault`, which left the page's state and
    /// generation as in `word`.
    pub(super) fn record(&self, fault: &WriteFault, word: u64) {
        self.slots[slot_of(fault)].store(fingerprint(fault, word), Ordering::Relaxed);
    }

    /// Whether `fault` is the last one of its thread again, with the same word.
    pub(super) fn is_repeat(&self, fault: &WriteFault, word: u64) -> bool {
        self.slots[slot_of(fault)].load(Ordering::Relaxed) == fingerprint(fault, word)
    }
}

/// The storing thread: by its id, or, in that thread itself, by what it is.
fn thread_of(fault: &WriteFault) -> u64 {
    if fault.tid == 0 { this_thread() } else { u64::from(fault.tid) }
}

fn slot_of(fault: &WriteFault) -> usize {
    // Addresses of threads differ in their middle bits.
    (thread_of(fault).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS
}

/// Mixes all that must be equal into 64 bits.
fn fingerprint(fault: &WriteFault, word: u64) -> u64 {
    let pc = fault.pc.map_or(0, |pc| pc.0 as u64);
    [thread_of(fault), pc, fault.addr.0 as u64, word].into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash: u64, part| {
        (hash ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    }) | 1
}
