//! The memory that the library takes: for tracked memory, for pages with code, for blocks.
//!
//! The library's own count ([`CodeCache::footprint`]) is beside the heap's: it knows the size of each
//! table and record, but not what the allocator and the mechanisms add.
//!
//! # Safety
//!
//! The C library's count of its heap has no condition.
#![allow(unsafe_code)]

use std::fmt::Write;

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs, Key};

use crate::library::add_region;

/// The tracked memory.
const REGION_BYTES: usize = 1 << 30;
/// Guest bytes of a block.
const BLOCK_BYTES: u64 = 64;

/// Bytes in use on the heap.
fn heap_bytes() -> usize {
    // SAFETY: it only counts.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

/// Memory that was taken for `units` things.
#[derive(Clone, Debug)]
struct Taken {
    what: String,
    mode: Mode,
    units: usize,
    counted_bytes: usize,
    heap_bytes: usize,
}

struct Cache {
    cache: CodeCache<()>,
    memory: GuestMemory,
    mode: Mode,
}

impl Cache {
    fn new(mode: Mode) -> Self {
        let memory = GuestMemory::anonymous(REGION_BYTES).expect("address space");
        Self { cache: CodeCache::new(EntryStubs::NOT_CODE).expect("the stubs differ"), memory, mode }
    }

    fn track(&self) {
        add_region(&self.cache, GuestAddr(0), &self.memory, self.mode);
    }

    /// A page becomes one with code; no block is made.
    fn claim(&self, page: usize) {
        let guest = GuestAddr((page * PageSize::host().bytes()) as u64);
        self.cache.begin(Key::from(guest)).claim(guest).expect("an open page");
    }

    fn commit(&self, index: usize, has_source: bool) {
        let guest = GuestAddr(index as u64 * BLOCK_BYTES);
        let mut ticket = self.cache.begin(Key::from(guest));
        if has_source {
            ticket.read(guest, &mut [0; BLOCK_BYTES as usize]).expect("an open page");
        } else {
            ticket.claim(guest).expect("an open page");
        }
        ticket.commit(guest.0 as usize + 0x1000, ()).expect("no thread writes");
    }

    /// The memory that `work` takes, for `units` things.
    fn taken(&self, what: &str, units: usize, work: impl FnOnce()) -> Taken {
        let before = (self.cache.footprint().bytes(), heap_bytes());
        work();
        let after = (self.cache.footprint().bytes(), heap_bytes());
        let (what, mode) = (what.into(), self.mode);
        let (counted_bytes, heap_bytes) = (after.0 - before.0, after.1.saturating_sub(before.1));
        Taken { what, mode, units, counted_bytes, heap_bytes }
    }
}

fn of_mode(mode: Mode, blocks: usize) -> Vec<Taken> {
    let cache = Cache::new(mode);
    let gib = cache.taken("a tracked GiB without code", 1, || cache.track());
    let pages_of_2_mib = (2 << 20) / PageSize::host().bytes();
    let every = |step: usize, units: usize| {
        let cache = Cache::new(mode);
        cache.track();
        let what = match step {
            1 => "a page with code, all of them together".into(),
            step => format!("a page with code, each {step} pages from the next"),
        };
        cache.taken(&what, units, || (0..units).for_each(|index| cache.claim(index * step)))
    };
    let of_blocks = |what: &str, has_source| {
        let cache = Cache::new(mode);
        cache.track();
        (0..blocks).step_by(16).for_each(|index| {
            cache.claim(index * BLOCK_BYTES as usize / PageSize::host().bytes());
        });
        let mut taken = cache.taken(what, blocks, || (0..blocks).for_each(|index| cache.commit(index, has_source)));
        let footprint = cache.cache.footprint();
        let [record, cell, table] = [footprint.live.record_bytes, footprint.cell_bytes, footprint.table_bytes];
        let [record, cell, table] = [record, cell, table].map(|bytes| bytes / blocks);
        taken.what += &format!(": record {record}, cell {cell}, table {table}");
        taken
    };
    let mut taken = vec![gib, every(1, 4 * pages_of_2_mib), every(16, 256), every(pages_of_2_mib, 64)];
    if mode == Mode::None {
        taken.push(of_blocks("a block", false));
        taken.push(of_blocks("a block with its source, 64 bytes", true));
    }
    taken
}

/// The table, in markdown. `blocks` blocks show the memory of one.
pub fn markdown(modes: &[Mode], blocks: usize) -> String {
    let mut table = String::from("| what | mode | counted, bytes | heap, bytes |\n|---|---|---:|---:|\n");
    for taken in modes.iter().flat_map(|&mode| of_mode(mode, blocks)) {
        let Taken { what, mode, units, counted_bytes, heap_bytes } = taken;
        let _ = writeln!(table, "| {what} | {mode} | {} | {} |", counted_bytes / units, heap_bytes / units);
    }
    table
}
