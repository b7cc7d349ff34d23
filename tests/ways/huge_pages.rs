//! Transparent huge pages: what is protected is 4 KiB of one, and the kernel splits
//! it. Whether it stays whole where all of it is protected is a fact of the kernel
//! (`sys/kernel_facts.rs`).
//!
//! # Safety
//!
//! Advice and stores are for the fixture's own memory.
#![allow(unsafe_code)]

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use rustix::mm::Advice;

use crate::support::{Fixture, page_bytes, skip, tracking_modes};

const HUGE_BYTES: usize = 2 << 20;

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

/// A fixture with one huge page, and the number of its first page.
fn with_huge_page(mode: Mode) -> Option<(Fixture, usize)> {
    let memory = GuestMemory::anonymous(2 * HUGE_BYTES).unwrap();
    let start = memory.range().start().0;
    let aligned = start.next_multiple_of(HUGE_BYTES);
    let huge = aligned as *mut core::ffi::c_void;
    // SAFETY: in the memory.
    unsafe { rustix::mm::madvise(huge, HUGE_BYTES, Advice::LinuxHugepage) }.ok()?;
    memory.write(aligned - start, &vec![1; HUGE_BYTES]).unwrap();
    let guest = Fixture::new(mode, memory);
    (huge_kib(aligned) >= HUGE_BYTES >> 10).then_some((guest, (aligned - start) / page_bytes()))
}

#[test]
fn pages_of_a_huge_page_are_told_apart() {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        // Another test that forks at the wrong moment splits it.
        let Some((guest, first)) = (0..50).find_map(|_| with_huge_page(mode)) else {
            return skip(&"no huge page was to be had");
        };
        // One page protected and its neighbours not, then the other way round.
        let block = guest.block(first + 7, 3);
        for page in [first, first + 6, first + 8, first + HUGE_BYTES / page_bytes() - 1] {
            guest.store(guest.guest(page, 3).0, 2);
        }
        guest.expect_reachable(block);
        guest.store(guest.guest(first + 7, 3).0, 2);
        guest.expect_learned(block);

        let blocks: Vec<_> = (first..first + HUGE_BYTES / page_bytes()).map(|page| guest.block(page, 9)).collect();
        for page in [first, first + 100, first + HUGE_BYTES / page_bytes() - 1] {
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
