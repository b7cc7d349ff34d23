//! Discarded contents. The kernel may keep the protection of a page and drop its contents. So
//! an embedder announces each discard by
//! [`change_mapping`](codewarden::tracker::Tracker::change_mapping), whether or not the kernel
//! keeps the protection.
//!
//! # Safety
//!
//! Pages of the fixture's own memory lose their contents.
#![allow(unsafe_code)]

use core::ffi::c_int;
use std::fs::File;
use std::os::unix::fs::FileExt;

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use rustix::fs::FallocateFlags;
use rustix::mm::Advice;

use crate::expect::in_every_mode;
use crate::support::{Fixture, PAGES, page_bytes, skip, tracking_modes};

const AT: usize = 5;

impl Fixture {
    fn advise(&self, page: usize, advice: Advice) {
        // SAFETY: a page of the fixture's memory; no reference to its bytes exists.
        unsafe { rustix::mm::madvise(self.host(page, 0).cast(), page_bytes(), advice) }.unwrap();
    }

    fn is_anonymous(&self) -> bool {
        self.memory.file().is_none()
    }

    fn set_byte(&self, page: usize) {
        self.store(self.guest(page, AT).0, 9);
    }

    /// Discards contents as an embedder must.
    fn announced(&self, page: usize, throw: impl FnOnce()) {
        let len = page_bytes() as u64;
        let change = self.cache.tracker().change_mapping(self.guest(page, 0), len).unwrap();
        throw();
        drop(change);
    }

    /// The announced way: dead at once, zeroes, tracked as before.
    fn expect_thrown_away(&self, page: usize, throw: impl Fn(usize)) {
        self.set_byte(page);
        let (block, other) = (self.block(page, AT), self.block(page + 1, AT));
        self.announced(page, || throw(page));
        self.expect_dead(block);
        self.expect_reachable(other);
        assert_eq!(self.bytes(page, AT, 1), [0], "{}", self.mode);
        self.expect_tracked(page, AT);
    }

    /// Discarded without an announcement: the page then holds `byte`, and the protection is still
    /// there, so a store is learned of.
    fn expect_missed_but_protected(&self, page: usize, byte: u8, throw: impl Fn(usize)) {
        self.set_byte(page);
        let block = self.block(page, AT);
        throw(page);
        assert_eq!(self.bytes(page, AT, 1), [byte], "{}", self.mode);
        self.expect_reachable(block);
        self.set_byte(page);
        self.expect_learned(block);
    }
}

#[test]
fn dontneed_on_anonymous_memory() {
    in_every_mode(|guest| {
        if !guest.is_anonymous() {
            return;
        }
        let throw = |page| guest.advise(page, Advice::LinuxDontNeed);
        guest.expect_thrown_away(1, throw);

        // Unannounced: the protection is lost with the contents.
        guest.set_byte(4);
        let block = guest.block(4, AT);
        throw(4);
        assert_eq!(guest.bytes(4, AT, 1), [0]);
        if guest.mode == Mode::Deferred {
            guest.expect_dead(block); // reported as written
        } else {
            guest.expect_reachable(block);
        }
    });
}

/// The contents are the memfd's; the protection stays.
#[test]
fn dontneed_on_a_memfd() {
    in_every_mode(|guest| {
        if guest.is_anonymous() {
            return;
        }
        guest.expect_missed_but_protected(1, 9, |page| guest.advise(page, Advice::LinuxDontNeed));
    });
}

/// The contents go when the kernel wants the memory; a pageout makes it want it.
#[test]
fn free() {
    in_every_mode(|guest| {
        if !guest.is_anonymous() {
            return;
        }
        // Not reclaimed yet: no change so far.
        guest.set_byte(1);
        let block = guest.block(1, AT);
        guest.advise(1, Advice::LinuxFree);
        guest.expect_reachable(block);
        guest.set_byte(1);
        assert_eq!(guest.bytes(1, AT, 1), [9]);
        guest.expect_learned(block);

        guest.set_byte(3);
        let block = guest.block(3, AT);
        guest.announced(3, || {
            guest.advise(3, Advice::LinuxFree);
            guest.advise(3, Advice::LinuxPageOut);
        });
        guest.expect_dead(block);
        guest.expect_tracked(3, AT);
    });
}

/// Whether the page table leads to the page.
fn is_mapped(at: *const u8) -> bool {
    const PRESENT: u64 = 1 << 63;
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    pagemap.read_exact_at(&mut entry, (at as usize / page_bytes() * 8) as u64).unwrap();
    u64::from_ne_bytes(entry) & PRESENT != 0
}

impl Fixture {
    /// Returns whether the page left. The kernel leaves a page that it is using for later.
    fn pages_out(&self, page: usize) -> bool {
        if let Some(view) = self.memory.host_view() {
            // The kernel does not page out a page that is mapped twice, and the host has read it.
            let mapped = view.as_ptr().wrapping_add(page * page_bytes());
            // SAFETY: the contents are the memfd's and stay.
            unsafe { rustix::mm::madvise(mapped.cast(), page_bytes(), Advice::LinuxDontNeed) }.unwrap();
        }
        (0..100).any(|_| {
            self.advise(page, Advice::LinuxPageOut);
            !is_mapped(self.host(page, 0))
        })
    }
}

