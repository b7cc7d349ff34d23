//! The last writes that hit translated pages: the thread and the address of each.
//!
//! Fault handlers fill a ring of fixed size: no lock, no allocation, the oldest write overwritten.
//! It is information for people; correctness does not depend on it. It is no part of the protocol,
//! so its atomics are the processor's even under model checkers.
//!
//! # A slot's sequence
//!
//! | value       | meaning                                |
//! |-------------|----------------------------------------|
//! | 0           | never written                          |
//! | `2 * n + 1` | the `n`-th write is being recorded      |
//! | `2 * n + 2` | the `n`-th write is here               |
//!
//! A writer that finds an odd sequence, or the sequence of a later write, drops its own write. This
//! happens only if another writer stopped for a whole round of the ring, which is rare. A reader
//! takes a write if the sequence is even and the same before and after.

use core::sync::atomic::{AtomicU64, Ordering, fence as memory_fence};

use crate::addr::{GuestAddr, HostAddr};
use crate::sync::prefetch;
use crate::tracker::{Cause, PageWrite};

/// Writes that are retained.
const RING_SLOTS: usize = if cfg!(miri) { 32 } else { 256 };

/// The most pages of one harvest that are retained: the last ones. So the other writes stay, and a
/// harvest of many pages does not pay for each.
pub(super) const MOST_OF_A_HARVEST: usize = 16;

/// A write that hit a page with translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecentWrite {
    /// Its number: 0 for the first since the cache was made. Missing numbers were overwritten or
    /// lost, or are of the first pages that a harvest found.
    pub sequence: u64,
    /// First byte of the page.
    pub page: GuestAddr,
    /// How the library learned of it.
    pub cause: Cause,
    /// Blocks that it made unreachable.
    pub killed: u64,
}

/// A place for one write.
#[derive(Debug, Default)]
struct RingSlot {
    sequence: AtomicU64,
    page: AtomicU64,
    /// [`pack`]s of kind, thread id and number of blocks.
    detail: AtomicU64,
    byte: AtomicU64,
    /// The host's pc, 0 if it is not known.
    pc: AtomicU64,
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Journal {
    next: AtomicU64,
    slots: Box<[RingSlot]>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { next: AtomicU64::new(0), slots: (0..RING_SLOTS).map(|_| RingSlot::default()).collect() }
    }

