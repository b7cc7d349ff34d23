//! Changes of mappings: access, discards, `MAP_FIXED`, `mremap`.
//!
//! # Safety
//!
//! The tests change their own mappings, which no other code uses.
#![allow(unsafe_code)]

use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use super::fixture::{Fixture, PAGES, SYNC, store_sleeps};
use crate::error::Error;
use crate::sys::mmap::Mapping;
use crate::sys::uffd_calls;

#[test]
fn dontneed_loses_protection_on_anonymous_memory_and_keeps_it_on_a_memfd() {
    for fixture in Fixture::sync_on_both() {
        fixture.store(1, 1);
        fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
        let (start, len) = fixture.raw(1, 2);
        // SAFETY: drops pages of the fixture's own mapping.
        unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontNeed) }.unwrap();
        let kept: &[usize] = if fixture.file.is_some() { &[0, 1, 2, 3] } else { &[0, 3] };
        assert_eq!(fixture.protected(), kept);
    }
}

#[test]
fn protection_survives_the_guests_mprotect() {
    for fixture in Fixture::sync_on_both() {
        fixture.store(1, 1);
        fixture.uffd.protect(fixture.pages(1, 2)).unwrap();
        let (start, len) = fixture.raw(0, 4);
        for access in [MprotectFlags::READ, MprotectFlags::empty(), MprotectFlags::READ | MprotectFlags::WRITE] {
            // SAFETY: the fixture's own mapping, which no code uses meanwhile.
            unsafe { rustix::mm::mprotect(start, len, access) }.unwrap();
        }
        assert_eq!(fixture.protected(), [1, 2]);
        fixture.with_sleeper(1, || fixture.uffd.unprotect(fixture.pages(1, 1)).unwrap());
    }
}

#[test]
fn map_fixed_loses_protection_and_registration() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let (start, len) = fixture.raw(1, 1);
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: replaces a page of the fixture's own mapping.
    unsafe { rustix::mm::mmap_anonymous(start, len, access, flags) }.unwrap();
    assert_eq!(fixture.protected(), [0, 2, 3]);
    let error = fixture.uffd.protect(fixture.pages(0, 4)).unwrap_err();
    assert!(matches!(error, Error::System { errno: libc::ENOENT, .. }), "{error}");
}

#[test]
fn mremap_loses_protection_and_registration() {
    let fixture = Fixture::new(SYNC, false);
    fixture.store(1, 1);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let target = Mapping::anonymous(fixture.page.bytes(), fixture.page).unwrap();
    let to = target.range();
    let (start, len) = fixture.raw(1, 1);
    // SAFETY: moves a page of the fixture over a mapping that the test owns.
    unsafe {
        rustix::mm::mremap_fixed(start, len, len, MremapFlags::MAYMOVE, to.start().as_ptr().cast()).unwrap();
        to.start().as_ptr().write_volatile(5); // does not sleep
    }
    assert!(!store_sleeps(&fixture.uffd, to.start()));
    assert!(fixture.uffd.protect(to).is_err());
}

#[test]
fn scattered_protections_stay_in_one_vma() {
    let fixture = Fixture::new(SYNC, false);
    for page in (0..PAGES).step_by(2) {
        fixture.uffd.protect(fixture.pages(page, 1)).unwrap();
    }
    let vma = region::query(fixture.at(1).as_ptr()).unwrap().as_range();
    assert!(vma.start <= fixture.at(0).0 && vma.end >= fixture.memory.range().end().0);
    assert_eq!(fixture.protected(), [0, 2, 4, 6]);
}

#[test]
fn an_unregistered_piece_ends_the_ioctl_after_a_part_was_applied() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.unregister(fixture.pages(2, 1)).unwrap();
    let (start, len) = (fixture.at(0).0, 4 * fixture.page.bytes());
    // Not piece by piece, as the library does it.
    assert!(uffd_calls::protect(fixture.uffd.copies()[0], start, len).is_err());
    // A call over several mappings does nothing on older kernels (6.1 is one).
    let protected = fixture.protected();
    assert!(protected == [0, 1] || protected.is_empty(), "{protected:?}");
}

/// A move of registered memory registers the mapping that results for nothing. Memory that was never touched
/// is merged with its neighbours if they have the same registration, and these are then tracked no
/// more. Memory without a registration is not merged with them.
#[test]
fn mremap_of_untouched_memory_takes_the_registration_of_its_neighbours() {
    for is_registered in [true, false] {
        let fixture = Fixture::new(SYNC, false);
        let moved = Mapping::anonymous(fixture.page.bytes(), fixture.page).unwrap();
        if is_registered {
            fixture.uffd.register(moved.range()).unwrap();
        }
        let (to, len) = fixture.raw(2, 1);
        let from = moved.range().start().as_ptr().cast();
        // SAFETY: moves a mapping of the test's over a page of the fixture, and takes its old place again.
        unsafe {
            rustix::mm::mremap_fixed(from, len, len, MremapFlags::MAYMOVE, to).unwrap();
            let (access, flags) = (ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::FIXED);
            rustix::mm::mmap_anonymous(from, len, access, flags).unwrap();
        }
        let tracked: Vec<_> = (0..PAGES).filter(|page| fixture.uffd.protect(fixture.pages(*page, 1)).is_ok()).collect();
        let others: &[usize] = &[0, 1, 3, 4, 5, 6, 7];
        assert_eq!(tracked, if is_registered { &[] } else { others }, "registered: {is_registered}");
    }
}
