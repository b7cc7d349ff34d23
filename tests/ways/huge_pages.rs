//! Transparent huge pages. If one page of a huge page is protected, the kernel splits it. If all
//! of it is protected by one call, it stays whole.
//!
//! # Safety
//!
//! Advice and stores are for the fixture's own memory.
#![allow(unsafe_code)]

use std::sync::Arc;

use codewarden::addr::{GuestAddr, HostAddr};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Decision, Limits, PageHistory, Policy};
use codewarden::protection::{Access, Facility, Mode, Probe};
use codewarden::{CodeCache, EntryStubs};
use rustix::mm::Advice;

use crate::support::{Fixture, GUEST, page_bytes, region, skip, tracking_modes};

/// The bytes of a huge page: one page of the page table leads to all of them.
fn huge_bytes() -> usize {
    page_bytes() / size_of::<u64>() * page_bytes()
}

/// The kibibytes of huge pages in the mapping that holds `address`.
fn huge_kib(address: usize) -> usize {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut within = false;
    for line in maps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            within = (number(start)..number(end)).contains(&address);
        } else if within && first == "AnonHugePages:" {
            return line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
    }
    0
}

/// Memory with one huge page, and the number of its first page.
fn with_huge_page() -> Option<(GuestMemory, usize)> {
    let memory = GuestMemory::anonymous(2 * huge_bytes()).unwrap();
    let start = memory.range().start().0;
    let aligned = start.next_multiple_of(huge_bytes());
    let huge = aligned as *mut core::ffi::c_void;
    // SAFETY: in the memory.
    unsafe { rustix::mm::madvise(huge, huge_bytes(), Advice::LinuxHugepage) }.ok()?;
    memory.write(aligned - start, &vec![1; huge_bytes()]).unwrap();
    (huge_kib(aligned) >= huge_bytes() >> 10).then_some((memory, (aligned - start) / page_bytes()))
}

/// Protects a huge page at once, if the guest may not write to it.
#[derive(Debug)]
struct WholeHugePages;

impl Policy for WholeHugePages {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        Decision::Protect
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        false
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        Limits::default().with_protect_batch(huge_bytes() / page_bytes())
    }
}

/// A segment that the guest may not write to is protected whole. The huge page stays one until
/// the guest writes, even after the guest may write again. (Deferred mode protects harvested
/// pages one by one, which splits it.)
#[test]
fn a_read_only_segment_stays_whole() {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        // A kernel before 6.4 is asked for parts of a huge page only.
        let in_parts =
            matches!(mode, Mode::Sigbus | Mode::Thread) && !Probe::of_this_process().has(Facility::WpUnpopulated);
        let stays_whole = mode != Mode::Deferred && !in_parts;
        let Some((memory, first)) = (0..50).find_map(|_| with_huge_page()) else {
            return skip(&"no huge page was to be had");
        };
        let start = HostAddr(memory.range().start().0 + first * page_bytes());
        // SAFETY: a part of the memory above, which outlives it.
        let huge = unsafe { GuestMemory::from_raw(start, huge_bytes(), None) }.unwrap();
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(WholeHugePages)).unwrap();
        // SAFETY: as above; the cache is dropped before the memory.
        unsafe { cache.tracker().add_region(region(GUEST, &huge, mode)) }.unwrap();
        let guest = Fixture { cache, memory: huge, mode };
        let set = |access| guest.cache.tracker().set_access(GuestAddr(GUEST), huge_bytes() as u64, access).unwrap();
        set(Access::Read);
        let blocks = [0, 7, huge_bytes() / page_bytes() - 1].map(|page| guest.block(page, 3));
        if stays_whole {
            assert_eq!(huge_kib(start.0), huge_bytes() >> 10, "{mode}: protecting all of it split it");
        }
        set(Access::ReadWrite);
        assert!(blocks.iter().all(|block| guest.is_reachable(*block)));
        guest.store(guest.guest(7, 100).0, 5);
        let may_stay = matches!(mode, Mode::Mprotect | Mode::None);
        assert!(may_stay || huge_kib(start.0) < huge_bytes() >> 10, "{mode}");
        guest.expect_learned(blocks[1]);
        guest.expect_reachable(blocks[0]);
        guest.expect_reachable(blocks[2]);
    }
}

#[test]
fn pages_of_a_huge_page_are_distinguished() {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        // Another test's fork at the wrong moment splits it.
        let Some((memory, first)) = (0..50).find_map(|_| with_huge_page()) else {
            return skip(&"no huge page was to be had");
        };
        let guest = Fixture::new(mode, memory);
        // One page is protected and its neighbours are not, then the other way round.
        let block = guest.block(first + 7, 3);
        for page in [first, first + 6, first + 8, first + huge_bytes() / page_bytes() - 1] {
            guest.store(guest.guest(page, 3).0, 2);
        }
        guest.expect_reachable(block);
        guest.store(guest.guest(first + 7, 3).0, 2);
        guest.expect_learned(block);

        let blocks: Vec<_> = (first..first + huge_bytes() / page_bytes()).map(|page| guest.block(page, 9)).collect();
        for page in [first, first + 100, first + huge_bytes() / page_bytes() - 1] {
            guest.store(guest.guest(page, 9).0, 3);
            guest.expect_learned(blocks[page - first]);
        }
        let alive = blocks.iter().filter(|block| guest.is_reachable(**block)).count();
        let dead = if mode == Mode::None { 0 } else { 3 };
        assert_eq!(alive, blocks.len() - dead, "{mode}");
        assert_eq!(guest.bytes(first + 100, 9, 1), [3]);
        assert_eq!(guest.bytes(first + 101, 9, 1), [1]);
    }
}
