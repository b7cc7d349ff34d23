//! A buggy embedder closes our descriptors, or puts its own files over them.
//!
//! # Safety
//!
//! Closes and replaces descriptors that belong to the library: the case under test. Afterwards
//! their numbers are used as plain numbers only.
#![allow(unsafe_code)]

use core::ffi::c_int;

use codewarden::Key;
use codewarden::addr::GuestAddr;
use codewarden::error::Error;
use codewarden::protection::{Mode, Probe};

use crate::alone::task;
use crate::scenario::{End, UFFD, byte_of, expect_end, fixture, populates, scenario};
use crate::support::{Fixture, GUEST, skip};

/// The descriptors of this process whose file has this name.
fn numbers_of(file: &str) -> Vec<c_int> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let named = entries
        .filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().contains(file)));
    named.map(|entry| entry.file_name().to_string_lossy().parse().unwrap()).collect()
}

fn userfaultfds() -> Vec<c_int> {
    let mut numbers = numbers_of("[userfaultfd]");
    numbers.sort_unstable();
    assert_eq!(numbers.len(), 2, "two copies of one region's descriptor");
    numbers
}

fn close(number: c_int) {
    // SAFETY: see the head.
    assert_eq!(unsafe { libc::close(number) }, 0);
}

/// Puts `file` over `number`.
fn put_over(file: c_int, number: c_int) {
    // SAFETY: see the head.
    assert_eq!(unsafe { libc::dup2(file, number) }, number);
}

/// The end of a pipe that never has a byte to read.
fn silent_pipe() -> c_int {
    let mut ends = [0; 2];
    // SAFETY: writes two numbers.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    ends[0]
}

/// Makes blocks on two pages. `take` removes one of the descriptor's two copies. Then a store
/// goes to the first page. With either copy gone, the pages stay protected until the blocks
/// are dead.
fn either_copy(mode: Mode, take: impl Fn(c_int)) {
    for which in 0..2 {
        let guest = fixture(mode);
        guest.block(1);
        guest.block(2);
        take(userfaultfds()[which]);
        guest.store_to(1);
        guest.expect_dead(1);
        guest.store_to(2);
        guest.expect_dead(2);
        guest.expect_tracked_or_lost(3);
        guest.cache.tracker().maintain();
        guest.expect_lost();
        guest.store_to(3);
    }
}

#[test]
fn one_closed() {
    scenario("descriptors::one_closed", &UFFD, End::Well, |mode| either_copy(mode, close));
}

/// A pipe would keep a thread that polls or reads it asleep for ever.
#[test]
fn one_replaced() {
    scenario("descriptors::one_replaced", &UFFD, End::Well, |mode| {
        let pipe = silent_pipe();
        either_copy(mode, |number| put_over(pipe, number));
    });
}

/// The kernel opens every page without a word. The next call detects it, and the block is
/// dead when the call returns. A deferred region's `sync` returns the error too.
#[test]
fn both_closed() {
    let maintain: fn(&Fixture) = |guest| guest.cache.tracker().maintain();
    let begin: fn(&Fixture) = |guest| assert_eq!(guest.begin_error(5), Some(Error::TrackingLost));
    let sync: fn(&Fixture) = |guest| assert_eq!(guest.cache.tracker().sync(), Err(Error::TrackingLost));
    scenario("descriptors::both_closed", &UFFD, End::Well, |mode| {
        let notices: &[_] = if mode == Mode::Deferred { &[maintain, begin, sync] } else { &[maintain, begin] };
        for notice in notices {
            let guest = fixture(mode);
            guest.block(1);
            userfaultfds().into_iter().for_each(close);
            guest.store_to(1);
            notice(&guest);
            assert_eq!(guest.lookup(byte_of(1)), None, "{mode}: the block is stale");
            guest.expect_lost();
            guest.store_to(1);
        }
    });
}

/// A ticket keeps the mechanism of a removed region alive. The calls that would open its pages
/// fail, but the pages are open all the same.
#[test]
fn one_closed_before_the_end() {
    scenario("descriptors::one_closed_before_the_end", &UFFD, End::Well, |mode| {
        for which in 0..2 {
            let guest = fixture(mode);
            let mut ticket = guest.cache.begin(Key::new(1));
            ticket.claim(GuestAddr(byte_of(1))).unwrap();
            guest.block(2);
            close(userfaultfds()[which]);
            let _ = guest.cache.tracker().remove_region(GuestAddr(GUEST));
            guest.store_to(1);
            guest.store_to(2);
            guest.expect_dead(2);
            drop(ticket);
        }
    });
}

