//! An array of slots, from a key to its entry cell: read without a lock.
//!
//! A slot is one word: the address of a cell, and 16 bits of the key's hash. A lookup probes slots
//! until those bits are the same. Then it compares the key in the cell, which lies next to the
//! cell's entry. So it touches two cache lines: one of the slots, one of the cells. Slots are
//! filled one by one and never emptied.
//!
//! A lookup costs those two misses. A processor overlaps the misses of successive lookups, within
//! the length of its queues. So a lookup has as few other instructions and loads as possible: one
//! word holds the array's address and size, and the search beyond the first probe is a separate
//! function.
//!
//! # Safety
//!
//! A cell is published by the release store of its slot. A [`Slots`] is a copy that keeps nothing
//! alive: its user must know that the [`Array`] lives.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use super::slab::{ADDRESS_BITS, CellPtr};
use crate::code_cache::key::Key;
use crate::sync::{AtomicU64, Ordering};

/// Slots of an empty table.
#[cfg(not(any(loom, miri)))]
const FIRST_SLOTS: usize = 1024;
#[cfg(loom)]
const FIRST_SLOTS: usize = 4;
#[cfg(miri)]
const FIRST_SLOTS: usize = 64;

/// The bits of a slot that hold a part of the hash.
const TAG_BITS: u32 = u64::BITS - ADDRESS_BITS;
/// The value of an empty slot.
const EMPTY: u64 = 0;

/// An array of slots, a power of two of them.
#[derive(Clone, Copy)]
pub(super) struct Slots {
    first: NonNull<AtomicU64>,
    /// Shifts a hash to an index.
    shift: u32,
}

