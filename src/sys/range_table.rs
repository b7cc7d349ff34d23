//! A table from address ranges to values that signal handlers search without a lock.
//!
//! # Slots
//!
//! A slot has a range and a value, and goes `FREE -> LIVE -> RETIRED -> LIVE -> ...`. A reader raises
//! the slot's `users`, and only then checks whether the slot is live and holds the address. A remover
//! leaves `LIVE` first and then waits until `users` is 0. Each has a fence between its two steps, so
//! one of them sees the other: the value is never freed under a reader, and the bounds of a live slot
//! never change while a reader is inside. A remover waits for the readers of its own slot alone.
//!
//! # The index
//!
//! Readers find the slot by a sorted array of disjoint ranges. There are two arrays, which take turns. A
//! writer, under the lock of all writers, fills the array that is not published and then publishes it by
//! one step of `changes`. A reader may be late, and search an array that a writer fills again. So slots
//! and arrays stay memory until the table's end, and every piece of them is an atomic. A late reader may
//! find any range, but the slot tells whether the address is in it: so a range that is found is right.
//!
//! A range that is *not* found may be there all the same. So a reader that found nothing looks whether
//! `changes` is still what it was before the search: then no writer had begun to fill that array, and
//! there is none. Otherwise it searches again, a few times only: then it answers [`Lookup::Again`], as if
//! the range had just been removed. So no reader waits for a writer, which may be the code that the
//! reader's signal interrupted.
//!
//! # Retired ranges
//!
//! A store may fault before a range is removed and reach its handler after. If that store is tried
//! again it does not fault, so the late fault must not kill the process. So a removed range stays in the
//! index until its slot is used again, except for the parts that have a new range. It answers
//! [`Lookup::Again`] a limited number of times. After that many answers a true crash on the same
//! addresses is handed on.
//!
//! # A fork's child
//!
//! Readers among the parent's other threads do not exist in the child, and `users` stays as they left it.
//! So the child waits for no reader when it takes out a range of the parent's, and it uses no slot again
//! that the parent had retired. A range that it goes on with is taken over, and forgets such readers.
//!
//! # Safety
//!
//! `value` is null or comes from `Box::into_raw`. It is freed by the remover alone, after the wait above.
//! Blocks and arrays come from `Box::into_raw` and are freed by the table's drop alone. The number of an
//! index's ranges is stored behind its array, and arrays only grow. So the array that is loaded behind the
//! number has room for as many.
#![allow(unsafe_code)]

use core::ptr;
use std::collections::VecDeque;

use crate::addr::{HostAddr, HostRange};
use crate::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::{AtomicPtr, AtomicU64, AtomicUsize, Rule, fence, fence_behind_rmw, yield_now};

const FREE: u64 = 0;
const LIVE: u64 = 1;
const RETIRED: u64 = 2;

/// Number of faults that a removed range may have under way.
const RETIRED_TURNS: u64 = 1024;

/// Number of removed ranges that are remembered before their slots are used again.
const RETIRED_KEPT: usize = if cfg!(loom) { 0 } else { 16 };

/// Ranges for which the table has memory in itself. With so many a search reads one page: a fault handler
/// often runs just after the kernel has emptied the TLB.
const FIRST: usize = if cfg!(loom) { 4 } else { 8 };

/// Enough for blocks and arrays that double, up to all memory.
const DOUBLINGS: usize = if cfg!(loom) { 4 } else { usize::BITS as usize };

/// Number of searches that changes of the table may spoil.
const SEARCHES: usize = 4;

/// A line of its own: threads that fault in several ranges do not share one.
#[repr(align(64))]
struct Slot<T> {
    users: AtomicUsize,
    state: AtomicU64,
    start: AtomicUsize,
    end: AtomicUsize,
    value: AtomicPtr<T>,
    turns_left: AtomicU64,
}

impl<T> Slot<T> {
    fn new() -> Self {
        Self {
            users: AtomicUsize::new(0),
            state: AtomicU64::new(FREE),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            value: AtomicPtr::new(ptr::null_mut()),
            turns_left: AtomicU64::new(0),
        }
    }

    fn is_live(&self) -> bool {
        self.state.load(Acquire) == LIVE
    }

    fn holds(&self, address: usize) -> bool {
        self.start.load(Relaxed) <= address && address < self.end.load(Relaxed)
    }

