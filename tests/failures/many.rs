//! Many regions of one tracker, which share a mechanism.
//!
//! # Safety
//!
//! Closes and replaces descriptors that belong to the library: the case under test. The memory of a
//! region outlives its cache.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Handled, Mode, handle_fault};
use codewarden::tracker::{BeginError, Generations, RegionOptions, Tracker};
use codewarden::{CodeCache, EntryStubs};
use rustix::process::Resource;

use crate::child::{Ended, in_child};
use crate::limits::{open_files, set_limit};
use crate::scenario::{End, Gate, TRACKING, UFFD, byte_of, scenario};
use crate::support::{Fixture, GUEST, page_bytes};

/// The number of regions that a fork's child has to continue.
const MANY: usize = 1000;

/// Region `number` is the page of twice that number.
fn options(memory: &GuestMemory, number: usize, mode: Mode) -> RegionOptions {
    let offset = 2 * number * page_bytes();
    let start = HostAddr(memory.range().start().0 + offset);
    let host = HostRange::new(start, page_bytes(), PageSize::host()).unwrap();
    RegionOptions::new(GuestAddr(GUEST + offset as u64), host, mode)
}

fn add(guest: &Fixture, number: usize) -> Result<(), Error> {
    // SAFETY: see the head.
    unsafe { guest.cache.tracker().add_region(options(&guest.memory, number, guest.mode)) }
}

fn remove(guest: &Fixture, number: usize) {
    guest.cache.tracker().remove_region(GuestAddr(GUEST + (2 * number * page_bytes()) as u64)).unwrap();
}

fn with_regions(mode: Mode, count: usize) -> Fixture {
    let memory = GuestMemory::anonymous(2 * count * page_bytes()).unwrap();
    let guest = Fixture { cache: CodeCache::new(EntryStubs::NOT_CODE).unwrap(), memory, mode };
    (0..count).for_each(|number| add(&guest, number).unwrap());
    guest
}

/// No number of regions is too large, and they take a few descriptors in all, until the last region goes.
/// Claims of dead blocks are left.
#[test]
fn regions() {
    scenario("many::regions", &Mode::ALL, End::Well, |mode| {
        let files = open_files();
        set_limit(Resource::Nofile, *files.last().unwrap() as u64 + 6);
        let count = 2 * MANY;
        let guest = with_regions(mode, count);
        for number in [0, count / 2, count - 1] {
            guest.expect_tracked(2 * number);
        }
        let opened = guest.cache.tracker().descriptors().len();
        assert!(opened <= 4, "{opened}");
        for round in 0..2 {
            (0..count).for_each(|number| remove(&guest, number));
            assert_eq!(open_files(), files, "{mode}");
            assert!(guest.begin_error(round).is_some());
            (0..count).for_each(|number| add(&guest, number).unwrap());
            guest.expect_tracked(2 * (count / 3));
        }
    });
}

/// Takes one copy of the descriptor away, or both, with blocks in each region. Whatever notices it, no
/// block of any region is reached once a page is open. New regions are tracked again.
#[test]
fn a_loss() {
    let take_one: fn(&[i32]) = |numbers| close(numbers[0]);
    let take_other: fn(&[i32]) = |numbers| close(numbers[1]);
    let take_all: fn(&[i32]) = |numbers| numbers.iter().copied().for_each(close);
    let store: fn(&Fixture) = |guest| guest.store_to(0);
    let begin: fn(&Fixture) = |guest| assert_eq!(guest.begin_error(2), Some(Error::TrackingLost));
    let maintain: fn(&Fixture) = |guest| guest.cache.tracker().maintain();
    scenario("many::a_loss", &UFFD, End::Well, |mode| {
        for (take, notices) in
            [(take_one, &[store, maintain][..]), (take_other, &[store, maintain]), (take_all, &[begin, maintain])]
        {
            for notice in notices {
                let guest = with_regions(mode, 4);
                [0, 4, 6].into_iter().for_each(|page| guest.block(page));
                take(&guest.cache.tracker().descriptors());
                notice(&guest);
                if mode == Mode::Deferred {
                    let _ = guest.cache.tracker().sync();
                }
                for page in [0, 4, 6] {
                    guest.store_to(page);
                    guest.expect_dead(page);
                }
                // The one that is left until it is noticed.
                guest.cache.tracker().maintain();
                for page in [0, 2, 4, 6] {
                    assert_eq!(guest.begin_error(page), Some(Error::TrackingLost), "{mode}");
                }
                remove(&guest, 1);
                add(&guest, 1).unwrap();
                guest.expect_tracked(2);
                remove(&guest, 3);
                add(&guest, 3).unwrap();
                guest.expect_tracked(6);
                guest.expect_tracked(2);
            }
        }
    });
}

fn close(number: i32) {
    // SAFETY: see the head.
    assert_eq!(unsafe { libc::close(number) }, 0);
}

