//! The forking thread's holds go on in the child too, until it drops them. The holds of the
//! parent's other threads do not, as the child has no thread to drop them. A change of mappings
//! over a fork ends on both sides.
//!
//! One process forks here, so one test runs everything.
//!
//! # Safety
//!
//! The only locks of other threads that the child's calls need are the cache's own, which the
//! fork guard holds. Memory outlives its cache. A mapping is replaced by fresh memory, under a
//! change.
#![allow(unsafe_code)]

#[path = "support/child.rs"]
mod child;
#[path = "support/limit.rs"]
mod limit;
mod support;

use std::sync::Barrier;

use codewarden::Key;
use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Access;
use codewarden::tracker::{BeginError, MappingChange};

use crate::child::{Ended, in_child};
use crate::support::{Fixture, GUEST, in_modes, page_bytes, tracking_modes};

fn at(page: usize) -> GuestAddr {
    GuestAddr(GUEST + (page * page_bytes()) as u64)
}

/// Whether a translator is refused on `page`, once other threads are done with it.
fn is_held(guest: &Fixture, page: usize) -> bool {
    match guest.cache.begin(Key::new(0)).claim(at(page)) {
        Ok(_) => false,
        Err(BeginError::Busy(_)) => true,
        Err(error) => panic!("{error}"),
    }
}

/// Whether the kernel's write of a byte of `page` passes, as one for the guest.
fn kernel_writes(guest: &Fixture, page: usize) -> bool {
    let source = GuestMemory::memfd(1).unwrap();
    let into = guest.memory.range().start().as_ptr().wrapping_add(page * page_bytes());
    let file = std::os::fd::AsRawFd::as_raw_fd(&source.file().unwrap());
    // SAFETY: one byte of the guest's memory.
    unsafe { libc::pread(file, into.cast(), 1, 0) == 1 }
}

fn replace(guest: &Fixture, page: usize) {
    let start = guest.memory.range().start().as_ptr().wrapping_add(page * page_bytes());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: a page of the guest's memory, under a change of mappings.
    let mapped = unsafe { libc::mmap(start.cast(), page_bytes(), libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_eq!(mapped, start.cast());
}

/// A block on `page` is made, written to and gone: the page is tracked.
fn is_tracked(guest: &Fixture, page: usize) -> bool {
    let key = at(page).0;
    guest.translate(key, &[key]).unwrap();
    let was_there = guest.lookup(key).is_some();
    guest.store(key, guest.read(key).wrapping_add(1));
    guest.announce();
    was_there && guest.lookup(key).is_none()
}

/// Runs one side of the fork to its end; returns the number of the first fault, or 0.
fn one_side(guest: &Fixture, is_child: bool, held: impl Sized, change: MappingChange) -> u8 {
    let checks = [
        is_held(guest, 1) && is_held(guest, 3),
        kernel_writes(guest, 1),
        is_held(guest, 2) != is_child,
        !is_held(guest, 4),
    ];
    if let Some(wrong) = checks.iter().position(|is_right| !is_right) {
        return 1 + wrong as u8;
    }
    drop(held);
    replace(guest, 3);
    if change.finish_replaced(Access::ReadWrite, None).is_err() {
        return 5;
    }
    if is_tracked(guest, 1) && is_tracked(guest, 3) { 0 } else { 6 }
}

fn holds_go_over(guest: &Fixture) {
    let mode = guest.mode;
    let tracker = guest.cache.tracker();
    let held = tracker.prepare_unseen_write(at(1), 4).unwrap();
    let change = tracker.change_mapping(at(3), 1).unwrap();
    let (taken, over) = (Barrier::new(2), Barrier::new(2));
    let status = std::thread::scope(|scope| {
        scope.spawn(|| {
            // An address of its own, for which the child has no thread.
            let _others = tracker.prepare_unseen_write(at(2), 4).unwrap();
            taken.wait();
            over.wait();
        });
        taken.wait();
        let guard = guest.cache.before_fork();
        let mut both = Some((held, change));
        let status = in_child(|| {
            guard.after_fork_child().unwrap();
            let (held, change) = both.take().unwrap();
            one_side(guest, true, held, change)
        });
        let (held, change) = both.unwrap();
        assert_eq!(one_side(guest, false, held, change), 0, "{mode}: the parent");
        over.wait();
        status
    });
    assert_eq!(status, Ended::Returned(0), "{mode}: the child's status");
    assert!(is_tracked(guest, 2), "{mode}");
}

#[test]
fn what_the_forking_thread_holds_is_held_in_the_child() {
    in_modes(tracking_modes(), holds_go_over);
}