/// Fibonacci hashing: the upper bits are mixed best.
#[inline]
fn hash(key: Key) -> u64 {
    key.raw().wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The bits of `hash` that stand beside the address. Never zero, so never those of an empty slot.
/// In a table of less than 2^24 slots no index uses them.
#[inline]
fn tag(hash: u64) -> u16 {
    (hash >> 24) as u16 | 1
}

impl Slots {
    /// Alignment of the address, so that its low bits have room for the shift.
    const ALIGN: usize = 64;

    /// Packs both fields into one word. [`Slots::unpack`] is the inverse.
    fn pack(self) -> *mut AtomicU64 {
        self.first.as_ptr().map_addr(|address| address | self.shift as usize)
    }

    /// # Safety
    ///
    /// `packed` is from [`Slots::pack`].
    #[inline]
    pub(super) unsafe fn unpack(packed: *mut AtomicU64) -> Self {
        let first = packed.map_addr(|address| address & !(Self::ALIGN - 1));
        // SAFETY: not null, as it came from one that was not.
        Self { first: unsafe { NonNull::new_unchecked(first) }, shift: (packed.addr() % Self::ALIGN) as u32 }
    }

    pub(super) fn len(self) -> usize {
        1 << (u64::BITS - self.shift)
    }

    /// The index after `at`.
    fn behind(self, at: usize) -> usize {
        (at + 1) & (self.len() - 1)
    }

    /// # Safety
    ///
    /// The array lives for `'a`; `at` is an index of it.
    #[inline]
    unsafe fn slot<'a>(self, at: usize) -> &'a AtomicU64 {
        // SAFETY: by this function's contract.
        unsafe { self.first.add(at).as_ref() }
    }

    /// The cell of `key`, if there is one.
    ///
    /// # Safety
    ///
    /// The array, and each cell that it leads to, lives meanwhile.
    #[inline]
    pub(super) unsafe fn find(self, key: Key) -> Option<CellPtr> {
        let hash = hash(key);
        let at = (hash >> self.shift) as usize;
        // SAFETY: by this function's contract.
        match unsafe { self.probe(key, hash, at) } {
            Probe::Hit(cell) => Some(cell),
            // SAFETY: as above.
            Probe::Other => unsafe { self.find_behind(key, hash, at) },
            Probe::Empty => None,
        }
    }

    /// A separate function, so that a hit at the first probe costs no further instruction.
    #[cold]
    unsafe fn find_behind(self, key: Key, hash: u64, mut at: usize) -> Option<CellPtr> {
        loop {
            at = self.behind(at);
            // SAFETY: by the caller's contract.
            match unsafe { self.probe(key, hash, at) } {
                Probe::Hit(cell) => return Some(cell),
                Probe::Other => {}
                Probe::Empty => return None,
            }
        }
    }

    /// # Safety
    ///
    /// As [`Slots::find`]; `at` is an index.
    #[inline]
    unsafe fn probe(self, key: Key, hash: u64, at: usize) -> Probe {
        // SAFETY: by this function's contract.
        let word = unsafe { self.slot(at) }.load(Ordering::Acquire);
        if word as u16 == tag(hash) {
            // SAFETY: a slot's upper bits are a cell's address.
            let cell = unsafe { CellPtr::from_bits(word >> TAG_BITS) };
            // SAFETY: by this function's contract.
            if unsafe { cell.as_ref() }.key() == key.raw() {
                return Probe::Hit(cell);
            }
        }
        if word == EMPTY { Probe::Empty } else { Probe::Other }
    }

    /// Enters the cell of a key that has none here.
    ///
    /// # Safety
    ///
    /// The array lives meanwhile, and has an empty slot; no other thread enters a cell.
    pub(super) unsafe fn enter(self, key: Key, cell: CellPtr) {
        let hash = hash(key);
        let mut at = (hash >> self.shift) as usize;
        // SAFETY: by this function's contract.
        while unsafe { self.slot(at) }.load(Ordering::Relaxed) != EMPTY {
            at = self.behind(at);
        }
        // A slab's address has no more bits.
        debug_assert_eq!(cell.to_bits() >> ADDRESS_BITS, 0);
        let word = cell.to_bits() << TAG_BITS | u64::from(tag(hash));
        // SAFETY: as above.
        unsafe { self.slot(at) }.store(word, Ordering::Release);
    }

    pub(super) fn is_full(self, cells: usize) -> bool {
        cells * 8 >= self.len() * 5
    }
}

/// The result of a probe at an index.
enum Probe {
    Hit(CellPtr),
    /// Another key's cell.
    Other,
    Empty,
}

/// Memory for an array.
pub(super) struct Array(Slots);

// SAFETY: it contains atomics.
unsafe impl Send for Array {}

impl Array {
    /// An array of `len` empty slots, a power of two from [`FIRST_SLOTS`] on.
    fn new(len: usize) -> Self {
        let layout = Self::layout(len);
        // SAFETY: the layout is not empty.
        let Some(first) = NonNull::new(unsafe { alloc(layout) }.cast::<AtomicU64>()) else {
            handle_alloc_error(layout)
        };
        for at in 0..len {
            // SAFETY: inside the new allocation.
            unsafe { first.add(at).write(AtomicU64::new(EMPTY)) };
        }
        Self(Slots { first, shift: u64::BITS - len.ilog2() })
    }

    /// Large enough for `cells` cells and at least as many new ones.
    pub(super) fn for_cells(cells: usize, capacity: usize) -> Self {
        let mut len = FIRST_SLOTS;
        while len * 5 < cells * 16 || len * 5 < capacity * 2 {
            len *= 2;
        }
        Self::new(len)
    }

    pub(super) fn slots(&self) -> Slots {
        self.0
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<AtomicU64>(len)
            .and_then(|layout| layout.align_to(Slots::ALIGN))
            .unwrap_or_else(|_| unreachable!("cells for as many slots are beyond any address space"))
    }

    /// Packs it into a word, which owns it until [`Array::from_packed`].
    pub(super) fn into_packed(self) -> *mut AtomicU64 {
        ManuallyDrop::new(self).0.pack()
    }

    /// # Safety
    ///
    /// `packed` is from [`Array::into_packed`], and only one array is made from it.
    pub(super) unsafe fn from_packed(packed: *mut AtomicU64) -> Self {
        // SAFETY: by this function's contract.
        Self(unsafe { Slots::unpack(packed) })
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        let Slots { first, .. } = self.0;
        let len = self.0.len();
        // SAFETY: from `new`; no thread uses it any more.
        unsafe {
            NonNull::slice_from_raw_parts(first, len).drop_in_place();
            dealloc(first.as_ptr().cast(), Self::layout(len));
        }
    }
}
