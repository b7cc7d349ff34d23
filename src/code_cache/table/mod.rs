//! From a key to its entry cell: a hash table that is read without a lock. Readers read an array of
//! slots ([`slots`]).
//!
//! # Sweeps
//!
//! Slots are filled one by one and never emptied. When an array is five eighths full, a new one is
//! made of the cells that are needed (a link leads to them, or a block is behind them). The new one
//! has room for at least twice as many, and for at least a quarter of the cells in the slabs. So
//! the cost for each new cell is bounded, and so is the number of cells that are not needed, even
//! if a guest runs at ever new addresses.
//!
//! The old array and the cells that are not in the new one are garbage of the epoch: a lookup may
//! still be using them. But a vCPU's front holds cells over many pins. So each sweep raises a
//! number. At each pin a vCPU compares the number with the last one that it saw. If it changed, the
//! vCPU clears its front.
//!
//! | a sweep | a vCPU |
//! |---|---|
//! | 1. publishes the new array | 1. pins, and fences |
//! | 2. raises the number | 2. compares the number, and clears its front if it changed |
//! | 3. retires the cells; a fence, by the next collection | 3. looks up, and fills the front |
//!
//! If a pinned vCPU does not see the new number, its fence came before the fence of the collection.
//! So the epoch waits for that pin, and the vCPU's next pin sees the number. A vCPU that sees the
//! number sees the new array, so it finds no swept cell to put into its front again.
//!
//! # Safety
//!
//! The current array lives until it is replaced and every pin of that time is gone: reading needs a
//! pin or the commit lock.
#![allow(unsafe_code)]

mod cells;
mod link;
mod slab;
mod slots;

pub(super) use cells::{CellRef, Cells};
pub use link::Link;
use slab::Cell;
pub(super) use slab::CellPtr;
use slots::{Array, Slots};

use super::entry::{EntryCell, EntryStubs};
use super::key::Key;
use crate::sync::{Arc, AtomicPtr, AtomicU64, Ordering};

/// The array that a new one replaced, and the swept cells, to be retired.
pub(crate) struct Swept {
    /// Only to be dropped.
    _slots: Array,
    pub(super) cells: Vec<CellPtr>,
}

/// The table. Its writers hold the lock of the cells.
pub(crate) struct Table {
    /// Packed; never null.
    slots: AtomicPtr<AtomicU64>,
    /// How often cells were swept.
    sweeps: AtomicU64,
    /// A cell of no key, which always leads to the dead stub.
    dead_cell: Arc<Cell>,
}

impl Table {
    pub(super) fn new(stubs: EntryStubs) -> Self {
        let slots = AtomicPtr::new(Array::for_cells(0, 0).into_packed());
        // Fronts point to it, so it is not a box: a box would be the only way to it.
        let dead_cell = Arc::new(Cell::new(stubs));
        Self { slots, sweeps: AtomicU64::new(0), dead_cell }
    }

    #[inline]
    fn slots(&self) -> Slots {
        // SAFETY: every stored value is packed.
        unsafe { Slots::unpack(self.slots.load(Ordering::Acquire)) }
    }

    /// The cell of `key`, if there is one.
    ///
    /// # Safety
    ///
    /// Under a pin or the commit lock, which is kept for `'a`.
    #[inline]
    pub(super) unsafe fn get<'a>(&self, key: Key) -> Option<&'a EntryCell> {
        // SAFETY: by this function's contract; the cells of an array live as long as it may be
        // read.
        unsafe { self.slots().find(key).map(|cell| &cell.as_ref().entry) }
    }

    /// A cell of no key, which always leads to the dead stub. It stays as long as the table.
    pub(super) fn dead_cell(&self) -> &EntryCell {
        &self.dead_cell.entry
    }

    /// The number of sweeps. A reader that sees a number sees the array of that sweep.
    #[inline]
    pub(super) fn sweeps(&self) -> u64 {
        self.sweeps.load(Ordering::Acquire)
    }