    /// Keeps the remover away, if it is live.
    #[inline]
    fn enter(&self) -> Option<Inside<'_, T>> {
        self.users.fetch_add(1, AcqRel);
        fence_behind_rmw(Rule::FenceBehindUse);
        let inside = Inside(self);
        self.is_live().then_some(inside)
    }

    /// Whether one more fault may have been under way when the range was removed.
    fn take_turn(&self) -> bool {
        self.turns_left.fetch_update(AcqRel, Relaxed, |turns| turns.checked_sub(1)).is_ok()
    }
}

/// A reader inside a slot.
struct Inside<'a, T>(&'a Slot<T>);

impl<T> Inside<'_, T> {
    fn value(&self) -> &T {
        // SAFETY: live was seen after `users` was raised, so the remover waits until it is lowered.
        unsafe { &*self.0.value.load(Acquire) }
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Release);
    }
}

/// A range of an index, and its slot.
struct Entry<T> {
    start: AtomicUsize,
    end: AtomicUsize,
    slot: AtomicPtr<Slot<T>>,
}

impl<T> Entry<T> {
    fn new() -> Self {
        Self { start: AtomicUsize::new(0), end: AtomicUsize::new(0), slot: AtomicPtr::new(ptr::null_mut()) }
    }
}

/// A sorted array of disjoint ranges.
struct Index<T> {
    len: AtomicUsize,
    entries: AtomicPtr<Entry<T>>,
}

impl<T> Index<T> {
    fn new() -> Self {
        Self { len: AtomicUsize::new(0), entries: AtomicPtr::new(ptr::null_mut()) }
    }

    #[inline]
    fn entries(&self) -> &[Entry<T>] {
        let len = self.len.load(Acquire);
        if len == 0 {
            return &[];
        }
        // SAFETY: it has room for as many, and stays memory: see the module's head.
        unsafe { core::slice::from_raw_parts(self.entries.load(Acquire), len) }
    }

    /// The slot of the range that holds `address`.
    #[inline]
    fn find(&self, address: usize) -> Option<&Slot<T>> {
        let entries = self.entries();
        let behind = entries.partition_point(|entry| entry.start.load(Relaxed) <= address);
        let entry = entries.get(behind.checked_sub(1)?)?;
        if address >= entry.end.load(Relaxed) {
            return None;
        }
        // SAFETY: a slot of the table, or null in an array that a writer fills for the first time.
        unsafe { entry.slot.load(Acquire).as_ref() }
    }
}

/// The result of a search.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<R> {
    /// A live range; the closure's result.
    Found(R),
    /// A range that was removed a short while ago, or the table changed all the time: what led here may
    /// be tried again.
    Again,
    /// Nothing.
    Missing,
}

/// A live range has a part of the range.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Overlap;

/// The name of a live slot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SlotId(usize);

/// A slot without a value, for the next writer.
#[derive(Debug)]
#[must_use = "a slot that is not given back is never used again"]
pub(crate) struct FreeSlot(usize);

/// The part of a table that writers alone use. A lock around it lets in one at a time.
#[derive(Debug)]
pub(crate) struct Writing {
    /// Removed slots, the oldest first.
    retired: VecDeque<usize>,
    /// Slots from here on were never used.
    used: usize,
    /// The room of each index.
    rooms: [usize; 2],
    /// The number of the process that changed the table last.
    process: u64,
}

impl Writing {
    pub(crate) const fn new() -> Self {
        Self { retired: VecDeque::new(), used: 0, rooms: [0; 2], process: 0 }
    }

    /// The slot may be used again.
    pub(crate) fn give_back(&mut self, slot: FreeSlot) {
        self.retired.push_back(slot.0);
    }
}

/// See the module head.
#[repr(C, align(4096))]
pub(crate) struct RangeTable<T> {
    /// The low bit is the number of the published index.
    changes: AtomicUsize,
    indexes: [Index<T>; 2],
    first_slots: [Slot<T>; FIRST],
    first_entries: [[Entry<T>; FIRST]; 2],
    /// The other slots: each block is as large as all before it.
    blocks: [AtomicPtr<Slot<T>>; DOUBLINGS],
    /// Every array that an index ever had, by the logarithm of its room.
    arrays: [[AtomicPtr<Entry<T>>; DOUBLINGS]; 2],
}

fn pointers<P>() -> [AtomicPtr<P>; DOUBLINGS] {
    core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut()))
}

impl<T> RangeTable<T> {
    pub(crate) fn new() -> Self {
        Self {
            changes: AtomicUsize::new(0),
            indexes: [Index::new(), Index::new()],
            first_slots: core::array::from_fn(|_| Slot::new()),
            first_entries: [0; 2].map(|_| core::array::from_fn(|_| Entry::new())),
            blocks: pointers(),
            arrays: [pointers(), pointers()],
        }
    }

