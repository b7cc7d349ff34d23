//! Entry cells in slabs.
//!
//! A lookup reads two words of a cell: the entry and its key. The commit lock guards a few more
//! words. The two kinds lie in two arrays. So four cells share a cache line, and a lookup that
//! found its cell touches only that line.
//!
//! # Addresses
//!
//! The table keeps 48 bits of a cell's address, and its provenance is exposed. The slabs come from
//! the allocator. Linux gives a process no memory at longer addresses unless a call names one
//! (x86-64 with five levels of page tables, aarch64 with 52 bits). An allocator that puts a tag
//! into the top byte of its pointers (HWASan, memory tagging) cannot be used: the first slab
//! panics.
//!
//! # Safety
//!
//! A slab is aligned to its size: the address of a cell gives its slab's head. A slab is freed when
//! it has no cell in use and no link, or with the cache and the last link into it.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::mem::offset_of;
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicU32;

use crate::code_cache::entry::{EntryCell, EntryStubs};
use crate::code_cache::key::NO_KEY;
use crate::sync::{Arc, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Cells of a slab: as many as fit into 32 KiB, without the cold words.
#[cfg(not(any(loom, miri)))]
pub(super) const SLAB_CELLS: usize = (32_768 - 32) / size_of::<Cell>();
#[cfg(loom)]
pub(super) const SLAB_CELLS: usize = 4;
#[cfg(miri)]
pub(super) const SLAB_CELLS: usize = 30;

/// Bits of an address that the table can keep.
pub(super) const ADDRESS_BITS: u32 = 48;

/// Whether the table can keep `address`.
fn fits(address: usize) -> bool {
    address as u64 >> ADDRESS_BITS == 0
}

/// The words that a lookup reads, in one cache line.
#[repr(C, align(16))]
pub(crate) struct Cell {
    /// First: the address of the cell is that of the entry cell.
    pub(crate) entry: EntryCell,
    /// [`NO_KEY`] while it is not in the table.
    pub(super) key: AtomicU64,
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

/// The words of a cell that a lookup does not read. The commit lock guards them, except for the
/// count.
pub(super) struct ColdWords {
    /// The block that was committed last, until it was reaped.
    pub(super) block: AtomicPtr<()>,
    /// Links to the cell. Clones and drops change it under no lock; the first one
    /// is made under the commit lock.
    pub(super) links: AtomicUsize,
    /// Records of the cell that walkers may find: committed, and not handed out by the epoch.
    pub(super) records: AtomicU32,
    /// The newest retained translation of the key.
    pub(super) retained: std::sync::atomic::AtomicPtr<()>,
    /// The plain entries of blocks that a walker may be about to downgrade, a bit for each: see
    /// [`CellRef::is_clear_of`](super::cells::CellRef::is_clear_of). One more bit says whether a block was ever
    /// committed.
    pub(super) downgradable: AtomicU32,
}

// A large program has a few hundred thousand cells.
#[cfg(all(target_pointer_width = "64", not(any(test, loom))))]
const _: () = assert!(size_of::<ColdWords>() == 32);

impl ColdWords {
    fn new() -> Self {
        Self {
            block: AtomicPtr::new(ptr::null_mut()),
            links: AtomicUsize::new(0),
            records: AtomicU32::new(0),
            retained: std::sync::atomic::AtomicPtr::new(ptr::null_mut()),
            downgradable: AtomicU32::new(0),
        }
    }
}

#[repr(C)]
pub(super) struct Body {
    /// Its number among the slabs of its cache.
    pub(super) place: usize,
    /// From `Arc::into_raw`, without a count of its own. It does not change.
    owner: *const Slab,
    cells: [Cell; SLAB_CELLS],
    cold: Box<[ColdWords]>,
}

/// Memory for [`SLAB_CELLS`] cells.
pub(crate) struct Slab(NonNull<Body>);

// SAFETY: it contains atomics and a number that does not change.
unsafe impl Send for Slab {}
// SAFETY: as above.
unsafe impl Sync for Slab {}

impl Slab {
    pub(super) const LAYOUT: Layout = {
        let bytes = size_of::<Body>().next_power_of_two();
        match Layout::from_size_align(bytes, bytes) {
            Ok(layout) => layout,
            Err(_) => panic!("a power of two"),
        }
    };

    pub(super) fn new(place: usize, stubs: EntryStubs) -> Arc<Self> {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc(Self::LAYOUT) }.cast::<Body>();
        let Some(body) = NonNull::new(memory) else { handle_alloc_error(Self::LAYOUT) };
        assert!(
            fits(body.addr().get()),
            "the allocator gave {body:p}: entry cells need addresses of {ADDRESS_BITS} bits, without a tag"
        );
        let owner = Arc::into_raw(Arc::new(Self(body)));
        // SAFETY: just allocated, big enough and aligned; each field is written
        // once.
        unsafe {
            (&raw mut (*memory).place).write(place);
            (&raw mut (*memory).owner).write(owner);
            (&raw mut (*memory).cold).write((0..SLAB_CELLS).map(|_| ColdWords::new()).collect());
            for at in 0..SLAB_CELLS {
                (&raw mut (*memory).cells[at]).write(Cell::new(stubs));
            }
        }
        // SAFETY: from `into_raw` above, once.
        unsafe { Arc::from_raw(owner) }
    }

    /// Its cells. Each address also gives access to the cell's [`ColdWords`].
    pub(super) fn cells(&self) -> impl Iterator<Item = CellPtr> {
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

    /// The slab, as from `Arc::into_raw`.
    ///
    /// # Safety
    ///
    /// The cell's slab lives.
    pub(super) unsafe fn owner(self) -> *const Slab {
        // SAFETY: by this function's contract; the field does not change.
        unsafe { (*self.head().as_ptr()).owner }
    }

    pub(super) fn head(self) -> NonNull<Body> {
        let offset = self.0.addr().get() & (Slab::LAYOUT.align() - 1);
        // SAFETY: slabs are aligned to their size, which has the cell in it.
        unsafe { self.0.byte_sub(offset) }.cast()
    }

    /// # Safety
    ///
    /// The cell is one of a slab that lives for `'a`.
    pub(super) unsafe fn cold<'a>(self) -> &'a ColdWords {
        let head = self.head();
        let at = (self.0.addr().get() - head.addr().get() - offset_of!(Body, cells)) / size_of::<Cell>();
        // SAFETY: by this function's contract; the field does not change.
        unsafe { &(&(*head.as_ptr()).cold)[at] }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn tags_and_high_addresses_do_not_fit() {
        for good in [0x1000, 0x7fff_ffff_8000, 0xffff_ffff_8000] {
            assert!(fits(good), "{good:x}");
        }
        for refused in [0x0b00_7fff_ffff_8000, 1 << ADDRESS_BITS, 1 << 56, 1 << 62] {
            assert!(!fits(refused), "{refused:x}");
        }
    }
}
