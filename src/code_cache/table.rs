//! From a key to its entry cell: a hash table that is read without a lock.
//!
//! Cells are made under the commit lock and stay as long as the cache, so that
//! links and per-vCPU fronts may hold their addresses. The array doubles when it
//! is three quarters full; readers of the old one are waited for by the epoch.
//!
//! # Safety
//!
//! A slot's cell is published by the release store of its key. The current array
//! lives until it is replaced and every pin of then is gone: reading needs a pin
//! or the commit lock.
#![allow(unsafe_code)]

use std::ptr;

use super::record::Block;
use super::{Key, Payload};
use crate::block::{EntryCell, EntryStubs};
use crate::sync::{AtomicPtr, AtomicU64, Ordering};

/// Slots of an empty table.
#[cfg(not(loom))]
const FIRST_SLOTS: usize = 1024;
#[cfg(loom)]
const FIRST_SLOTS: usize = 4;

/// An empty slot's key; [`Key::MAX`] is one less.
const EMPTY: u64 = u64::MAX;

/// What lies behind a key.
#[repr(C)]
pub(crate) struct Cell<P: Payload> {
    /// First: the address of the cell is that of the entry cell.
    pub(crate) entry: EntryCell,
    /// The block that was committed last, until it was reaped. Changed under the
    /// commit lock.
    pub(crate) block: AtomicPtr<Block<P>>,
    /// Whether a block was ever committed.
    pub(crate) used: AtomicU64,
}

struct Slot<P: Payload> {
    key: AtomicU64,
    cell: AtomicPtr<Cell<P>>,
}

/// An array of slots, a power of two of them.
pub(crate) struct Slots<P: Payload>(Box<[Slot<P>]>);

// SAFETY: slots point to cells that the table owns and shares by design.
unsafe impl<P: Payload> Send for Slots<P> {}
// SAFETY: as above.
unsafe impl<P: Payload> Sync for Slots<P> {}

impl<P: Payload> Slots<P> {
    fn new(len: usize) -> Box<Self> {
        let slot = |_| Slot { key: AtomicU64::new(EMPTY), cell: AtomicPtr::new(ptr::null_mut()) };
        Box::new(Self((0..len).map(slot).collect()))
    }

    /// The slot of `key`, or the one where it belongs, which was seen empty: it may
    /// have another key by now.
    fn find(&self, key: Key) -> Result<&Slot<P>, &Slot<P>> {
        let mask = self.0.len() - 1;
        let mut at = hash(key) as usize & mask;
        loop {
            let slot = &self.0[at];
            let seen = slot.key.load(Ordering::Acquire);
            if seen == key.0 {
                return Ok(slot);
            }
            if seen == EMPTY {
                return Err(slot);
            }
            at = (at + 1) & mask;
        }
    }
}

/// Fibonacci hashing, the well-mixed upper half folded down.
fn hash(key: Key) -> u64 {
    let product = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    product ^ product >> 32
}

pub(crate) struct Table<P: Payload> {
    slots: AtomicPtr<Slots<P>>,
}

impl<P: Payload> Table<P> {
    pub(crate) fn new() -> Self {
        Self { slots: AtomicPtr::new(Box::into_raw(Slots::new(FIRST_SLOTS))) }
    }

    /// # Safety
    ///
    /// Under a pin or the commit lock.
    unsafe fn slots(&self) -> &Slots<P> {
        // SAFETY: never null, and alive by this function's contract.
        unsafe { &*self.slots.load(Ordering::Acquire) }
    }

    /// The cell of `key`, where one was made.
    ///
    /// # Safety
    ///
    /// Under a pin or the commit lock.
    pub(crate) unsafe fn get(&self, key: Key) -> Option<&Cell<P>> {
        // SAFETY: by this function's contract.
        let slot = unsafe { self.slots() }.find(key).ok()?;
        // SAFETY: a slot with a key has a cell, which lives as long as the table.
        unsafe { slot.cell.load(Ordering::Relaxed).as_ref() }
    }

    /// The cell of `key`, made where there is none, and the array that a growth
    /// replaced: to be retired.
    ///
    /// # Safety
    ///
    /// Under the commit lock, `len` being the number of cells.
    pub(crate) unsafe fn get_or_make(
        &self,
        key: Key,
        stubs: EntryStubs,
        len: &mut usize,
    ) -> (&Cell<P>, Option<Box<Slots<P>>>) {
        // SAFETY: under the commit lock.
        if let Some(cell) = unsafe { self.get(key) } {
            return (cell, None);
        }
        // SAFETY: under the commit lock.
        let replaced = unsafe { self.grow(*len) };
        // SAFETY: under the commit lock.
        let (Ok(slot) | Err(slot)) = unsafe { self.slots() }.find(key);
        let cell = Box::into_raw(Box::new(Cell {
            entry: EntryCell::new(stubs),
            block: AtomicPtr::new(ptr::null_mut()),
            used: AtomicU64::new(0),
        }));
        slot.cell.store(cell, Ordering::Relaxed);
        slot.key.store(key.0, Ordering::Release);
        *len += 1;
        // SAFETY: just made; freed with the table.
        (unsafe { &*cell }, replaced)
    }

    /// # Safety
    ///
    /// Under the commit lock.
    unsafe fn grow(&self, len: usize) -> Option<Box<Slots<P>>> {
        // SAFETY: under the commit lock.
        let old = unsafe { self.slots() };
        if (len + 1) * 4 <= old.0.len() * 3 {
            return None;
        }
        let new = Slots::new(old.0.len() * 2);
        for slot in &old.0 {
            let key = slot.key.load(Ordering::Relaxed);
            if key != EMPTY {
                let (Ok(to) | Err(to)) = new.find(Key(key));
                to.cell.store(slot.cell.load(Ordering::Relaxed), Ordering::Relaxed);
                to.key.store(key, Ordering::Relaxed);
            }
        }
        let old = self.slots.swap(Box::into_raw(new), Ordering::AcqRel);
        // SAFETY: made by `Box::into_raw`, replaced just now by the only writer;
        // whoever still reads it is waited for before the box is dropped.
        Some(unsafe { Box::from_raw(old) })
    }
}

impl<P: Payload> Drop for Table<P> {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`; nobody has the table any more.
        let slots = unsafe { Box::from_raw(self.slots.load(Ordering::Relaxed)) };
        for slot in &slots.0 {
            let cell = slot.cell.load(Ordering::Relaxed);
            if !cell.is_null() {
                // SAFETY: made by `Box::into_raw`, in one slot of the last array.
                drop(unsafe { Box::from_raw(cell) });
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_cells_while_the_table_grows() {
        let table = Table::<()>::new();
        let mut len = 0;
        let mut cells = Vec::new();
        for i in 0..10_000u64 {
            let key = Key(i << 12);
            // SAFETY: the only thread.
            let (cell, replaced) = unsafe { table.get_or_make(key, EntryStubs::NOT_CODE, &mut len) };
            cells.push((key, ptr::from_ref(cell)));
            drop(replaced);
        }
        assert_eq!(len, 10_000);
        for (key, cell) in cells {
            // SAFETY: the only thread.
            assert_eq!(unsafe { table.get(key) }.map(ptr::from_ref), Some(cell));
        }
        // SAFETY: the only thread.
        assert!(unsafe { table.get(Key(1)) }.is_none());
    }
}