/// An announcement that cannot ask about its pages kills their blocks, and returns an error.
#[test]
fn pagemap_closed() {
    scenario("descriptors::pagemap_closed", &[Mode::Deferred], End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        numbers_of("/pagemap").into_iter().for_each(close);
        guest.store_to(1);
        assert_eq!(guest.cache.tracker().sync(), Err(Error::TrackingLost));
        guest.expect_dead(1);
        guest.expect_lost();
    });
}

/// On a kernel before 6.4 the synchronous modes ask it too: a page that may not be protected is
/// not translated from.
#[test]
fn pagemap_closed_before_6_4() {
    let name = "descriptors::pagemap_closed_before_6_4";
    let Some(mode) = task() else {
        for mode in [Mode::Sigbus, Mode::Thread] {
            match Probe::with_hidden("wp_unpopulated").check(mode) {
                Ok(()) => expect_end(name, mode.name(), &[("CODEWARDEN_HIDE", "wp_unpopulated")], End::Well),
                Err(error) => skip(&error),
            }
        }
        return;
    };
    let guest = fixture(Mode::from_name(&mode).unwrap());
    guest.block(1);
    numbers_of("/pagemap").into_iter().for_each(close);
    assert_eq!(guest.begin_error(2), Some(Error::TrackingLost));
    guest.expect_dead(1);
    guest.expect_lost();
    guest.store_to(1);
}

/// The descriptors of each mode: a mode without any cannot lose one.
#[test]
fn what_each_mode_opens() {
    scenario("descriptors::what_each_mode_opens", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        let has = |file| numbers_of(file).len();
        assert_eq!(has("[userfaultfd]"), if UFFD.contains(&mode) { 2 } else { 0 });
        assert_eq!(has("/pagemap"), usize::from(mode == Mode::Deferred || populates(mode)));
        assert_eq!(has("socket:["), usize::from(mode == Mode::Thread));
        // The tracker names them all, except those that were taken from it.
        let files = ["[userfaultfd]", "/pagemap", "socket:["];
        let mut all: Vec<c_int> = files.into_iter().flat_map(numbers_of).collect();
        let mut told = guest.cache.tracker().descriptors();
        all.sort_unstable();
        told.sort_unstable();
        assert_eq!(told, all);
        if let Some(&number) = all.first() {
            let mine = silent_pipe();
            put_over(mine, number);
            told.retain(|other| *other != number);
            assert!(!guest.cache.tracker().descriptors().contains(&number), "{number} is a stranger's");
            return;
        }
        guest.expect_tracked(1);
    });
}

/// The library's drop does not close a descriptor that is no longer its own, nor wait for ever for
/// a thread that it told by one, nor leave that thread behind. The stranger's file may be of the
/// same kind as the library's own, and it may come after the region was lost, when the numbers name
/// inert files of the library.
#[test]
fn a_strangers_file_survives_the_drop() {
    scenario("descriptors::a_strangers_file_survives_the_drop", &Mode::ALL, End::Well, |mode| {
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        for is_lost_first in [false, true] {
            for mine in strangers() {
                let guest = fixture(mode);
                guest.block(1);
                let taken = guest.cache.tracker().descriptors();
                assert_eq!(taken.is_empty(), !UFFD.contains(&mode));
                if let (true, Some(&first)) = (is_lost_first, taken.first()) {
                    put_over(mine, first);
                    guest.cache.tracker().maintain();
                    guest.expect_lost();
                }
                taken.iter().for_each(|number| put_over(mine, *number));
                assert_eq!(guest.cache.tracker().descriptors(), [], "{mode}: the numbers are a stranger's");
                drop(guest);
                // The kernel lists a thread for a moment after its join.
                while threads() != before {
                    std::thread::yield_now();
                }
                for number in taken {
                    // SAFETY: asks about a number.
                    assert_ne!(unsafe { libc::fcntl(number, libc::F_GETFD) }, -1, "descriptor {number} was closed");
                    close(number);
                }
            }
        }
    });
}

/// A pipe, an eventfd and a full eventfd: a write to the last waits.
fn strangers() -> [c_int; 3] {
    // SAFETY: makes a file.
    let eventfd = || unsafe { libc::eventfd(0, 0) };
    let full = eventfd();
    let most = u64::MAX - 1;
    // SAFETY: reads eight bytes.
    assert_eq!(unsafe { libc::write(full, (&raw const most).cast(), 8) }, 8);
    [silent_pipe(), eventfd(), full]
}