    /// The block of slot `index`, and the slot's number in it.
    fn place(index: usize) -> (usize, usize) {
        let block = (index / FIRST).ilog2() as usize;
        (block, index - (FIRST << block))
    }

    /// A slot that was used.
    fn slot(&self, index: usize) -> &Slot<T> {
        match self.first_slots.get(index) {
            Some(slot) => slot,
            None => {
                let (block, at) = Self::place(index);
                // SAFETY: made with its block, which has room for it.
                unsafe { &*self.blocks[block].load(Acquire).add(at) }
            }
        }
    }

    /// Every slot that there is memory for.
    fn slots(&self) -> impl Iterator<Item = &Slot<T>> {
        let blocks = self.blocks.iter().enumerate().map_while(|(number, block)| {
            let block = block.load(Acquire);
            // SAFETY: the block of that number has as many.
            (!block.is_null()).then(|| unsafe { core::slice::from_raw_parts(block, FIRST << number) })
        });
        self.first_slots.iter().chain(blocks.flatten())
    }

    /// Adds `range`. From here on readers find it. `process` is the number of this process.
    ///
    /// # Safety
    ///
    /// `writing` is used for this table alone, and all of its changes go through it. The table does not
    /// move any more.
    pub(crate) unsafe fn insert(
        &self,
        writing: &mut Writing,
        range: HostRange,
        value: T,
        process: u64,
    ) -> Result<SlotId, Overlap> {
        let changes = self.changes.load(Relaxed);
        let (published, spare) = (changes & 1, (changes + 1) & 1);
        let known = self.indexes[published].entries();
        if self.has_live(known, range) {
            return Err(Overlap);
        }
        if writing.process != process {
            writing.process = process;
            writing.retired.clear();
        }
        let index = self.free_slot(writing);
        let slot = self.slot(index);
        // The array that a late reader may still search has not been published for one change.
        fence(Rule::FenceBeforeRefill);
        let array = self.room_for(writing, spare, known.len() + 2);
        let len = refill(array, known, range, slot);
        slot.start.store(range.start().0, Relaxed);
        slot.end.store(range.end().0, Relaxed);
        slot.value.store(Box::into_raw(Box::new(value)), Relaxed);
        slot.state.store(LIVE, Release);
        self.indexes[spare].len.store(len, Release);
        self.changes.store(changes + 1, Release);
        Ok(SlotId(index))
    }

    /// Whether one of `known` is live and has a part of `range`.
    fn has_live(&self, known: &[Entry<T>], range: HostRange) -> bool {
        let first = known.partition_point(|entry| entry.end.load(Relaxed) <= range.start().0);
        let mut near = known[first..].iter().take_while(|entry| entry.start.load(Relaxed) < range.end().0);
        // SAFETY: entries of a published array name slots of the table.
        near.any(|entry| unsafe { &*entry.slot.load(Acquire) }.is_live())
    }

    /// A slot that no entry of the next index needs.
    fn free_slot(&self, writing: &mut Writing) -> usize {
        if writing.retired.len() > RETIRED_KEPT
            && let Some(oldest) = writing.retired.pop_front()
        {
            return oldest;
        }
        let index = writing.used;
        writing.used += 1;
        if index >= FIRST {
            let (block, at) = Self::place(index);
            if at == 0 {
                let slots: Box<[Slot<T>]> = (0..FIRST << block).map(|_| Slot::new()).collect();
                self.blocks[block].store(Box::into_raw(slots).cast(), Release);
            }
        }
        index
    }

    /// The array of index `which`, a larger one if `needed` entries do not fit. They are all of it that may
    /// be changed.
    fn room_for(&self, writing: &mut Writing, which: usize, needed: usize) -> &[Entry<T>] {
        let index = &self.indexes[which];
        if writing.rooms[which] == 0 {
            writing.rooms[which] = FIRST;
            index.entries.store(self.first_entries[which].as_ptr().cast_mut(), Release);
        }
        if writing.rooms[which] < needed {
            let room = needed.next_power_of_two();
            let array: Box<[Entry<T>]> = (0..room).map(|_| Entry::new()).collect();
            let array = Box::into_raw(array).cast();
            self.arrays[which][room.ilog2() as usize].store(array, Relaxed);
            index.entries.store(array, Release);
            writing.rooms[which] = room;
        }
        // SAFETY: it has that much room, and stays memory.
        unsafe { core::slice::from_raw_parts(index.entries.load(Relaxed), writing.rooms[which]) }
    }

