//! The forking thread's holds go on in the child too, until it drops them. The holds of the
//! parent's other threads do not, as the child has no thread to drop them. A change of mappings
//! over a fork ends on both sides. A fork waits for another thread that is moving a mapping.
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
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Access;
use codewarden::tracker::{BeginError, MappingChange, MovedFrom};
use codewarden::{CacheForkGuard, Key};

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

/// Moves the mapping of page 5 to page 7.
fn remap(guest: &Fixture) {
    let host = |page: usize| guest.memory.range().start().as_ptr().wrapping_add(page * page_bytes());
    let (from, to, bytes) = (host(5).cast(), host(7).cast(), page_bytes());
    // SAFETY: two pages of the guest's memory, under changes of mappings.
    let moved = unsafe { libc::mremap(from, bytes, bytes, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to) };
    assert_eq!(moved, to);
    // No hole for any mapping.
    replace(guest, 5);
}

/// In the child page 7 is tracked, and page 5 is known to be no mapping of the guest's.
fn is_moved(guest: &Fixture) -> bool {
    matches!(guest.cache.begin(Key::new(0)).claim(at(5)), Err(BeginError::Untrackable)) && is_tracked(guest, 7)
}

fn a_move_by_another_thread(guest: &Fixture) {
    let tracker = guest.cache.tracker();
    let (begun, is_over) = (Barrier::new(2), AtomicBool::new(false));
    let ended = std::thread::scope(|scope| {
        // Begun by the thread that forks, and moved by another.
        let change = tracker.change_mapping(at(5), 1).unwrap();
        let (begun, is_over) = (&begun, &is_over);
        scope.spawn(move || {
            let source = change.moving().unwrap();
            begun.wait();
            // Time for a fork that does not wait.
            std::thread::sleep(Duration::from_millis(50));
            let target = tracker.change_mapping(at(7), 1).unwrap();
            remap(guest);
            is_over.store(true, SeqCst);
            target.finish_moved(source, MovedFrom::Unmapped).unwrap();
        });
        begun.wait();
        let guard = guest.cache.before_fork();
        assert!(is_over.load(SeqCst), "{}: forked in the middle of a move", guest.mode);
        in_child(|| {
            guard.after_fork_child().unwrap();
            u8::from(!is_moved(guest))
        })
    });
    assert_eq!(ended, Ended::Returned(0), "{}", guest.mode);
    assert!(is_moved(guest), "{}", guest.mode);
}

/// It would wait for itself.
fn a_move_by_the_forking_thread(guest: &Fixture) {
    let tracker = guest.cache.tracker();
    let source = tracker.change_mapping(at(5), 1).unwrap().moving().unwrap();
    let target = tracker.change_mapping(at(7), 1).unwrap();
    let guard = guest.cache.before_fork();
    let mut both = Some((source, target));
    let mut go_on = |guard: CacheForkGuard<'_, u32>, is_child: bool| {
        let (source, target) = both.take().unwrap();
        if is_child {
            guard.after_fork_child().unwrap()
        } else {
            drop(guard)
        }
        remap(guest);
        target.finish_moved(source, MovedFrom::Unmapped).unwrap();
        u8::from(!is_moved(guest))
    };
    let mut guard = Some(guard);
    let ended = in_child(|| go_on(guard.take().unwrap(), true));
    assert_eq!(go_on(guard.unwrap(), false), 0, "{}: the parent", guest.mode);
    assert_eq!(ended, Ended::Returned(0), "{}: the child", guest.mode);
    // Its move is over.
    drop(guest.cache.before_fork());
}

#[test]
fn holds_and_moves_over_a_fork() {
    in_modes(tracking_modes(), holds_go_over);
    in_modes(tracking_modes(), a_move_by_another_thread);
    in_modes(tracking_modes(), a_move_by_the_forking_thread);
}