    /// The number of writes so far.
    pub(crate) fn count(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// Brings the places near that a harvest will fill after `skipped` writes.
    pub(super) fn prefetch(&self, skipped: usize) {
        let first = self.next.load(Ordering::Relaxed) as usize + skipped;
        for number in first..first + MOST_OF_A_HARVEST {
            self.slots.get(number % RING_SLOTS).into_iter().for_each(|slot| prefetch(slot));
        }
    }

    /// Counts writes that are not retained.
    pub(super) fn skip(&self, writes: u64) {
        self.next.fetch_add(writes, Ordering::AcqRel);
    }

    /// Async-signal-safe.
    #[inline]
    pub(crate) fn record(&self, write: &PageWrite, killed: u64) {
        let number = self.next.fetch_add(1, Ordering::AcqRel);
        let Some(slot) = self.slots.get(number as usize % RING_SLOTS) else { return };
        let (old, new) = (slot.sequence.load(Ordering::Relaxed), 2 * number + 1);
        let taken = old & 1 != 0 || old > new;
        if taken || slot.sequence.compare_exchange(old, new, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return;
        }
        // A reader that sees one of the values below sees the odd sequence.
        memory_fence(Ordering::Release);
        let (kind, byte, pc, tid) = match write.cause {
            Cause::Store { byte, pc, tid } => (Kind::Store, byte.0, pc.map_or(0, |pc| pc.0 as u64), tid),
            Cause::Harvest => (Kind::Harvest, 0, 0, 0),
            Cause::Announced => (Kind::Announced, 0, 0, 0),
            Cause::Ahead => (Kind::Ahead, 0, 0, 0),
            Cause::Cooled => (Kind::Cooled, 0, 0, 0),
            Cause::Lost => (Kind::Lost, 0, 0, 0),
        };
        slot.page.store(write.page.0, Ordering::Relaxed);
        slot.byte.store(byte, Ordering::Relaxed);
        slot.pc.store(pc, Ordering::Relaxed);
        slot.detail.store(pack(kind, tid, killed), Ordering::Relaxed);
        slot.sequence.store(new + 1, Ordering::Release);
    }

    /// The retained writes from the `since`-th on, in order.
    pub(crate) fn since(&self, since: u64) -> Vec<RecentWrite> {
        let end = self.count();
        let start = since.max(end.saturating_sub(RING_SLOTS as u64));
        (start..end).filter_map(|number| self.read(number)).collect()
    }

    fn read(&self, number: u64) -> Option<RecentWrite> {
        let slot = self.slots.get(number as usize % RING_SLOTS)?;
        let expected = 2 * number + 2;
        if slot.sequence.load(Ordering::Acquire) != expected {
            return None;
        }
        let (page, byte) = (slot.page.load(Ordering::Relaxed), slot.byte.load(Ordering::Relaxed));
        let (pc, detail) = (slot.pc.load(Ordering::Relaxed), slot.detail.load(Ordering::Relaxed));
        memory_fence(Ordering::Acquire);
        if slot.sequence.load(Ordering::Relaxed) != expected {
            return None;
        }
        let cause = match Kind::of(detail) {
            Kind::Store => {
                let pc = (pc != 0).then_some(HostAddr(pc as usize));
                Cause::Store { byte: GuestAddr(byte), pc, tid: (detail >> TID_SHIFT) as u32 }
            }
            Kind::Harvest => Cause::Harvest,
            Kind::Announced => Cause::Announced,
            Kind::Ahead => Cause::Ahead,
            Kind::Cooled => Cause::Cooled,
            Kind::Lost => Cause::Lost,
        };
        let killed = (detail >> KILLED_SHIFT) & KILLED_MAX;
        Some(RecentWrite { sequence: number, page: GuestAddr(page), cause, killed })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Store,
    Harvest,
    Announced,
    Lost,
    Ahead,
    Cooled,
}

impl Kind {
    fn of(detail: u64) -> Self {
        match detail & 7 {
            0 => Self::Store,
            1 => Self::Harvest,
            2 => Self::Announced,
            4 => Self::Ahead,
            5 => Self::Cooled,
            _ => Self::Lost,
        }
    }
}

// bits 0..3: kind; 3..32: blocks; 32..64: thread id.
const KILLED_SHIFT: u32 = 3;
const KILLED_MAX: u64 = (1 << 29) - 1;
const TID_SHIFT: u32 = 32;

fn pack(kind: Kind, tid: u32, killed: u64) -> u64 {
    kind as u64 | killed.min(KILLED_MAX) << KILLED_SHIFT | u64::from(tid) << TID_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(byte: u64) -> PageWrite {
        let cause = Cause::Store { byte: GuestAddr(byte), pc: Some(HostAddr(byte as usize * 3 + 1)), tid: byte as u32 };
        PageWrite { page: GuestAddr(byte & !0xfff), cause }
    }

    #[test]
    fn recorded_writes_are_read_in_order() {
        let journal = Journal::new();
        assert_eq!(journal.since(0), []);
        let others = [Cause::Harvest, Cause::Announced, Cause::Lost, Cause::Ahead, Cause::Cooled];
        let writes: Vec<_> = std::iter::once(store(0x1234))
            .chain(others.map(|cause| PageWrite { page: GuestAddr(0x5000), cause }))
            .collect();
        for (killed, write) in writes.iter().enumerate() {
            journal.record(write, killed as u64);
        }
        let read = journal.since(0);
        assert_eq!(read.len(), writes.len());
        for (number, (read, write)) in read.iter().zip(&writes).enumerate() {
            let expected = (number as u64, write.page, write.cause, number as u64);
            assert_eq!((read.sequence, read.page, read.cause, read.killed), expected);
        }
        assert_eq!(journal.since(5).len(), 1);
        assert_eq!(journal.since(6), []);
    }

    #[test]
    fn the_oldest_are_overwritten() {
        let journal = Journal::new();
        let count = RING_SLOTS as u64 + 10;
        for byte in 0..count {
            journal.record(&store(byte), 1);
        }
        let read = journal.since(0);
        assert_eq!(read.len(), RING_SLOTS);
        assert!(read.iter().map(|write| write.sequence).eq(10..count));
    }

    #[test]
    fn writes_of_racing_threads_are_whole() {
        const WRITES: u64 = if cfg!(miri) { 300 } else { 20_000 };
        let journal = Journal::new();
        std::thread::scope(|scope| {
            for writer in 0..3 {
                let journal = &journal;
                scope.spawn(move || (0..WRITES).for_each(|n| journal.record(&store(n * 3 + writer), 7)));
            }
            for _ in 0..200 {
                for read in journal.since(0) {
                    let Cause::Store { byte, .. } = read.cause else { panic!("{read:?}") };
                    let PageWrite { page, cause } = store(byte.0);
                    assert_eq!((read.page, read.cause, read.killed), (page, cause, 7));
                }
            }
        });
        assert_eq!(journal.count(), 3 * WRITES);
    }
}