    /// In a fork's child, with no other thread inside: a range of the parent's is this process's own from
    /// now on. Readers among the parent's other threads do not exist here.
    pub(crate) fn take_over(&self, id: &SlotId) {
        let users = &self.slot(id.0).users;
        // The memory is not written if there were none: the child would copy it.
        if users.load(Relaxed) != 0 {
            users.store(0, Relaxed);
        }
    }

    /// Takes a range out and waits until no reader is inside its value. Must not be called from
    /// a reader. With `in_fork_child` it does not wait: the readers were threads of the parent.
    pub(crate) fn take_out(&self, id: SlotId, in_fork_child: bool) -> FreeSlot {
        let slot = self.slot(id.0);
        slot.turns_left.store(RETIRED_TURNS, Relaxed);
        slot.state.store(RETIRED, Release);
        fence(Rule::FenceBehindRetire);
        if in_fork_child {
            slot.users.store(0, Relaxed);
        }
        while slot.users.load(Acquire) != 0 {
            yield_now();
        }
        let value = slot.value.swap(ptr::null_mut(), AcqRel);
        // SAFETY: made by `insert`, taken out by this swap alone; no reader is inside and none gets
        // in.
        drop(unsafe { Box::from_raw(value) });
        FreeSlot(id.0)
    }

    /// Runs `found` on the value of the live range that holds `address`.
    /// Async-signal-safe if `found` is.
    #[inline]
    pub(crate) fn with<R>(&self, address: HostAddr, found: impl FnOnce(&T) -> R) -> Lookup<R> {
        for _ in 0..SEARCHES {
            let changes = self.changes.load(Acquire);
            let slot = self.indexes[changes & 1].find(address.0);
            if let Some(inside) = slot.and_then(Slot::enter)
                && inside.0.holds(address.0)
            {
                return Lookup::Found(found(inside.value()));
            }
            fence(Rule::FenceBeforeSecondLook);
            if self.changes.load(Relaxed) == changes {
                return if slot.is_some_and(Slot::take_turn) { Lookup::Again } else { Lookup::Missing };
            }
        }
        Lookup::Again
    }

    /// Runs `each` on every value that is live all the time. Async-signal-safe if `each` is; as
    /// with [`RangeTable::with`], a remover waits for it.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&T)) {
        // Others are not entered: their removers need not wait.
        for slot in self.slots() {
            if slot.is_live()
                && let Some(inside) = slot.enter()
            {
                each(inside.value());
            }
        }
    }
}

/// Fills `array` with `known`, except for entries of `slot`, and with `range` as the range of `slot`. Of
/// other ranges there the parts outside stay. Returns the number of entries.
fn refill<T>(array: &[Entry<T>], known: &[Entry<T>], range: HostRange, slot: &Slot<T>) -> usize {
    let (new_start, new_end) = (range.start().0, range.end().0);
    let new_slot = ptr::from_ref(slot).cast_mut();
    let mut len = 0;
    let mut put = |start: usize, end: usize, slot: *mut Slot<T>| {
        let entry = &array[len];
        entry.start.store(start, Relaxed);
        entry.end.store(end, Relaxed);
        entry.slot.store(slot, Release);
        len += 1;
    };
    let mut is_put = false;
    for entry in known {
        let (start, end, slot) = (entry.start.load(Relaxed), entry.end.load(Relaxed), entry.slot.load(Relaxed));
        if slot == new_slot {
            continue;
        }
        if start < new_start {
            put(start, end.min(new_start), slot);
        }
        if end > new_start && !is_put {
            is_put = true;
            put(new_start, new_end, new_slot);
        }
        if end > new_end {
            put(start.max(new_end), end, slot);
        }
    }
    if !is_put {
        put(new_start, new_end, new_slot);
    }
    len
}

impl<T> Drop for RangeTable<T> {
    fn drop(&mut self) {
        for slot in self.slots() {
            let value = slot.value.load(Relaxed);
            if !value.is_null() {
                // SAFETY: made by `insert`; `&mut self` says that there is no reader.
                drop(unsafe { Box::from_raw(value) });
            }
        }
        for (number, block) in self.blocks.iter().enumerate() {
            let block = block.load(Relaxed);
            if !block.is_null() {
                // SAFETY: made by `free_slot` with as many slots.
                drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(block, FIRST << number)) });
            }
        }
        for (number, array) in self.arrays.iter().flat_map(|arrays| arrays.iter().enumerate()) {
            let array = array.load(Relaxed);
            if !array.is_null() {
                // SAFETY: made by `room_for` with that much room.
                drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(array, 1 << number)) });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
