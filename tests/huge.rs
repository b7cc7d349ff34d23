//! A region of 2^46 bytes costs as much as one of 1 MiB: tables follow the pages that were
//! translated from.
//!
//! # Safety
//!
//! The memory is mapped here and outlives its cache.
#![allow(unsafe_code)]

#[path = "support/heap.rs"]
mod heap;
#[path = "support/modes.rs"]
mod modes;

use codewarden::addr::{GuestAddr, HostAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, EntryStubs, Key};
use heap::Heap;
use modes::tracking_modes;

const SMALL_BYTES: usize = 1 << 20;
/// Half of a process's address space.
const HUGE_BYTES: usize = 1 << 46;
/// Nodes of the tables on the way to the last page.
const ROUGH_BYTES: u64 = 128 << 10;

/// The cost: bytes of the heap with the region in use, and after its end; calls to the kernel.
#[derive(Debug)]
struct Cost {
    live_bytes: u64,
    left_bytes: u64,
    protection_calls: u64,
}

/// A guest with code on its first page and on its last one.
fn cost(mode: Mode, len_bytes: usize) -> Cost {
    let page = PageSize::host().bytes();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, without users.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(start, libc::MAP_FAILED, "{len_bytes:#x} bytes: {}", std::io::Error::last_os_error());
    // SAFETY: it is unmapped below, behind the cache.
    let memory = unsafe { GuestMemory::from_raw(HostAddr::of(start), len_bytes, None) }.unwrap();
    let before = Heap::now().bytes;
    let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
    let options = RegionOptions::new(GuestAddr(0), memory.range(), mode).with_access(Access::None);
    // SAFETY: it outlives the cache.
    unsafe { cache.tracker().add_region(options) }.unwrap();
    for at in [0, len_bytes - page] {
        let pc = GuestAddr(at as u64);
        cache.tracker().set_access(pc, page as u64, Access::ReadWrite).unwrap();
        let mut ticket = cache.begin(Key::from(pc));
        ticket.claim(pc).unwrap();
        ticket.commit(0x10, ()).unwrap();
        memory.write(at, &[1]).unwrap();
        cache.tracker().sync().unwrap();
        let is_there = cache.attach_vcpu().pin().lookup(Key::from(pc)).is_some();
        assert_eq!(is_there, mode == Mode::None, "{mode}");
    }
    let live_bytes = Heap::now().bytes - before;
    cache.tracker().remove_region(GuestAddr(0)).unwrap();
    let protection_calls = cache.stats().protection_calls;
    drop(cache);
    let left_bytes = Heap::now().bytes.saturating_sub(before);
    drop(memory);
    // SAFETY: mapped above, and not used any more.
    assert_eq!(unsafe { libc::munmap(start, len_bytes) }, 0);
    Cost { live_bytes, left_bytes, protection_calls }
}

#[test]
fn the_size_of_a_region_costs_nothing() {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        // Makes everything that is made once for the process.
        cost(mode, SMALL_BYTES);
        let (small, huge) = (cost(mode, SMALL_BYTES), cost(mode, HUGE_BYTES));
        println!("{mode}: {small:?}, {huge:?}");
        assert!(huge.live_bytes < small.live_bytes + ROUGH_BYTES, "{mode}: {small:?}, {huge:?}");
        assert!(huge.left_bytes < small.left_bytes + ROUGH_BYTES, "{mode}: {small:?}, {huge:?}");
        assert_eq!(huge.protection_calls, small.protection_calls, "{mode}");
    }
}
