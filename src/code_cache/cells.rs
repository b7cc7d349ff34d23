//! Entry cells in slabs, and the links that keep them.
//!
//! Every lookup may read two words of a cell: the entry and its key. The commit lock guards a few
//! more words. They lie in two arrays, so that four cells share a cache line, and a lookup that
//! found its cell touches that line only.
//!
//! # The life of a cell
//!
//! ```text
//!   free ──────▶ in the table ─────────▶ swept ─────────────────▶ free
//!      its key is         it has no link        the epoch passes
//!      wanted             at a sweep
//! ```
//!
//! A cell is needed while there is a [`Link`] to it. The record of each block has one too, until
//! the record is freed. When the table is built anew ([`super::table`]), the other cells are left
//! out. They are used again once no thread that found them before can be left.
//!
//! # Addresses
//!
//! The table keeps 48 bits of a cell's address, and its provenance is exposed. Linux gives a
//! process no memory above them unless a call names a higher address (x86-64 with five levels of
//! page tables, aarch64 with 52 bits), and the allocator gives the slabs. An allocator that puts a
//! tag into the top byte of its pointers (HWASan, memory tagging) cannot be used: the first slab
//! panics.
//!
//! # Safety
//!
//! A slab is aligned to its size: the address of a cell gives its slab's head. A slab is freed when
//! it has no cell in use and no link, or with the cache and the last link into it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ptr::{self, NonNull};

use super::record::Block;
use super::table::NO_KEY;
use super::{Key, Payload};
use crate::block::{Entry, EntryCell, EntryStubs};
use crate::sync::{Arc, AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, Rule, left_out};

/// Cells of a slab: as many as fit into 32 KiB, without the rest.
#[cfg(not(any(loom, miri)))]
const SLAB_CELLS: usize = (32_768 - 32) / size_of::<Cell>();
#[cfg(loom)]
const SLAB_CELLS: usize = 4;
#[cfg(miri)]
const SLAB_CELLS: usize = 30;

/// Bits of an address that the table can keep.
pub(super) const ADDRESS_BITS: u32 = 48;

/// Whether the table can keep `address`.
fn is_kept(address: usize) -> bool {
    address as u64 >> ADDRESS_BITS == 0
}

/// The words that a lookup reads, in one cache line.
#[repr(C, align(16))]
pub(crate) struct Cell {
    /// First: the address of the cell is that of the entry cell.
    pub(crate) entry: EntryCell,
    /// [`NO_KEY`] while it is not in the table.
    key: AtomicU64,
}

impl Cell {
    pub(super) fn new(stubs: EntryStubs) -> Self {
        Self { entry: EntryCell::new(stubs), key: AtomicU64::new(NO_KEY) }
    }

    /// The key that it is for. Call it only for a cell found under a pin or the commit lock: until
    /// that ends, the cell is not used for another key.
    #[inline]
    pub(super) fn key(&self) -> u64 {
        self.key.load(Ordering::Relaxed)
    }
}

/// The commit lock guards these words, except for the count.
struct Rest {
    /// The block that was committed last, until it was reaped.
    block: AtomicPtr<()>,
    /// Links to the cell. Clones and drops change it under no lock; the first one
    /// is made under the commit lock.
    links: AtomicUsize,
    /// Whether a block was ever committed.
    used: AtomicBool,
    /// The plain entries of blocks that a walker may be about to downgrade, a bit for each: see
    /// [`CellRef::is_clear_of`].
    downgradable: AtomicU64,
}

/// The bit of an entry.
fn entry_bit(address: usize) -> u64 {
    1 << ((address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

impl Rest {
    fn new() -> Self {
        Self {
            block: AtomicPtr::new(ptr::null_mut()),
            links: AtomicUsize::new(0),
            used: AtomicBool::new(false),
            downgradable: AtomicU64::new(0),
        }
    }
}

#[repr(C)]
struct Body {
    /// Its number among the slabs of its cache.
    place: usize,
    cells: [Cell; SLAB_CELLS],
    rest: Box<[Rest]>,
}

/// Memory for [`SLAB_CELLS`] cells.
pub(crate) struct Slab(NonNull<Body>);

// SAFETY: it contains atomics and a number that does not change.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    const LAYOUT: Layout = {
        let bytes = size_of::<Body>().next_power_of_two();
        match Layout::from_size_align(bytes, bytes) {
            Ok(layout) => layout,
            Err(_) => panic!("a power of two"),
        }
    };

    fn new(place: usize, stubs: EntryStubs) -> Self {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(Self::LAYOUT) }.cast::<Body>();
        let Some(body) = NonNull::new(memory) else { handle_alloc_error(Self::LAYOUT) };
        assert!(
            is_kept(body.addr().get()),
            "the allocator gave {body:p}: entry cells need addresses of {ADDRESS_BITS} bits, without a tag"
        );
        // SAFETY: just allocated, big enough and aligned; each field is written
        // once.
        unsafe {
            (&raw mut (*memory).place).write(place);
            (&raw mut (*memory).rest).write((0..SLAB_CELLS).map(|_| Rest::new()).collect());
            for at in 0..SLAB_CELLS {
                (&raw mut (*memory).cells[at]).write(Cell::new(stubs));
            }
        }
        Self(body)
    }

    /// Its cells. Each address also gives access to the cell's [`Rest`].
    fn cells(&self) -> impl Iterator<Item = CellPtr> {
        // SAFETY: inside the slab.
        (0..SLAB_CELLS).map(|at| CellPtr(unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).cells[at]) }))
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: from `new`; no thread uses it any more.
        unsafe {
            ptr::drop_in_place(self.0.as_ptr());
            dealloc(self.0.as_ptr().cast(), Self::LAYOUT);
        }
    }
}

