//! Pages that were never touched, populated pages, and huge pages.
//!
//! # Safety
//!
//! Loads and stores go to the tests' own mappings, by raw pointers.
#![allow(unsafe_code)]

use rustix::mm::{Advice, MprotectFlags};

use super::fixture::{Fixture, POPULATED_ONLY, SYNC, descriptor, has_or_skips, huge_bytes, opened, store_sleeps};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::sys::child::{Ended, in_child};
use crate::sys::mmap::Mapping;
use crate::sys::pagemap::Pagemap;
use crate::sys::populate;
use crate::sys::probe::{Facility, Probe, skip};
use crate::sys::uffd::{Uffd, feature};

#[test]
fn only_a_descriptor_with_wp_unpopulated_protects_what_was_never_touched() {
    if has_or_skips(&[Facility::WpUnpopulated]) {
        let with = Fixture::new(SYNC, false);
        with.uffd.protect(with.pages(0, 2)).unwrap();
        assert_eq!(with.protected(), [0, 1]);
    }
    let without = Fixture::new(POPULATED_ONLY, false);
    without.uffd.protect(without.pages(0, 2)).unwrap();
    assert_eq!(without.protected(), []);
}

/// Kernels before 6.4, and later ones without `WP_UNPOPULATED`: one step to populate a page, then
/// the protecting call, then one step that might take the protection away.
#[test]
fn a_populated_page_is_protected_whatever_becomes_of_it() {
    type Step = fn(&Fixture);
    let nothing: Step = |_| ();
    let read: Step = |fixture| populate::read_byte(fixture.at(1)).unwrap();
    let written: Step = |fixture| fixture.store(1, 1);
    let paged_out: Step = |fixture| {
        fixture.store(1, 1);
        if !fixture.page_out(1) {
            eprintln!("skipped: the page never left; this machine has no swap");
        }
    };
    let forked: Step = |fixture| {
        fixture.store(1, 1);
        assert_eq!(in_child(|| 0), Ended::Returned(0));
    };
    let page_out: Step = |fixture| {
        fixture.page_out(1);
    };
    let fork: Step = |_| assert_eq!(in_child(|| 0), Ended::Returned(0));
    let no_access: Step = |fixture| {
        fixture.set_access(1, MprotectFlags::empty());
        fixture.set_access(1, MprotectFlags::READ | MprotectFlags::WRITE);
    };
    let discard: Step = |fixture| fixture.advise(1, Advice::LinuxDontNeed);
    let cases = [
        ("never touched", nothing, nothing, false),
        ("read: it is the zero page", read, nothing, true),
        ("the zero page, no access and back", read, no_access, true),
        ("the zero page, in a fork's parent", read, fork, true),
        ("written", written, nothing, true),
        ("paged out before", paged_out, nothing, true),
        ("paged out after", written, page_out, true),
        ("written, no access and back", written, no_access, true),
        ("shared with a fork's child before", forked, nothing, true),
        ("shared with a fork's child after", written, fork, true),
        ("discarded after", written, discard, false),
    ];
    for (name, before, after, is_protected) in cases {
        let fixture = Fixture::new(POPULATED_ONLY, false);
        before(&fixture);
        fixture.uffd.protect(fixture.pages(1, 1)).unwrap();
        after(&fixture);
        assert_eq!(store_sleeps(&fixture.uffd, fixture.at(1)), is_protected, "{name}");
    }
}

/// The contents of a page go some time after `MADV_FREE`, unless it is written before, and its
/// protection goes with them, on every kernel. The populating read does not keep the page either.
#[test]
fn a_page_that_is_freed_lazily_loses_its_protection_with_its_contents() {
    for features in [SYNC, POPULATED_ONLY] {
        for is_protected_first in [false, true] {
            let fixture = Fixture::new(features, false);
            let protect = || fixture.uffd.protect(fixture.pages(1, 1)).unwrap();
            fixture.store(1, 1);
            if is_protected_first {
                protect();
            }
            fixture.advise(1, Advice::LinuxFree);
            populate::read_byte(fixture.at(1)).unwrap();
            if !is_protected_first {
                protect();
            }
            if !fixture.page_out(1) {
                eprintln!("skipped: the page never left");
                continue;
            }
            // With swap it may have kept both: the kernel marks freed pages in batches, and swaps one that is not
            // marked yet.
            let has_contents = fixture.load(1) == 1;
            assert_eq!(store_sleeps(&fixture.uffd, fixture.at(1)), has_contents);
        }
    }
}