    /// Memory of the array, in bytes.
    pub(super) fn bytes(&self, _: &Cells) -> usize {
        self.slots().len() * size_of::<AtomicU64>()
    }

    /// The cell of `key`, under the lock of `cells`.
    pub(super) fn cell<'a>(&self, _: &'a Cells, key: Key) -> Option<CellRef<'a>> {
        // SAFETY: a caller with the cells holds their lock.
        let cell = unsafe { self.slots().find(key) }?;
        // SAFETY: in the table, and a sweep changes the cells.
        Some(unsafe { CellRef::new(cell) })
    }

    /// The cell of `key`, made if there is none, and the array that had to be replaced for it, if
    /// any. `key` is not `u64::MAX`.
    pub(super) fn cell_or_new<'a>(
        &self,
        cells: &'a mut Cells,
        key: Key,
        stubs: EntryStubs,
    ) -> (CellRef<'a>, Option<Swept>) {
        // SAFETY: a caller with the cells holds their lock.
        if let Some(cell) = unsafe { self.slots().find(key) } {
            // SAFETY: in the table.
            return (unsafe { CellRef::new(cell) }, None);
        }
        let swept = self.slots().is_full(cells.in_table() + 1).then(|| self.sweep(cells));
        let cell = cells.take(key, stubs);
        // SAFETY: as above.
        unsafe { self.slots().enter(key, cell) };
        // SAFETY: in the table.
        (unsafe { CellRef::new(cell) }, swept)
    }

    /// A link to the cell of `key`; otherwise as [`Table::cell_or_new`].
    pub(super) fn link(&self, cells: &mut Cells, key: Key, stubs: EntryStubs) -> (Link, Option<Swept>) {
        let (cell, swept) = self.cell_or_new(cells, key, stubs);
        // SAFETY: a cell in the table keeps its slab. The caller has the lock of the cells.
        (unsafe { Link::new(cell.ptr()) }, swept)
    }

    fn sweep(&self, cells: &mut Cells) -> Swept {
        let swept = cells.sweep();
        let new = Array::for_cells(cells.in_table(), cells.capacity());
        // SAFETY: our own array.
        cells.each().for_each(|(key, cell)| unsafe { new.slots().enter(key, cell) });
        let old = self.slots.swap(new.into_packed(), Ordering::AcqRel);
        if !swept.is_empty() {
            self.sweeps.fetch_add(1, Ordering::Release);
        }
        // SAFETY: replaced just now by the only writer. The epoch waits for its readers before it
        // is dropped.
        Swept { _slots: unsafe { Array::from_packed(old) }, cells: swept }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: no thread uses the table any more.
        drop(unsafe { Array::from_packed(self.slots.load(Ordering::Relaxed)) });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr::{dangling_mut, null_mut};

    use super::*;
    use crate::code_cache::key::NO_KEY;

    const STUBS: EntryStubs = EntryStubs::NOT_CODE;

    /// Under Miri slabs and arrays are smaller as well.
    const KEYS: u64 = if cfg!(miri) { 60 } else { 10_000 };

    struct Fixture {
        table: Table,
        cells: Cells,
    }

    impl Fixture {
        fn new() -> Self {
            Self { table: Table::new(STUBS), cells: Cells::new() }
        }

        /// A link to the cell of `key`; swept cells are given back at once.
        fn link(&mut self, key: u64) -> Link {
            let (link, swept) = self.table.link(&mut self.cells, Key::new(key), STUBS);
            if let Some(swept) = swept {
                self.cells.give_back(swept.cells);
            }
            link
        }

        fn address(&self, key: u64) -> Option<*const EntryCell> {
            // SAFETY: the only thread.
            unsafe { self.table.get(Key::new(key)) }.map(std::ptr::from_ref)
        }
    }

    #[test]
    fn keys_with_links_keep_their_cells_while_the_table_grows() {
        let mut fixture = Fixture::new();
        let links: Vec<_> = (0..KEYS).map(|i| (i << 12, fixture.link(i << 12))).collect();
        assert_eq!(fixture.cells.in_table() as u64, KEYS);
        for (key, link) in &links {
            assert_eq!(fixture.address(*key), Some(std::ptr::from_ref(link.cell())));
        }
        assert_eq!(fixture.address(1), None);
        assert_eq!(fixture.table.sweeps(), 0);
    }

    #[test]
    fn cells_without_a_link_are_used_again() {
        let mut fixture = Fixture::new();
        let first = fixture.link(1);
        let clone = first.clone();
        drop(first);
        let mut most_bytes = 0;
        for key in 2..20 * KEYS {
            drop(fixture.link(key));
            most_bytes = most_bytes.max(fixture.cells.bytes() + fixture.table.bytes(&fixture.cells));
        }
        assert!(fixture.table.sweeps() > 0);
        assert!(most_bytes < 256 << 10, "{most_bytes} bytes for one cell that is needed");
        assert_eq!(fixture.address(1), Some(std::ptr::from_ref(clone.cell())));
    }

    #[test]
    fn cells_with_a_record_or_a_retained_translation_are_kept() {
        let mut fixture = Fixture::new();
        let enter: [fn(CellRef<'_>); 2] = [|cell| cell.enter(dangling_mut()), |cell| cell.set_retained(dangling_mut())];
        let leave: [fn(CellRef<'_>); 2] = [|cell| cell.forget_record(), |cell| cell.set_retained(null_mut())];
        for (change, is_kept) in enter.into_iter().zip(leave).flat_map(|(enter, leave)| [(enter, true), (leave, false)])
        {
            change(fixture.table.cell_or_new(&mut fixture.cells, Key::new(1), STUBS).0);
            let sweeps = fixture.table.sweeps();
            let address = fixture.address(1);
            let mut other_keys = 2..;
            while fixture.table.sweeps() < sweeps + 2 {
                other_keys.next().into_iter().for_each(|key| drop(fixture.link(key)));
            }
            assert_eq!(fixture.address(1), address.filter(|_| is_kept));
        }
    }

    /// A walker killed the first block, but hands it over only after the second one was committed.
    #[test]
    fn an_earlier_block_leaves_the_cell_to_the_next() {
        let mut fixture = Fixture::new();
        let (cell, _) = fixture.table.cell_or_new(&mut fixture.cells, Key::new(1), STUBS);
        let [first, second] = [8, 16].map(std::ptr::without_provenance_mut);
        [first, second].into_iter().for_each(|block| cell.enter(block));
        cell.leave(first);
        assert_eq!(cell.block(), second);
        cell.leave(second);
        assert!(cell.block().is_null());
    }

    #[test]
    fn slabs_go_when_they_are_empty() {
        let mut fixture = Fixture::new();
        let mut links: Vec<_> = (0..4 * KEYS).map(|key| fixture.link(key)).collect();
        let most_bytes = fixture.cells.bytes();
        links.truncate(KEYS as usize / 20);
        for key in 0..20 * KEYS {
            drop(fixture.link(1 << 32 | key));
        }
        assert!(fixture.cells.bytes() * 2 < most_bytes, "{} of {most_bytes} bytes", fixture.cells.bytes());
        for (key, link) in links.iter().enumerate() {
            assert_eq!(fixture.address(key as u64), Some(std::ptr::from_ref(link.cell())));
        }
    }

    #[test]
    fn a_link_outlives_the_cells() {
        let mut fixture = Fixture::new();
        let link = fixture.link(7);
        drop(fixture);
        assert_eq!(link.clone().cell().load(), STUBS.dead);
    }

    #[test]
    fn no_key_has_no_cell() {
        let fixture = Fixture::new();
        assert!(fixture.table.cell(&fixture.cells, Key::new(NO_KEY)).is_none());
    }
}
