//! What the process has of the system, and what its heap holds to the byte.
//!
//! Resident memory is what a person asks for, and is rough: pages that were touched
//! once, and the allocator's holes. The heap counts each allocation, so that what is
//! forgotten shows long before it fills a page.
//!
//! # Safety
//!
//! The allocator hands everything on to the system's and counts beside it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use codewarden::Footprint;
use codewarden::code_buffer::CodeBufferStats;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static HEAP: Counting = Counting;

fn add(len_bytes: usize) {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    BYTES.fetch_add(len_bytes as u64, Ordering::Relaxed);
}

fn sub(len_bytes: usize) {
    ALLOCATIONS.fetch_sub(1, Ordering::Relaxed);
    BYTES.fetch_sub(len_bytes as u64, Ordering::Relaxed);
}

// SAFETY: all is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, len_bytes: usize) -> *mut u8 {
        sub(layout.size());
        add(len_bytes);
        // SAFETY: as above.
        unsafe { System.realloc(memory, layout, len_bytes) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        sub(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// What was allocated and not freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Heap {
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
}

impl Heap {
    pub(crate) fn now() -> Self {
        Self { allocations: ALLOCATIONS.load(Ordering::Relaxed), bytes: BYTES.load(Ordering::Relaxed) }
    }
}

/// What there is at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) resident_bytes: u64,
    pub(crate) mappings: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    pub(crate) heap: Heap,
    pub(crate) footprint: Footprint,
    pub(crate) buffer: CodeBufferStats,
}

impl Taken {
    pub(crate) fn now(footprint: Footprint, buffer: CodeBufferStats, page_bytes: u64) -> Self {
        let count = |path: &str| fs::read_dir(path).map_or(0, Iterator::count) as u64;
        let lines = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count()) as u64;
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        Self {
            resident_bytes: pages.unwrap_or(0) * page_bytes,
            mappings: lines("/proc/self/maps"),
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            heap: Heap::now(),
            footprint,
            buffer,
        }
    }

    /// What the heap holds beside what the cache says of itself.
    pub(crate) fn untold_bytes(&self) -> i64 {
        let Footprint { live, former, waiting, cell_bytes, table_bytes, page_bytes, .. } = self.footprint;
        let records = live.record_bytes + former.record_bytes + waiting.record_bytes;
        self.heap.bytes as i64 - (records + cell_bytes + table_bytes + page_bytes) as i64
    }

    /// What the heap holds beside what waits for vCPUs to leave.
    pub(crate) fn settled_bytes(&self) -> i64 {
        self.heap.bytes as i64 - self.footprint.waiting.record_bytes as i64
    }
}
