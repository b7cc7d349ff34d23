//! Streams of writes. A copy over many code pages faults at each of them. So the tracker opens
//! pages ahead of it, as a kernel reads ahead in a file.
//!
//! A fault at the page behind the last opened run opens twice as many pages as that run
//! had. A wrong guess costs translations and never correctness: a page that is opened
//! ahead is opened like any page that is written.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Streams at a time. More of them overwrite each other, which costs faults.
const STREAMS: usize = 8;

/// Bits of a run's length; the page that is expected next is above them.
const RUN_BITS: u32 = 16;

/// Async-signal-safe. If two threads change one stream at once, the only result is a
/// wrong guess.
#[derive(Debug)]
pub(super) struct Streams {
    slots: [AtomicU64; STREAMS],
    /// The slot that a new stream takes.
    next: AtomicUsize,
}

/// The position of a fault in its stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    slot: usize,
    /// Pages to open, this one included.
    pub(super) run: usize,
}

impl Streams {
    pub(super) fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(u64::MAX)), next: AtomicUsize::new(0) }
    }

    /// A fault at `page`, which may open `most` pages.
    #[inline]
    pub(super) fn arrive(&self, page: usize, most: usize) -> Place {
        for (slot, stream) in self.slots.iter().enumerate() {
            let seen = stream.load(Relaxed);
            if seen >> RUN_BITS == page as u64 {
                let run = (seen & ((1 << RUN_BITS) - 1)) as usize;
                return Place { slot, run: (run * 2).min(most).max(1) };
            }
        }
        let slot = self.next.load(Relaxed);
        self.next.store(slot.wrapping_add(1), Relaxed);
        Place { slot: slot % STREAMS, run: 1 }
    }

    /// `opened` pages from `page` on were opened.
    #[inline]
    pub(super) fn opened(&self, place: Place, page: usize, opened: usize) {
        let next = (page + opened) as u64;
        self.slots[place.slot].store(next << RUN_BITS | opened as u64 & ((1 << RUN_BITS) - 1), Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn fault(streams: &Streams, page: usize, most: usize) -> usize {
        let place = streams.arrive(page, most);
        streams.opened(place, page, place.run);
        place.run
    }

    #[test]
    fn runs_double_up_to_the_limit() {
        let streams = Streams::new();
        let (mut page, mut runs) = (100, Vec::new());
        for _ in 0..6 {
            let run = fault(&streams, page, 8);
            runs.push(run);
            page += run;
        }
        assert_eq!(runs, [1, 2, 4, 8, 8, 8]);
        assert_eq!(fault(&streams, page + 1, 8), 1);
    }

    #[test]
    fn streams_continue_side_by_side() {
        let streams = Streams::new();
        for (step, run) in [(0, 1), (1, 2), (3, 4)] {
            for base in (0..STREAMS).map(|n| n * 512) {
                assert_eq!(fault(&streams, base + step, 64), run);
            }
        }
    }

    #[test]
    fn the_limit_of_one_never_opens_ahead() {
        let streams = Streams::new();
        assert!((5..50).all(|page| fault(&streams, page, 1) == 1));
        assert!((50..90).all(|page| fault(&streams, page, 0) == 1), "an embedder's policy may say so");
    }
}
