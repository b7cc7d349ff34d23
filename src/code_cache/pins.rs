//! The pins of all participants, where a fault handler reads them without a lock.
//!
//! # Who may look ahead
//!
//! Only a pinned participant looks at cells, fronts and stale flags. So a handler that has killed
//! the blocks of a page needs a barrier on every thread, before it opens the page, only if a
//! participant of another thread is pinned ([`Pins::has_others`]):
//!
//! - If the handler reads a pin as 0 and the participant pins later, the two fences order them: the
//!   participant's reads see the kill.
//! - If it reads 0 because an earlier pin ended, it also sees everything before that end. The
//!   stores of that pin came to a page that was still protected, and faulted.
//! - A pin of its own thread does not matter. The fault made the core drop every load that it had
//!   run ahead.
//!
//! On x86-64 and arm64 alike: the end of a pin is a release store, so it is visible only after the
//! loads and stores before it, and the handler's load of it acquires.

use std::ops::Deref;
use std::sync::OnceLock;

use crate::sync::{Arc, AtomicU64, AtomicUsize, Ordering, Rule, fence, fence_behind_rmw};
use crate::sys::errno::this_thread;

/// Pins of the first chunk. Each further chunk has twice as many as the one before.
const FIRST_CHUNK: usize = if cfg!(loom) { 2 } else { 16 };

/// Enough for more participants than there is memory for their fronts.
const CHUNKS: usize = 32;

/// One participant's pin. Its thread writes it at each pin, so it has two cache lines of its own:
/// processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct PinWord {
    /// 0 while not pinned, else twice its epoch plus 1.
    word: AtomicU64,
    /// The thread that pinned it last. Not a model's atomic: it is read by its own thread, or after
    /// the word.
    holder: core::sync::atomic::AtomicU64,
}

impl PinWord {
    fn new() -> Self {
        Self { word: AtomicU64::new(0), holder: core::sync::atomic::AtomicU64::new(0) }
    }

    /// This thread pins it, in `epoch`.
    pub(super) fn set(&self, epoch: u64) {
        self.holder.store(this_thread(), core::sync::atomic::Ordering::Relaxed);
        // Release: a thread that reads this pin also sees the effects of the last pin, and its
        // holder.
        self.word.store(epoch << 1 | 1, Ordering::Release);
        // Pairs with the fences before the epoch and before a handler look at the pins: either they
        // see this pin, or reads under the pin see the state that they left.
        fence(Rule::FenceBehindPin);
    }

    pub(super) fn clear(&self) {
        self.word.store(0, Ordering::Release);
    }

    /// The epoch of the pin; `None` while it is not pinned.
    pub(super) fn epoch(&self) -> Option<u64> {
        // Acquire: the holder that is read behind it is of this pin.
        match self.word.load(Ordering::Acquire) {
            0 => None,
            word => Some(word >> 1),
        }
    }

    /// Whether the calling thread pinned it last.
    pub(super) fn is_of_this_thread(&self) -> bool {
        self.holder.load(core::sync::atomic::Ordering::Relaxed) == this_thread()
    }

    /// Whether a thread other than `own` has it pinned.
    #[inline]
    fn is_anothers(&self, own: u64) -> bool {
        self.word.load(Ordering::Acquire) != 0 && self.holder.load(core::sync::atomic::Ordering::Relaxed) != own
    }
}

/// A participant's pin in the table.
#[derive(Debug)]
pub(super) struct PinRef {
    chunk: Arc<[PinWord]>,
    at: usize,
}

impl Deref for PinRef {
    type Target = PinWord;

    #[inline]
    fn deref(&self) -> &PinWord {
        &self.chunk[self.at]
    }
}

/// The table. It only grows.
#[derive(Debug)]
pub(super) struct Pins {
    chunks: [OnceLock<Arc<[PinWord]>>; CHUNKS],
    /// Every pin that a participant has or had is below.
    used: AtomicUsize,
}

impl Pins {
    pub(super) fn new() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS], used: AtomicUsize::new(0) }
    }

    /// Pin `index`, made if it does not exist. Callers take turns, and leave no gap.
    pub(super) fn at(&self, index: usize) -> PinRef {
        let (mut number, mut at, mut len) = (0, index, FIRST_CHUNK);
        while at >= len {
            (number, at, len) = (number + 1, at - len, 2 * len);
        }
        let chunk = self.chunks[number].get_or_init(|| (0..len).map(|_| PinWord::new()).collect()).clone();
        // Before its participant's first pin, which fences.
        self.used.fetch_max(index + 1, Ordering::Release);
        PinRef { chunk, at }
    }

    /// Whether a participant that another thread pinned is pinned: it may look at a cell, front or
    /// stale flag ahead of its own store. Async-signal-safe.
    #[inline]
    pub(super) fn has_others(&self) -> bool {
        // Each kill is a read-modify-write.
        fence_behind_rmw(Rule::FenceBeforeOthers);
        let own = this_thread();
        let mut left = self.used.load(Ordering::Acquire);
        for pins in self.chunks.iter().map_while(OnceLock::get) {
            let used = &pins[..left.min(pins.len())];
            if used.iter().any(|pin| pin.is_anothers(own)) {
                return true;
            }
            left -= used.len();
            if left == 0 {
                break;
            }
        }
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn another_threads_pin_is_found_wherever_it_is() {
        let pins = Pins::new();
        for index in 0..8 * FIRST_CHUNK {
            let pin = pins.at(index);
            pin.set(2);
            assert!(!pins.has_others(), "its own thread's");
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(pins.has_others(), "{index}"));
            });
            pin.clear();
            std::thread::scope(|scope| scope.spawn(|| pin.set(2)).join().unwrap());
            assert!(pins.has_others(), "{index}");
            pin.clear();
            assert!(!pins.has_others());
        }
    }
}