/// A fault of one region is handled while another region is removed and added: neither waits for the
/// other.
#[test]
fn removed_under_a_fault_of_another() {
    scenario("many::removed_under_a_fault_of_another", &TRACKING, End::Well, |mode| {
        let memory = GuestMemory::anonymous(8 * page_bytes()).unwrap();
        let gate = Arc::new(Gate::default());
        let tracker = Tracker::new(gate.clone());
        // The gate holds faults of page 1.
        let held = RegionOptions::new(GuestAddr(GUEST + page_bytes() as u64), options(&memory, 0, mode).host, mode);
        // SAFETY: see the head.
        unsafe { tracker.add_region(held) }.unwrap();
        let other = options(&memory, 2, mode);
        // SAFETY: see the head.
        unsafe { tracker.add_region(other) }.unwrap();
        let begin = |page| loop {
            match tracker.begin(page) {
                Ok(claim) => break claim,
                Err(error) => assert!(matches!(error, BeginError::Busy(_)), "{error}"),
            }
        };
        assert!(begin(held.guest).is_current());
        std::thread::scope(|scope| {
            let store = scope.spawn(|| memory.write(0, &[1]).unwrap());
            if mode != Mode::Deferred {
                gate.await_fault();
            }
            for _ in 0..3 {
                assert!(begin(other.guest).is_current());
                tracker.remove_region(other.guest).unwrap();
                memory.write(4 * page_bytes(), &[1]).unwrap();
                // SAFETY: see the head.
                unsafe { tracker.add_region(other) }.unwrap();
            }
            gate.let_go();
            store.join().unwrap();
        });
    });
}

static ENTERED: AtomicBool = AtomicBool::new(false);
static LET_GO: AtomicBool = AtomicBool::new(false);

/// An embedder's handler that is slow before it asks the library.
unsafe extern "C" fn slow_handler(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    ENTERED.store(true, SeqCst);
    while !LET_GO.load(SeqCst) {
        std::hint::spin_loop();
    }
    // SAFETY: the kernel's arguments; `abort` may be called anywhere.
    unsafe {
        if handle_fault(signo, info, context) == Handled::NotOurs {
            libc::abort();
        }
    }
}

/// A store faults. Before its handler asks the library, the region is removed, and then so many others are added
/// and removed that nothing is known of it any more.
#[test]
fn a_fault_after_many_removals() {
    scenario("many::a_fault_after_many_removals", &TRACKING, End::Well, |mode| {
        const OTHERS: usize = 100;
        // SAFETY: the handler keeps to the rules of signal handlers.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = slow_handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            for signo in [libc::SIGBUS, libc::SIGSEGV] {
                assert_eq!(libc::sigaction(signo, &action, std::ptr::null_mut()), 0);
            }
        }
        let memory = GuestMemory::anonymous(2 * (OTHERS + 1) * page_bytes()).unwrap();
        let tracker = Tracker::new(Generations::observer());
        let add = |number| {
            let options = options(&memory, number, mode).with_embedder_signals(true);
            // SAFETY: see the head.
            unsafe { tracker.add_region(options) }.unwrap();
            options.guest
        };
        let first = add(0);
        tracker.begin(first).unwrap();
        std::thread::scope(|scope| {
            let store = scope.spawn(|| memory.write(0, &[1]).unwrap());
            while matches!(mode, Mode::Sigbus | Mode::Mprotect) && !ENTERED.load(SeqCst) {
                std::thread::yield_now();
            }
            tracker.remove_region(first).unwrap();
            for number in 1..=OTHERS {
                tracker.remove_region(add(number)).unwrap();
            }
            // Their places in the table are taken again.
            (1..=OTHERS).for_each(|number| _ = add(number));
            LET_GO.store(true, SeqCst);
            store.join().unwrap();
        });
        let mut byte = [0];
        memory.read(0, &mut byte).unwrap();
        assert_eq!(byte, [1]);
    });
}

/// The child opens each mechanism once, and has as many descriptors as its parent.
#[test]
fn a_forks_child() {
    scenario("many::a_forks_child", &Mode::ALL, End::Well, |mode| {
        let guest = with_regions(mode, MANY);
        let pages = [0, 2 * (MANY / 2), 2 * MANY - 2];
        pages.into_iter().for_each(|page| guest.block(page));
        set_limit(Resource::Nofile, *open_files().last().unwrap() as u64 + 1);
        // SAFETY: makes unused descriptors.
        while unsafe { libc::dup(0) } != -1 {}
        let before = open_files();
        let guard = guest.cache.before_fork();
        let status = in_child(|| {
            guard.after_fork_child().unwrap();
            for page in pages {
                guest.expect_dead(page);
                guest.expect_tracked(page);
            }
            remove(&guest, 1);
            add(&guest, 1).unwrap();
            guest.expect_tracked(2);
            assert_eq!(open_files(), before);
            0
        });
        assert_eq!(status, Ended::Returned(0), "{mode}: the child");
        pages.into_iter().for_each(|page| guest.expect_tracked(page));
    });
}

/// Regions in modes of their own have mechanisms of their own; a loss of one leaves the others.
#[test]
fn a_loss_of_one_mode() {
    scenario("many::a_loss_of_one_mode", &UFFD, End::Well, |mode| {
        let memory = GuestMemory::anonymous(8 * page_bytes()).unwrap();
        let guest = Fixture { cache: CodeCache::new(EntryStubs::NOT_CODE).unwrap(), memory, mode };
        add(&guest, 0).unwrap();
        let lost = guest.cache.tracker().descriptors();
        let mprotect = options(&guest.memory, 1, Mode::Mprotect);
        // SAFETY: see the head.
        unsafe { guest.cache.tracker().add_region(mprotect) }.unwrap();
        assert_eq!(guest.cache.tracker().descriptors(), lost, "mprotect has none");
        guest.block(0);
        guest.block(2);
        lost.into_iter().for_each(close);
        guest.cache.tracker().maintain();
        assert_eq!(guest.begin_error(0), Some(Error::TrackingLost));
        assert_eq!(guest.lookup(byte_of(0)), None);
        assert!(guest.lookup(byte_of(2)).is_some(), "{mode}: mprotect lost nothing");
        guest.store_to(2);
        assert_eq!(guest.lookup(byte_of(2)), None);
    });
}
