//! Memory that is unmapped or replaced while a store sleeps in a fault on it, or during a call
//! for a range.
//!
//! # Safety
//!
//! Unmaps and replaces pages of the fixture's own memory. The embedder must
//! announce that (`Tracker::change_mapping`); here it does not.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::Tracker;

use crate::scenario::{End, Gate, OTHERS, SYNCHRONOUS, byte_of, fixture, scenario};
use crate::support::{GUEST, PAGES, page_bytes, region};

pub(crate) fn unmap(memory: &GuestMemory, page: usize) {
    let at = memory.range().start().as_ptr().wrapping_add(page * page_bytes());
    // SAFETY: see the head.
    assert_eq!(unsafe { libc::munmap(at.cast(), page_bytes()) }, 0);
}

/// Fresh memory over the page, as MAP_FIXED does it.
pub(crate) fn replace(memory: &GuestMemory, page: usize) {
    let at = memory.range().start().as_ptr().wrapping_add(page * page_bytes());
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
    // SAFETY: see the head.
    let mapped = unsafe { libc::mmap(at.cast(), page_bytes(), access, flags, -1, 0) };
    assert!(ptr::eq(mapped, at.cast()));
}

/// A store faults on page 1 and is held there, asleep or in its handler, while
/// `change` changes the mapping.
fn under_a_store(mode: Mode, change: impl Fn(&GuestMemory)) {
    let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
    let gate = Arc::new(Gate::default());
    let tracker = Tracker::new(gate.clone());
    // SAFETY: the memory outlives the tracker.
    unsafe { tracker.add_region(region(GUEST, &memory, mode)) }.unwrap();
    tracker.begin(GuestAddr(byte_of(1))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| memory.write(page_bytes() + 100, &[7]).unwrap());
        gate.await_fault();
        change(&memory);
        gate.let_go();
    });
    let mut byte = [0];
    memory.read(page_bytes() + 100, &mut byte).unwrap();
    assert_eq!(byte, [7], "the store was lost");
    drop(tracker);
}

/// The store goes to the memory that is there now.
#[test]
fn replaced_under_a_sleeping_store() {
    scenario("address_space::replaced_under_a_sleeping_store", &SYNCHRONOUS, End::Well, |mode| {
        under_a_store(mode, |memory| replace(memory, 1));
    });
}

/// The store has no memory to go to. It ends by SIGSEGV, as any such store does, and does not
/// sleep.
#[test]
fn unmapped_under_a_sleeping_store() {
    let end = End::Signal(libc::SIGSEGV);
    scenario("address_space::unmapped_under_a_sleeping_store", &SYNCHRONOUS, end, |mode| {
        under_a_store(mode, |memory| unmap(memory, 1));
    });
}

/// In modes in which no store sleeps none is caught: each goes to the present memory.
#[test]
fn replaced_under_stores_that_never_sleep() {
    let modes = [Mode::Deferred, Mode::None];
    scenario("address_space::replaced_under_stores_that_never_sleep", &modes, End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| (0..10_000).for_each(|_| guest.store(byte_of(1), 1)));
            while !writer.is_finished() {
                replace(&guest.memory, 1);
            }
        });
        guest.expect_dead(1);
    });
}

/// The right way, with stores on the page all the while: no store is lost in a fault, and each
/// new mapping is tracked.
#[test]
fn replaced_as_announced_under_stores() {
    scenario("address_space::replaced_as_announced_under_stores", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..2_usize {
                let (guest, stop) = (&guest, &stop);
                scope.spawn(move || {
                    while !stop.load(SeqCst) {
                        guest.store(byte_of(1) + 200 + writer as u64, 1);
                        std::thread::yield_now();
                    }
                });
            }
            for _ in 0..50 {
                let _ = guest.begin_error(1);
                let change = guest.cache.tracker().change_mapping(GuestAddr(byte_of(1)), 1).unwrap();
                replace(&guest.memory, 1);
                change.finish_replaced(Access::ReadWrite, None).unwrap();
            }
            stop.store(true, SeqCst);
        });
        guest.expect_tracked(1);
    });
}

/// A call that meets a hole half way still does the rest.
#[test]
fn a_hole_in_a_range() {
    scenario("address_space::a_hole_in_a_range", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        for page in [1, 2, 4, 5] {
            guest.block(page);
        }
        unmap(&guest.memory, 3);
        let held = guest.cache.tracker().prepare_unseen_write(GuestAddr(GUEST), (PAGES * page_bytes()) as u64);
        for page in [1, 2, 4, 5] {
            guest.expect_dead(page);
        }
        drop(held.unwrap());
        guest.expect_tracked(4);
        guest.block(5);
        // The end of the region meets the hole as well.
        guest.cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
        guest.expect_dead(5);
        guest.store_to(5);
    });
}

/// A page's mapping was replaced without an announcement: no new block is made from it, and
/// its neighbours work as before.
#[test]
fn a_replaced_page_without_an_announcement() {
    scenario("address_space::a_replaced_page_without_an_announcement", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(2);
        replace(&guest.memory, 3);
        if OTHERS.contains(&mode) {
            // `mprotect` protects the present memory.
            return guest.expect_tracked(3);
        }
        let error = guest.begin_error(3).expect("the page is not tracked");
        println!("{error}");
        guest.store_to(3);
        guest.expect_tracked_or_lost(2);
        guest.expect_tracked_or_lost(4);
        // The remedy is the announcement, even if it comes late.
        let change = guest.cache.tracker().change_mapping(GuestAddr(byte_of(3)), 1).unwrap();
        change.finish_replaced(Access::ReadWrite, None).unwrap();
        guest.expect_tracked_or_lost(3);
    });
}

/// A deferred region learns even of the replacement of a page with blocks on it,
/// at its next announcement.
#[test]
fn a_replaced_page_with_blocks() {
    scenario("address_space::a_replaced_page_with_blocks", &[Mode::Deferred], End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(3);
        replace(&guest.memory, 3);
        assert!(guest.cache.tracker().sync().is_err());
        guest.expect_dead(3);
    });
}
