//! A fixed table from address ranges to values that signal handlers read
//! without a lock.
//!
//! # Protocol
//!
//! A slot goes `FREE -> LIVE -> RETIRED -> LIVE -> ...`. Writers hold a mutex. A reader raises
//! the slot's `users`, and only then checks whether the slot is live and holds the address. A
//! remover leaves `LIVE` first and then waits until `users` is 0. Both sides are sequentially
//! consistent, so one of them sees the other: the value is never freed under a reader, and the
//! bounds of a live slot never change while a reader is inside.
//!
//! # Retired ranges
//!
//! A store may fault before a range is removed and reach its handler after. If that store is tried
//! again it does not fault, so the late fault must not kill the process. So a removed slot
//! remembers its range until it is used again, and answers [`Lookup::Retired`] a limited number of
//! times. After that many answers a true crash on the same addresses is handed on.
//!
//! # Safety
//!
//! `value` is null or comes from `Box::into_raw`; it is freed by the remover
//! alone, after the wait above.
#![allow(unsafe_code)]

use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::addr::{HostAddr, HostRange};

const FREE: u32 = 0;
const LIVE: u32 = 1;
const RETIRED: u32 = 2;

/// Number of faults that a removed range may have under way.
const RETIRED_TURNS: u32 = 1024;

/// Number of removed ranges that are remembered before their slots are used again.
const RETIRED_KEPT: usize = 16;

struct Slot<T> {
    state: AtomicU32,
    users: AtomicU32,
    turns_left: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    value: AtomicPtr<T>,
}

impl<T> Slot<T> {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            users: AtomicU32::new(0),
            turns_left: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            value: AtomicPtr::new(ptr::null_mut()),
        }
    }

    #[inline]
    fn holds(&self, address: usize) -> bool {
        self.start.load(SeqCst) <= address && address < self.end.load(SeqCst)
    }
}

/// The result of a search.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<R> {
    /// A live range; the closure's result.
    Found(R),
    /// A range that was removed a short while ago.
    Retired,
    /// Nothing.
    Missing,
}

/// The reason why a range was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum InsertError {
    /// A live range has a part of it.
    Overlap,
    /// All slots are live.
    Full,
}

/// The name of a live slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SlotId(usize);

/// A slot without a value, for the next writer.
#[derive(Debug)]
#[must_use = "a slot that is not given back is never used again"]
pub(crate) struct FreeSlot(usize);

/// The only thread that may change a table.
pub(crate) struct Writer<'a, T, const N: usize> {
    table: &'a RangeTable<T, N>,
    retired: MutexGuard<'a, VecDeque<usize>>,
}

impl<T, const N: usize> Writer<'_, T, N> {
    /// Adds `range`. From here on readers find it.
    pub(crate) fn insert(&mut self, range: HostRange, value: T) -> Result<SlotId, InsertError> {
        self.table.insert_as_writer(&mut self.retired, range, value)
    }

    /// The slot may be used again.
    pub(crate) fn give_back(&mut self, slot: FreeSlot) {
        self.retired.push_back(slot.0);
    }
}

/// See the module head.
#[repr(C)]
pub(crate) struct RangeTable<T, const N: usize> {
    /// Slots from here on were never used. In the page of the first slots: a fault handler often
    /// runs just after the kernel has emptied the TLB.
    used: AtomicUsize,
    slots: [Slot<T>; N],
    /// Removed slots, the oldest first. Writers hold its mutex.
    retired: Mutex<VecDeque<usize>>,
}

impl<T, const N: usize> RangeTable<T, N> {
    pub(crate) const fn new() -> Self {
        Self { used: AtomicUsize::new(0), slots: [const { Slot::new() }; N], retired: Mutex::new(VecDeque::new()) }
    }