/// A cell by its address, which may be dangling.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CellPtr(NonNull<Cell>);

// SAFETY: an address.
unsafe impl Send for CellPtr {}
// SAFETY: as above.
unsafe impl Sync for CellPtr {}

impl CellPtr {
    /// For a word of the table. [`CellPtr::from_bits`] is the inverse.
    pub(super) fn to_bits(self) -> u64 {
        self.0.as_ptr().expose_provenance() as u64
    }

    /// # Safety
    ///
    /// `bits` are from [`CellPtr::to_bits`].
    #[inline]
    pub(super) unsafe fn from_bits(bits: u64) -> Self {
        // SAFETY: not null, as it came from one that was not.
        Self(unsafe { NonNull::new_unchecked(ptr::with_exposed_provenance_mut(bits as usize)) })
    }

    /// # Safety
    ///
    /// The cell's slab lives for `'a`.
    #[inline]
    pub(crate) unsafe fn as_ref<'a>(self) -> &'a Cell {
        // SAFETY: by this function's contract.
        unsafe { self.0.as_ref() }
    }

    fn head(self) -> NonNull<Body> {
        let offset = self.0.addr().get() & (Slab::LAYOUT.align() - 1);
        // SAFETY: slabs are aligned to their size, which has the cell in it.
        unsafe { self.0.byte_sub(offset) }.cast()
    }

    /// # Safety
    ///
    /// The cell is one of a slab that lives for `'a`.
    unsafe fn rest<'a>(self) -> &'a Rest {
        let head = self.head();
        let at = (self.0.addr().get() - head.addr().get() - offset_of!(Body, cells)) / size_of::<Cell>();
        // SAFETY: by this function's contract; the field does not change.
        unsafe { &(&(*head.as_ptr()).rest)[at] }
    }
}

/// A cell that is in the table, under the commit lock.
pub(crate) struct CellRef<'a, P: Payload> {
    cell: CellPtr,
    slab: &'a Arc<Slab>,
    payload: PhantomData<P>,
}

impl<P: Payload> Clone for CellRef<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Payload> Copy for CellRef<'_, P> {}

impl<'a, P: Payload> CellRef<'a, P> {
    pub(super) fn entry(self) -> &'a EntryCell {
        // SAFETY: of the slab that is borrowed.
        &unsafe { self.cell.as_ref() }.entry
    }

    fn rest(self) -> &'a Rest {
        // SAFETY: of the slab that is borrowed.
        unsafe { self.cell.rest() }
    }

    /// The block that was committed last, until it was reaped.
    pub(super) fn block(self) -> *mut Block<P> {
        self.rest().block.load(Ordering::Relaxed).cast()
    }

    pub(super) fn set_block(self, block: *mut Block<P>) {
        self.rest().block.store(block.cast(), Ordering::Relaxed);
    }

    /// Notes that a block was committed. Returns whether one was before.
    pub(super) fn mark_used(self) -> bool {
        self.rest().used.swap(true, Ordering::Relaxed)
    }

    /// Whether no earlier block of the cell can be downgraded by an address of `entry`. A downgrade
    /// exchanges an address that it finds in the cell. If two blocks of a key share the address, a
    /// late walker of the first block would put the first one's checked entry into the second one's
    /// cell.
    pub(super) fn is_clear_of(self, entry: Entry) -> bool {
        let bits = [false, true].into_iter().filter_map(|is_checked| entry.address(is_checked)).map(entry_bit);
        self.rest().downgradable.load(Ordering::Relaxed) & bits.fold(0, |all, bit| all | bit) == 0
    }

    /// A block of `entry` comes. It may be downgraded until no walker can have it.
    pub(super) fn note_downgradable(self, entry: Entry) {
        if let (Some(plain), Some(_)) = (entry.address(false), entry.address(true)) {
            self.rest().downgradable.fetch_or(entry_bit(plain), Ordering::Relaxed);
        }
    }

    /// No walker can have any block that was committed behind the cell.
    pub(super) fn forget_downgradable(self) {
        self.rest().downgradable.store(0, Ordering::Relaxed);
    }

    pub(super) fn link(self) -> Link {
        self.rest().links.fetch_add(1, Ordering::Relaxed);
        Link { cell: self.cell, slab: self.slab.clone() }
    }

    fn is_needed(self) -> bool {
        // Acquire: every use of a link came before its drop.
        self.rest().links.load(Ordering::Acquire) != 0 && !left_out(Rule::KeepLinked)
    }
}

