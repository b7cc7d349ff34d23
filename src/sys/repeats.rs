//! Tells a fault that is not ours from one that lost a race.
//!
//! A store may fault on a page whose word says writable. It may have been overtaken by
//! another thread's un-protect: then it only has to be tried again. Or it can never
//! succeed, because it lies past the end of its memfd, or the guest may not write there.
//! Then un-protecting does not help, and the same fault comes back for ever.
//!
//! A fault of this second kind is recognised when the same store faults twice while the
//! page's state and generation stay the same: no protecting system call was made in
//! between. Also the mechanism must not have changed the page's access for another
//! reason (`Protection::access_changes`): a change that is under way may refuse a store
//! that it will allow.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sys::errno::this_thread;
use crate::sys::ranges::WriteFault;

/// Number of remembered last faults, one a thread. More threads overwrite each other's,
/// which costs a needless retry.
const SLOTS: usize = 64;

/// Not the fingerprint of any fault.
const NONE: u64 = 0;

#[derive(Debug)]
pub(crate) struct Repeats {
    slots: [AtomicU64; SLOTS],
}

impl Repeats {
    pub(crate) const fn new() -> Self {
        Self { slots: [const { AtomicU64::new(NONE) }; SLOTS] }
    }

    /// Called after the un-protect for `fault`, which left the page's state and
    /// generation as in `word`, and the number of `changes` of its access.
    #[inline]
    pub(crate) fn record(&self, fault: &WriteFault, word: u64, changes: Option<u64>) {
        let print = changes.map_or(NONE, |changes| fingerprint(fault, word, changes));
        self.slots[slot_of(fault)].store(print, Ordering::Relaxed);
    }

    /// Whether `fault` repeats the last one of its thread, with the same word and the
    /// same number of changes.
    #[inline]
    pub(crate) fn is_repeat(&self, fault: &WriteFault, word: u64, changes: Option<u64>) -> bool {
        let last = self.slots[slot_of(fault)].load(Ordering::Relaxed);
        changes.is_some_and(|changes| last == fingerprint(fault, word, changes))
    }
}

/// The storing thread: by its id, or, if it is the calling thread, by the address of its
/// errno.
#[inline]
fn thread_of(fault: &WriteFault) -> u64 {
    if fault.tid == 0 { this_thread() } else { u64::from(fault.tid) }
}

#[inline]
fn slot_of(fault: &WriteFault) -> usize {
    // Addresses of threads differ in their middle bits.
    (thread_of(fault).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS
}

/// Mixes all compared values into 64 bits.
#[inline]
fn fingerprint(fault: &WriteFault, word: u64, changes: u64) -> u64 {
    let pc = fault.pc.map_or(0, |pc| pc.0 as u64);
    let parts = [thread_of(fault), pc, fault.addr.0 as u64, word, changes];
    parts.into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash: u64, part| {
        (hash ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    }) | 1
}