    /// Waits for every other writer.
    pub(crate) fn writer(&self) -> Writer<'_, T, N> {
        Writer { table: self, retired: self.retired.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// Whether there is a writer now.
    #[cfg(test)]
    pub(crate) fn has_writer(&self) -> bool {
        matches!(self.retired.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }

    /// [`Writer::insert`], alone.
    #[cfg(test)]
    fn insert(&self, range: HostRange, value: T) -> Result<SlotId, InsertError> {
        self.writer().insert(range, value)
    }

    fn insert_as_writer(
        &self,
        retired: &mut VecDeque<usize>,
        range: HostRange,
        value: T,
    ) -> Result<SlotId, InsertError> {
        let used = self.used.load(SeqCst);
        let overlaps = |slot: &Slot<T>| {
            slot.state.load(SeqCst) == LIVE
                && slot.start.load(SeqCst) < range.end().0
                && range.start().0 < slot.end.load(SeqCst)
        };
        if self.slots[..used].iter().any(overlaps) {
            return Err(InsertError::Overlap);
        }
        let index = if used < N && retired.len() < RETIRED_KEPT {
            self.used.store(used + 1, SeqCst);
            used
        } else {
            retired.pop_front().ok_or(InsertError::Full)?
        };
        let slot = &self.slots[index];
        slot.start.store(range.start().0, SeqCst);
        slot.end.store(range.end().0, SeqCst);
        slot.value.store(Box::into_raw(Box::new(value)), SeqCst);
        slot.state.store(LIVE, SeqCst);
        Ok(SlotId(index))
    }

    /// [`RangeTable::take_out`], and the slot may be used again.
    #[cfg(test)]
    fn remove(&self, id: SlotId, in_fork_child: bool) {
        let slot = self.take_out(id, in_fork_child);
        self.writer().give_back(slot);
    }

    /// Takes a range out and waits until no reader is inside its value. Must not be called from
    /// a reader. With `in_fork_child` it does not wait: the readers were threads of the parent.
    pub(crate) fn take_out(&self, id: SlotId, in_fork_child: bool) -> FreeSlot {
        let slot = &self.slots[id.0];
        slot.turns_left.store(RETIRED_TURNS, SeqCst);
        slot.state.store(RETIRED, SeqCst);
        if in_fork_child {
            slot.users.store(0, SeqCst);
        }
        while slot.users.load(SeqCst) != 0 {
            std::thread::yield_now();
        }
        let value = slot.value.swap(ptr::null_mut(), SeqCst);
        // SAFETY: made by `insert`, taken out by this swap alone; no reader is inside and none gets
        // in.
        drop(unsafe { Box::from_raw(value) });
        FreeSlot(id.0)
    }

    /// Runs `found` on the value of the live range that holds `address`.
    /// Async-signal-safe if `found` is.
    #[inline]
    pub(crate) fn with<R>(&self, address: HostAddr, found: impl FnOnce(&T) -> R) -> Lookup<R> {
        let used = self.used.load(SeqCst);
        let mut was_here = None;
        for slot in &self.slots[..used] {
            if !slot.holds(address.0) {
                continue;
            }
            slot.users.fetch_add(1, SeqCst);
            if slot.state.load(SeqCst) == LIVE && slot.holds(address.0) {
                // SAFETY: live was seen after `users` was raised, so the remover waits for us.
                let answer = found(unsafe { &*slot.value.load(SeqCst) });
                slot.users.fetch_sub(1, SeqCst);
                return Lookup::Found(answer);
            }
            slot.users.fetch_sub(1, SeqCst);
            was_here = Some(slot);
        }
        let take_turn =
            |slot: &Slot<T>| slot.turns_left.fetch_update(SeqCst, SeqCst, |turns| turns.checked_sub(1)).is_ok();
        if was_here.is_some_and(take_turn) { Lookup::Retired } else { Lookup::Missing }
    }
}

impl<T, const N: usize> RangeTable<T, N> {
    /// Runs `each` on every value that is live all the time. Async-signal-safe if `each` is; as
    /// with [`RangeTable::with`], a remover waits for it.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&T)) {
        for slot in &self.slots[..self.used.load(SeqCst)] {
            slot.users.fetch_add(1, SeqCst);
            if slot.state.load(SeqCst) == LIVE {
                // SAFETY: live was seen after `users` was raised, so the remover waits for us.
                each(unsafe { &*slot.value.load(SeqCst) });
            }
            slot.users.fetch_sub(1, SeqCst);
        }
    }
}

impl<T, const N: usize> Drop for RangeTable<T, N> {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            let value = core::mem::replace(slot.value.get_mut(), ptr::null_mut());
            if !value.is_null() {
                // SAFETY: made by `insert`; `&mut self` says that there is no reader.
                drop(unsafe { Box::from_raw(value) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PageSize;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64};

    fn pages(first: usize, count: usize) -> HostRange {
        HostRange::new(HostAddr(first << 12), count << 12, PageSize::from_shift(12)).unwrap()
    }

    #[test]
    fn finds_live_ranges_only() {
        let table = RangeTable::<u32, 4>::new();
        let first = table.insert(pages(1, 2), 7).unwrap();
        assert_eq!(table.insert(pages(2, 2), 8), Err(InsertError::Overlap));
        let _second = table.insert(pages(3, 1), 8).unwrap();
        assert_eq!(table.with(HostAddr(0x2fff), |value| *value), Lookup::Found(7));
        assert_eq!(table.with(HostAddr(0x3000), |value| *value), Lookup::Found(8));
        assert_eq!(table.with(HostAddr(0x4000), |value| *value), Lookup::Missing);
        table.remove(first, false);
        assert_eq!(table.with(HostAddr(0x2fff), |value| *value), Lookup::Retired);
    }

    #[test]
    fn a_retired_range_is_forgotten_in_the_end() {
        let table = RangeTable::<u32, 4>::new();
        let id = table.insert(pages(1, 1), 0).unwrap();
        table.remove(id, false);
        for _ in 0..RETIRED_TURNS {
            assert_eq!(table.with(HostAddr(0x1000), |_| ()), Lookup::Retired);
        }
        assert_eq!(table.with(HostAddr(0x1000), |_| ()), Lookup::Missing);
    }

    #[test]
    fn slots_are_used_again_and_the_table_can_be_full() {
        let table = RangeTable::<u32, 4>::new();
        for round in 0..40 {
            let id = table.insert(pages(1 + round, 1), 0).unwrap();
            table.remove(id, false);
        }
        let ids: Vec<_> = (0..4).map(|page| table.insert(pages(100 + page, 1), 0).unwrap()).collect();
        assert_eq!(table.insert(pages(200, 1), 0), Err(InsertError::Full));
        for id in ids {
            table.remove(id, false);
        }
    }

    /// A value that knows when it was dropped under a reader.
    struct Canary(Arc<AtomicU64>);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.store(0, SeqCst);
        }
    }

    #[test]
    fn a_remover_waits_for_the_readers() {
        let table = RangeTable::<Canary, 4>::new();
        let stop = AtomicBool::new(false);
        let (reads, late) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        table.with(HostAddr(0x1000), |canary| {
                            let alive = canary.0.clone();
                            std::thread::yield_now();
                            reads.fetch_add(1, SeqCst);
                            late.fetch_add(u64::from(alive.load(SeqCst) == 0), SeqCst);
                        });
                    }
                });
            }
            let mut rounds = 0;
            while rounds < 200 || reads.load(SeqCst) < 200 {
                let id = table.insert(pages(1, 1), Canary(Arc::new(AtomicU64::new(1)))).unwrap();
                std::thread::yield_now();
                table.remove(id, false);
                rounds += 1;
            }
            stop.store(true, SeqCst);
        });
        assert_eq!(late.load(SeqCst), 0);
    }
}