/// The page leaves the page table, with the protection noted in it, and comes back with
/// both.
#[test]
fn pageout_of_a_memfd() {
    in_every_mode(|guest| {
        if guest.is_anonymous() {
            return;
        }
        guest.expect_missed_but_protected(1, 9, |page| {
            assert!(guest.pages_out(page), "{}: the page never left", guest.mode);
        });
    });
}

/// The same for anonymous memory, which can only go to swap. A machine without swap is fine,
/// so this never fails.
#[test]
fn pageout_to_swap() {
    in_every_mode(|guest| {
        if !guest.is_anonymous() {
            return;
        }
        guest.set_byte(3);
        if !guest.pages_out(3) {
            return println!("skipped: the page never left; this machine has no swap");
        }
        guest.expect_missed_but_protected(1, 9, |page| {
            assert!(guest.pages_out(page), "{}: the page never left", guest.mode);
        });
    });
}

/// The kernel merges equal pages (KSM) and forgets their protection. So a region's memory is taken
/// out of it when the region is added, and when a mapping is declared.
#[test]
fn merging_of_equal_pages() {
    let is_mergeable = |guest: &Fixture, page| {
        let at = guest.host(page, 0) as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
            match bounds.and_then(|(start, end)| {
                Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
            }) {
                Some(range) => inside = range.contains(&at),
                None if inside && line.starts_with("VmFlags:") => return line.split(' ').any(|flag| flag == "mg"),
                None => {}
            }
        }
        panic!("{at:#x} is not mapped")
    };
    for mode in tracking_modes() {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        // SAFETY: changes no contents.
        if unsafe { libc::madvise(memory.range().start().as_ptr().cast(), PAGES * page_bytes(), libc::MADV_MERGEABLE) }
            != 0
        {
            return skip(&"this kernel merges no pages");
        }
        let guest = Fixture::new(mode, memory);
        assert_eq!(is_mergeable(&guest, 1), mode == Mode::Mprotect, "{mode}");
        guest.expect_tracked(1, AT);
    }
}

/// Guard pages take the contents away, and their removal leaves zeroes.
#[test]
fn guard_pages() {
    const INSTALL: c_int = 102;
    const REMOVE: c_int = 103;
    // SAFETY: pages of the fixture's memory, not touched while they are guards.
    let advise =
        |guest: &Fixture, page, advice| unsafe { libc::madvise(guest.host(page, 0).cast(), page_bytes(), advice) == 0 };
    in_every_mode(|guest| {
        if !guest.is_anonymous() {
            return;
        }
        if !advise(guest, 15, INSTALL) {
            return skip(&"no MADV_GUARD_INSTALL before Linux 6.13");
        }
        guest.expect_thrown_away(1, |page| {
            assert!(advise(guest, page, INSTALL) && advise(guest, page, REMOVE));
        });
    });
}

#[test]
fn a_hole_punched_into_a_memfd() {
    in_every_mode(|guest| {
        let Some(file) = guest.memory.file() else { return };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let throw = |page| {
            let (start, len) = ((page * page_bytes()) as u64, page_bytes() as u64);
            rustix::fs::fallocate(file, flags, start, len).unwrap();
        };
        guest.expect_missed_but_protected(1, 0, throw);
        guest.expect_thrown_away(3, throw);
    });
}

/// MADV_REMOVE is the same hole, by address.
#[test]
fn remove_on_a_memfd() {
    in_every_mode(|guest| {
        if guest.is_anonymous() {
            return;
        }
        // SAFETY: as in `advise`.
        let remove = |page| unsafe { libc::madvise(guest.host(page, 0).cast(), page_bytes(), libc::MADV_REMOVE) };
        if remove(15) != 0 {
            return skip(&"MADV_REMOVE is refused");
        }
        guest.expect_missed_but_protected(1, 0, |page| assert_eq!(remove(page), 0));
        guest.expect_thrown_away(3, |page| assert_eq!(remove(page), 0));
    });
}

/// `tests/host_faults.rs` has the page behind the end: a store there is the guest's own SIGBUS.
#[test]
fn truncation_and_extension() {
    in_every_mode(|guest| {
        let Some(file) = guest.memory.file() else { return };
        let throw = |page: usize| {
            rustix::fs::ftruncate(file, (page * page_bytes()) as u64).unwrap();
            rustix::fs::ftruncate(file, (PAGES * page_bytes()) as u64).unwrap();
        };
        guest.expect_missed_but_protected(12, 0, throw);
        // Everything behind the new end lost its contents; only this page is self-checking.
        guest.expect_thrown_away(10, throw);
    });
}