/// Leads to the present and future blocks of one key. Emitted code that jumps to the address in
/// [`Link::cell`] enters the valid block, or the stub if there is none.
///
/// The cell stays as long as there is a link to it, even after the cache is gone. A holder of the
/// cell's address must hold a link. A block whose code jumps through a cell keeps the link in its
/// payload, which is dropped when no vCPU can be in that code any more.
pub struct Link {
    cell: CellPtr,
    slab: Arc<Slab>,
}

impl Link {
    /// The cell to jump through. While there is a link to the key, every link to it has the same
    /// cell.
    pub fn cell(&self) -> &EntryCell {
        // SAFETY: of the slab that the link keeps.
        &unsafe { self.cell.as_ref() }.entry
    }

    fn rest(&self) -> &Rest {
        // SAFETY: as above.
        unsafe { self.cell.rest() }
    }

    /// `block` is reaped: it is no longer the last one. Under the commit lock.
    pub(super) fn leave(&self, block: *const ()) {
        if ptr::eq(self.rest().block.load(Ordering::Relaxed), block) {
            self.rest().block.store(ptr::null_mut(), Ordering::Relaxed);
        }
    }
}

impl Clone for Link {
    fn clone(&self) -> Self {
        self.rest().links.fetch_add(1, Ordering::Relaxed);
        Self { cell: self.cell, slab: self.slab.clone() }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.rest().links.fetch_sub(1, Ordering::Release);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("cell", self.cell()).finish_non_exhaustive()
    }
}

struct Place {
    slab: Arc<Slab>,
    /// Cells that are in the table, or swept and not free yet.
    out: usize,
}

/// All cells of a cache. Changed under its commit lock.
pub(crate) struct Cells<P: Payload> {
    places: Vec<Option<Place>>,
    free: Vec<CellPtr>,
    in_table: usize,
    payload: PhantomData<fn() -> P>,
}

impl<P: Payload> Cells<P> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), in_table: 0, payload: PhantomData }
    }

    /// The number of cells in the table.
    pub(super) fn in_table(&self) -> usize {
        self.in_table
    }

    /// The number of cells that there is memory for.
    pub(super) fn capacity(&self) -> usize {
        self.places.iter().flatten().count() * SLAB_CELLS
    }

    /// The memory of all cells, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.places.iter().flatten().count() * (Slab::LAYOUT.size() + SLAB_CELLS * size_of::<Rest>())
            + self.places.capacity() * size_of::<Option<Place>>()
            + self.free.capacity() * size_of::<CellPtr>()
    }

    /// # Safety
    ///
    /// `cell` is in the table, or belongs to a block that was not reaped.
    pub(super) unsafe fn at(&self, cell: CellPtr) -> CellRef<'_, P> {
        // SAFETY: a cell that is out keeps its slab, which is fully initialized.
        let place = unsafe { (*cell.head().as_ptr()).place };
        let Some(Place { slab, .. }) = self.places.get(place).and_then(Option::as_ref) else {
            unreachable!("a slab with a cell in use is there")
        };
        CellRef { cell, slab, payload: PhantomData }
    }

    /// A cell for `key` that is in no table yet.
    pub(super) fn take(&mut self, key: Key, stubs: EntryStubs) -> CellPtr {
        let cell = self.free.pop().unwrap_or_else(|| self.take_of_new_slab(stubs));
        // SAFETY: free cells are of slabs that are here.
        let (head, rest) = unsafe { (cell.head().as_ref(), cell.rest()) };
        if let Some(Some(place)) = self.places.get_mut(head.place) {
            place.out += 1;
        }
        // No thread has a block of the cell's former key: each kept a link to it.
        rest.used.store(false, Ordering::Relaxed);
        rest.downgradable.store(0, Ordering::Relaxed);
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
        let slab = Arc::new(Slab::new(place, stubs));
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
                let found = CellRef::<P> { cell, slab, payload: PhantomData };
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
    pub(super) fn give_back(&mut self, swept: Vec<CellPtr>) {
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn tags_and_high_addresses_are_not_kept() {
        for kept in [0x1000, 0x7fff_ffff_8000, 0xffff_ffff_8000] {
            assert!(is_kept(kept), "{kept:x}");
        }
        for refused in [0x0b00_7fff_ffff_8000, 1 << ADDRESS_BITS, 1 << 56, 1 << 62] {
            assert!(!is_kept(refused), "{refused:x}");
        }
    }
}
