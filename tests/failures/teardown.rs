//! The end of a tracker while other threads fault: it is safe, and no writer stays asleep.
//!
//! # Safety
//!
//! Memory outlives the trackers on it.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use codewarden::addr::GuestAddr;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::{BeginError, Tracker};
use codewarden::{CodeCache, EntryStubs};

use crate::child::{Ended, in_child};
use crate::scenario::{End, Gate, byte_of, fixture, scenario};
use crate::support::{Fixture, GUEST, PAGES, in_modes, page_bytes, region, tracking_modes};

const ROUNDS: usize = 30;
const WRITERS: usize = 3;

/// Writers store to all pages while `round` makes and ends trackers on them.
fn under_stores(memory: &GuestMemory, mut round: impl FnMut()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let stop = &stop;
            scope.spawn(move || {
                let mut count = writer;
                while !stop.load(SeqCst) {
                    memory.write((count % PAGES) * page_bytes() + writer, &[count as u8]).unwrap();
                    count += 1;
                    if count.is_multiple_of(64) {
                        std::thread::yield_now();
                    }
                }
            });
        }
        for _ in 0..ROUNDS {
            round();
        }
        stop.store(true, SeqCst);
    });
}

fn begin_everywhere(cache: &CodeCache<u32>) {
    for page in 0..PAGES {
        let _ = cache.tracker().begin(GuestAddr(byte_of(page)));
    }
}

#[test]
fn dropped_while_others_fault() {
    scenario("teardown::dropped_while_others_fault", &Mode::ALL, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        under_stores(&memory, || {
            let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
            // SAFETY: the memory outlives the cache.
            unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }.unwrap();
            begin_everywhere(&cache);
        });
    });
}

#[test]
fn a_region_removed_while_others_fault() {
    scenario("teardown::a_region_removed_while_others_fault", &Mode::ALL, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
        under_stores(&memory, || {
            // SAFETY: the memory outlives the cache.
            unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }.unwrap();
            begin_everywhere(&cache);
            cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
        });
    });
}

/// A ticket that outlives its region keeps nothing protected.
#[test]
fn a_ticket_outlives_its_region() {
    in_modes(tracking_modes().into_iter().chain([Mode::None]), |guest: &Fixture| {
        let mut ticket = guest.cache.begin(codewarden::Key::new(1));
        ticket.claim(GuestAddr(byte_of(1))).unwrap();
        guest.block(2);
        guest.cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
        guest.announce();
        guest.store_to(1);
        guest.store_to(2);
        assert_eq!(guest.lookup(byte_of(2)), None);
        assert!(ticket.commit(0x10, 0).is_err(), "{}", guest.mode);
    });
}

/// A second writer sleeps, and its message was not read: the end of the region wakes it before
/// it waits for the handler.
#[test]
fn asleep_with_an_unread_message() {
    scenario("teardown::asleep_with_an_unread_message", &[Mode::Thread], End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let gate = Arc::new(Gate::default());
        let tracker = Tracker::new(gate.clone());
        // SAFETY: the memory outlives the tracker.
        unsafe { tracker.add_region(region(GUEST, &memory, mode)) }.unwrap();
        for page in [1, 2] {
            tracker.begin(GuestAddr(byte_of(page))).unwrap();
        }
        std::thread::scope(|scope| {
            let kept = scope.spawn(|| memory.write(page_bytes(), &[1]).unwrap());
            gate.await_fault();
            let asleep = scope.spawn(|| memory.write(2 * page_bytes(), &[1]).unwrap());
            let remover = scope.spawn(|| tracker.remove_region(GuestAddr(GUEST)).unwrap());
            while !(asleep.is_finished() && kept.is_finished()) {
                std::thread::yield_now();
            }
            assert!(!remover.is_finished(), "the handler is still in the sink");
            gate.let_go();
        });
    });
}

/// A child drops the objects that it inherited while the parent's threads fault.
#[test]
fn dropped_in_a_forks_child() {
    scenario("teardown::dropped_in_a_forks_child", &Mode::ALL, End::Well, |mode| {
        let guest = std::mem::ManuallyDrop::new(fixture(mode));
        under_stores(&guest.memory, || {
            begin_everywhere(&guest.cache);
            let guard = guest.cache.before_fork();
            let status = in_child(|| {
                // In both processes: no lock is held when the cache is dropped.
                drop(guard);
                // SAFETY: dropped in this process once.
                drop(unsafe { std::ptr::read(&raw const *guest) });
                0
            });
            assert_eq!(status, Ended::Returned(0), "{mode}: the child could not drop its cache");
        });
        guest.expect_tracked(1);
    });
}

/// An unannounced child gets no block by its parent's protection: neither by a claim of its own
/// nor by one that the parent made. If the child inherits the mode's protection, it does.
#[test]
fn translated_in_an_unannounced_child() {
    scenario("teardown::translated_in_an_unannounced_child", &Mode::ALL, End::Well, |mode| {
        let guest = std::mem::ManuallyDrop::new(fixture(mode));
        let inherits = matches!(mode, Mode::Mprotect | Mode::None);
        guest.block(1);
        let of_the_parent = || {
            let mut ticket = guest.cache.begin(codewarden::Key::new(byte_of(2)));
            ticket.claim(GuestAddr(byte_of(2))).unwrap();
            ticket
        };
        for claimed_before in [of_the_parent(), of_the_parent()] {
            // SAFETY: no other thread is inside the library; the child leaves.
            let pid = unsafe { libc::fork() };
            assert!(pid >= 0);
            if pid == 0 {
                let commit = claimed_before.commit(0x10, 0).is_ok();
                let mut ticket = guest.cache.begin(codewarden::Key::new(byte_of(1) + 8));
                let claim = ticket.claim(GuestAddr(byte_of(1) + 8));
                let is_right = match claim {
                    Ok(_) => inherits && commit && ticket.commit(0x20, 0).is_ok(),
                    Err(BeginError::Failed(Error::InForkChild)) => !inherits && !commit,
                    Err(_) => false,
                };
                // SAFETY: leaves without running anything else of the parent's.
                unsafe { libc::_exit(i32::from(!is_right)) };
            }
            let mut status = 0;
            // SAFETY: our own child and a local to write to.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert_eq!(status, 0, "{mode}: the child was told that nothing came to what is open");
        }
        assert!(guest.lookup(byte_of(1)).is_some(), "{mode}");
        guest.expect_tracked(1);
    });
}