/// Part by part, as the library protects before 6.4, the pages of a huge page stay protected when
/// one of them is opened: of one with contents, and of the huge zero page.
#[test]
fn a_huge_page_that_is_protected_in_parts_is_protected_page_by_page() {
    let page = PageSize::host();
    for is_zero in [false, true] {
        let memory = Mapping::anonymous(2 * huge_bytes(), page).unwrap();
        let start = HostAddr(memory.range().start().0.next_multiple_of(huge_bytes()));
        let range = HostRange::of_pages(start, huge_bytes() >> page.shift(), page);
        // SAFETY: in the mapping, which no other code uses.
        let is_advised =
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), huge_bytes(), Advice::LinuxHugepage) }.is_ok();
        if !is_advised {
            return eprintln!("SKIPPED: this kernel has no huge pages");
        }
        if is_zero {
            populate::read_byte(start).unwrap();
        } else {
            // SAFETY: as above.
            unsafe { start.as_ptr().write_volatile(1) };
        }
        let populating = Probe::with_hidden("wp_unpopulated").check_of_populated();
        let uffd = Uffd::new(opened(), feature::WP, populating).unwrap();
        uffd.register(range).unwrap();
        uffd.protect(range).unwrap();
        let at = |index: usize| HostAddr(start.0 + (index << page.shift()));
        uffd.unprotect(HostRange::page_of(at(7), page)).unwrap();
        assert!(!store_sleeps(&uffd, at(7)));
        for index in [0, 6, 8, 63, 64, 300, (huge_bytes() >> page.shift()) - 1] {
            assert!(store_sleeps(&uffd, at(index)), "page {index}, zero: {is_zero}");
        }
        uffd.release(range).unwrap();
    }
}

/// A mapping with one huge page, and that page, if one is
/// available. Another test that forks while it is filled splits it.
fn huge_page() -> Option<(Mapping, HostRange)> {
    let page = PageSize::host();
    let pagemap = Pagemap::open(page).unwrap();
    (0..50).find_map(|_| {
        let memory = Mapping::anonymous(2 * huge_bytes(), page).unwrap();
        let start = HostAddr(memory.range().start().0.next_multiple_of(huge_bytes()));
        let range = HostRange::of_pages(start, huge_bytes() >> page.shift(), page);
        // SAFETY: in the mapping, which no other code uses.
        unsafe {
            rustix::mm::madvise(start.as_ptr().cast(), huge_bytes(), Advice::LinuxHugepage).ok()?;
            start.as_ptr().write_bytes(1, huge_bytes());
        }
        (pagemap.huge(range) == Ok(vec![range])).then_some((memory, range))
    })
}

#[test]
fn a_huge_page_stays_whole_where_all_of_it_is_protected() {
    if !has_or_skips(&[Facility::PagemapScan]) {
        return;
    }
    let Some((_memory, range)) = huge_page() else {
        return skip("no huge page was to be had");
    };
    let page = PageSize::host();
    let (uffd, pagemap) = (descriptor(SYNC), Pagemap::open(page).unwrap());
    uffd.register(range).unwrap();
    assert_eq!(pagemap.huge(range), Ok(vec![range]), "registering splits nothing");
    uffd.protect(range).unwrap();
    assert_eq!(pagemap.huge(range), Ok(vec![range]));
    assert_eq!(pagemap.protected(range), Ok(vec![range]));
    uffd.unprotect(range).unwrap();
    assert_eq!(pagemap.huge(range), Ok(vec![range]));
    let one = HostRange::page_of(HostAddr(range.start().0 + 7 * page.bytes()), page);
    uffd.protect(one).unwrap();
    assert_eq!(pagemap.protected(range), Ok(vec![one]));
    assert_eq!(pagemap.huge(range), Ok(vec![]), "one small page of it splits it");
}
