//! The cells of a cache: in the table, swept, or free.
//!
//! ```text
//!   free ──────▶ in the table ─────────▶ swept ─────────────────▶ free
//!      its key is         it has no link        the epoch passes
//!      wanted             at a sweep
//! ```
//!
//! A cell is needed while there is a [`Link`] to it, a retained translation of its key, or a record
//! that a walker may find. When the table is built anew ([`super`]), it leaves out the cells that are
//! not needed. They are used again once no thread that found them before can be using them.
//!
//! # Safety
//!
//! A cell that is in the table or was swept keeps its slab here.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use super::slab::{CellPtr, ColdWords, SLAB_CELLS, Slab};
use crate::code_cache::entry::{Entry, EntryCell, EntryStubs};
use crate::code_cache::key::{Key, NO_KEY};
use crate::sync::{Arc, Ordering, Rule, left_out};

/// The bit of [`ColdWords::downgradable`] that says that a block was ever committed.
const USED: u32 = 1 << 31;

/// The bit of an entry, another one.
fn entry_bit(address: usize) -> u32 {
    1 << (((address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 31)
}

/// A cell that is in the table, under the commit lock.
#[derive(Clone, Copy)]
pub(crate) struct CellRef<'a> {
    cell: CellPtr,
    cells: PhantomData<&'a Cells>,
}

impl<'a> CellRef<'a> {
    /// # Safety
    ///
    /// For `'a` the caller holds the commit lock, and the cell is in the table: a sweep leaves it
    /// there, or there is none.
    pub(crate) unsafe fn new(cell: CellPtr) -> Self {
        Self { cell, cells: PhantomData }
    }

    pub(crate) fn ptr(self) -> CellPtr {
        self.cell
    }

    pub(crate) fn entry(self) -> &'a EntryCell {
        // SAFETY: a cell in the table keeps its slab.
        &unsafe { self.cell.as_ref() }.entry
    }

    fn cold(self) -> &'a ColdWords {
        // SAFETY: as above.
        unsafe { self.cell.cold() }
    }

    /// The block that was committed last, until it was reaped.
    pub(crate) fn block(self) -> *mut () {
        self.cold().block.load(Ordering::Relaxed)
    }

    /// A record of the cells' cache gets the cell, and is the one that was committed last.
    pub(crate) fn enter(self, block: *mut ()) {
        self.cold().block.store(block, Ordering::Relaxed);
        self.count_records(1);
    }

    /// `block` is reaped: it is no longer the last one.
    pub(crate) fn leave(self, block: *const ()) {
        if ptr::eq(self.block(), block) {
            self.cold().block.store(ptr::null_mut(), Ordering::Relaxed);
        }
    }

    /// No walker can find one of the records any more.
    pub(crate) fn forget_record(self) {
        self.count_records(-1);
    }

    fn count_records(self, change: i32) {
        let records = &self.cold().records;
        records.store(records.load(Relaxed).wrapping_add_signed(change), Relaxed);
    }

    /// The newest retained translation of the key.
    pub(crate) fn retained(self) -> *mut () {
        self.cold().retained.load(Relaxed)
    }

    /// `translation` is a pointer to one of the cells' cache.
    pub(crate) fn set_retained(self, translation: *mut ()) {
        self.cold().retained.store(translation, Relaxed);
    }

    /// Notes that a block was committed. Returns whether one was before.
    pub(crate) fn mark_used(self) -> bool {
        let bits = &self.cold().downgradable;
        let before = bits.load(Relaxed);
        bits.store(before | USED, Relaxed);
        before & USED != 0
    }

    /// Whether no earlier block of the cell can be downgraded by an address of `entry`. A downgrade
    /// exchanges an address that it finds in the cell. If two blocks of a key share the address, a
    /// late walker of the first block would put the first one's self-checking entry into the second
    /// one's cell.
    pub(crate) fn is_clear_of(self, entry: Entry) -> bool {
        let bits =
            [false, true].into_iter().filter_map(|is_self_checking| entry.address(is_self_checking)).map(entry_bit);
        self.cold().downgradable.load(Relaxed) & bits.fold(0, |all, bit| all | bit) == 0
    }

    /// A block of `entry` comes. It may be downgraded until no walker can have it.
    pub(crate) fn note_downgradable(self, entry: Entry) {
        if let (Some(plain), Some(_)) = (entry.address(false), entry.address(true)) {
            let bits = &self.cold().downgradable;
            bits.store(bits.load(Relaxed) | entry_bit(plain), Relaxed);
        }
    }

    /// No walker can have any block that was committed behind the cell.
    pub(crate) fn forget_downgradable(self) {
        let bits = &self.cold().downgradable;
        bits.store(bits.load(Relaxed) & USED, Relaxed);
    }

    fn is_needed(self) -> bool {
        let cold = self.cold();
        // Acquire: every use of a link came before its drop.
        let is_linked = cold.links.load(Ordering::Acquire) != 0;
        let has_blocks = cold.records.load(Relaxed) != 0 || !cold.retained.load(Relaxed).is_null();
        (is_linked || has_blocks) && !left_out(Rule::KeepLinked)
    }
}

struct Place {
    slab: Arc<Slab>,
    /// Cells that are in the table, or swept and not free yet.
    out: usize,
}

/// All cells of a cache. Changed under its commit lock.
pub(crate) struct Cells {
    places: Vec<Option<Place>>,
    free: Vec<CellPtr>,
    in_table: usize,
}

impl Cells {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), in_table: 0 }
    }

    /// The number of cells in the table.
    pub(crate) fn in_table(&self) -> usize {
        self.in_table
    }

    /// The number of cells that there is memory for.
    pub(super) fn capacity(&self) -> usize {
        self.places.iter().flatten().count() * SLAB_CELLS
    }

    /// The memory of all cells, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.places.iter().flatten().count() * (Slab::LAYOUT.size() + SLAB_CELLS * size_of::<ColdWords>())
            + self.places.capacity() * size_of::<Option<Place>>()
            + self.free.capacity() * size_of::<CellPtr>()
    }

    /// A cell for `key` that is in no table yet.
    pub(super) fn take(&mut self, key: Key, stubs: EntryStubs) -> CellPtr {
        let cell = self.free.pop().unwrap_or_else(|| self.take_of_new_slab(stubs));
        // SAFETY: free cells are of slabs that are here.
        let (head, cold) = unsafe { (cell.head().as_ref(), cell.cold()) };
        if let Some(Some(place)) = self.places.get_mut(head.place) {
            place.out += 1;
        }
        // No thread has a block of the cell's last key: each had a link to it.
        cold.downgradable.store(0, Relaxed);
        // SAFETY: as above.
        unsafe { cell.as_ref() }.key.store(key.raw(), Ordering::Relaxed);
        self.in_table += 1;
        cell
    }

    fn take_of_new_slab(&mut self, stubs: EntryStubs) -> CellPtr {
        let place = self.places.iter().position(Option::is_none).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let slab = Slab::new(place, stubs);
        let mut cells = slab.cells();
        let first = cells.next();
        self.free.extend(cells);
        // The lowest address is taken first.
        self.free.reverse();
        self.places[place] = Some(Place { slab, out: 0 });
        first.unwrap_or_else(|| unreachable!("a slab has cells"))
    }

    /// Takes the cells that nothing links to out of the count. The caller retires them when the
    /// table is without them, and gives them back after the epoch has passed.
    pub(super) fn sweep(&mut self) -> Vec<CellPtr> {
        let mut swept = Vec::new();
        for slab in self.places.iter().flatten().map(|place| &place.slab) {
            for cell in slab.cells() {
                // SAFETY: of this slab, under the commit lock.
                let found = unsafe { CellRef::new(cell) };
                // SAFETY: of this slab.
                let key = &unsafe { cell.as_ref() }.key;
                if key.load(Ordering::Relaxed) != NO_KEY && !found.is_needed() {
                    key.store(NO_KEY, Ordering::Relaxed);
                    swept.push(cell);
                }
            }
        }
        self.in_table -= swept.len();
        self.release();
        swept
    }

    /// Every cell that is in the table.
    pub(super) fn each(&self) -> impl Iterator<Item = (Key, CellPtr)> {
        self.places.iter().flatten().flat_map(|place| {
            // SAFETY: of this slab.
            let keyed = |cell: CellPtr| (Key::new(unsafe { cell.as_ref() }.key()), cell);
            place.slab.cells().map(keyed).filter(|(key, _)| key.raw() != NO_KEY)
        })
    }

    /// Swept cells that no thread can find any more.
    pub(crate) fn give_back(&mut self, swept: Vec<CellPtr>) {
        for &cell in &swept {
            // SAFETY: a cell that is out keeps its slab.
            let place = unsafe { (*cell.head().as_ptr()).place };
            if let Some(Some(place)) = self.places.get_mut(place) {
                place.out -= 1;
            }
        }
        self.free.extend(swept);
    }

    /// Frees the slabs that have no cell in use. Sorts the free cells so that the lowest addresses
    /// are used first and the other slabs become empty.
    fn release(&mut self) {
        let Self { places, free, .. } = self;
        free.retain(|cell| {
            // SAFETY: free cells are of slabs that are here.
            let place = unsafe { (*cell.head().as_ptr()).place };
            places.get(place).and_then(Option::as_ref).is_some_and(|place| place.out != 0)
        });
        free.shrink_to(free.len() * 2);
        free.sort_unstable_by(|a, b| b.cmp(a));
        for place in places.iter_mut().filter(|place| place.as_ref().is_some_and(|place| place.out == 0)) {
            *place = None;
        }
    }
}
