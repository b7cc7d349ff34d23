//! Writes to protected memory: by threads, by the kernel, through other views, by a fork's child.
//!
//! # Safety
//!
//! Loads and stores go to the tests' own mappings, by raw pointers.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::MprotectFlags;

use super::fixture::{Fixture, PAGES, SYNC, has_or_skips};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::child::{Ended, in_child};
use crate::sys::mmap::Mapping;
use crate::sys::populate::Check;
use crate::sys::probe::{Facility, Probe};
use crate::sys::release::is_since;
use crate::sys::uffd::{Door, KernelFaults, MessageBuffer, Uffd, feature, open};
use crate::sys::uffd_calls;

#[test]
fn unregistering_wakes_no_thread_and_a_wake_after_it_does() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(3, 1)).unwrap();
    fixture.with_sleeper(3, || {
        fixture.uffd.unregister(fixture.memory.range()).unwrap();
        // Long enough for a woken store to be seen; a slow machine makes the check weaker, not
        // wrong.
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(fixture.load(3), 0, "the unregister woke the writer");
        fixture.uffd.wake(fixture.memory.range()).unwrap();
    });
}

#[test]
fn a_release_leaves_no_writer_asleep() {
    for fixture in Fixture::sync_on_both() {
        fixture.uffd.protect(fixture.pages(3, 1)).unwrap();
        fixture.with_sleeper(3, || fixture.uffd.release(fixture.memory.range()).unwrap());
    }
}

#[test]
fn closing_the_descriptor_wakes_all_and_opens_all() {
    let Fixture { memory, uffd, .. } = Fixture::new(SYNC, false);
    uffd.protect(memory.range()).unwrap();
    let start = memory.range().start();
    std::thread::scope(|scope| {
        // SAFETY: in the mapping, which lives until the scope's end.
        scope.spawn(move || unsafe { start.as_ptr().write_volatile(1) });
        let mut asleep = false;
        while !asleep {
            uffd.read_faults(0, &mut MessageBuffer::new(), |_| asleep = true).unwrap();
        }
        drop(uffd);
    });
    // No store waits. (Linux 6.1 still shows the pages as protected in the pagemap.)
    for page in 0..PAGES {
        // SAFETY: in the mapping.
        unsafe { start.as_ptr().add(page * PageSize::host().bytes()).write_volatile(1) };
    }
}

#[test]
fn one_unprotect_wakes_several_writers_and_takes_their_messages() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(2, 1)).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let address = HostAddr(fixture.at(2).0 + writer * 64);
            // SAFETY: in the fixture's mapping.
            scope.spawn(move || unsafe { address.as_ptr().write_volatile(1) });
        }
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.extend(fixture.faults());
        }
        // Before an assertion fails: the writers sleep.
        fixture.uffd.unprotect(fixture.pages(2, 1)).unwrap();
        assert_eq!(seen.len(), 4);
        seen.sort();
        seen.dedup();
        let is_exact = Probe::with_hidden("").has(Facility::ExactAddress);
        assert_eq!(seen.len(), if is_exact { 4 } else { 1 }, "each writer has a message of its own: {seen:?}");
    });
    assert_eq!(fixture.faults(), []);
}

#[test]
fn a_failing_compare_and_exchange_is_a_store() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 1)).unwrap();
    let address = fixture.at(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: aligned, in the fixture's mapping, used as an atomic only.
            let word = unsafe { AtomicU64::from_ptr(address.as_ptr().cast()) };
            assert_eq!(word.compare_exchange(1, 2, SeqCst, SeqCst), Err(0));
        });
        while fixture.faults().is_empty() {
            std::thread::yield_now();
        }
        fixture.uffd.unprotect(fixture.pages(0, 1)).unwrap();
    });
}

#[test]
fn an_alias_and_pwrite_pass_by_the_protection() {
    if !has_or_skips(&[Facility::WpShmem]) {
        return;
    }
    let fixture = Fixture::new(SYNC, true);
    let file = fixture.file.as_ref().unwrap();
    let alias = Mapping::shared(file, fixture.memory.range().len(), fixture.page).unwrap();
    fixture.uffd.protect(fixture.memory.range()).unwrap();
    // SAFETY: in the alias's own mapping.
    unsafe { alias.range().start().as_ptr().write_volatile(3) };
    assert_eq!(fixture.load(0), 3);
    rustix::io::pwrite(file, &[4], fixture.page.bytes() as u64).unwrap();
    assert_eq!(fixture.load(1), 4);
    assert_eq!(fixture.faults(), []);
    assert_eq!(fixture.protected().len(), PAGES);
}

#[test]
fn a_debuggers_write_fails_without_an_event() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 1)).unwrap();
    let memory = File::options().write(true).open("/proc/self/mem").unwrap();
    let error = memory.write_at(&[1], fixture.at(0).0 as u64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(fixture.faults(), []);
}

/// From 6.12 on a kernel may refuse a debugger's write to memory that the process itself may not
/// write (`proc_mem.force_override`). It then changes nothing. Debian's 7.2 refuses it.
#[test]
fn a_debuggers_write_to_read_only_memory_arrives_or_changes_nothing() {
    let fixture = Fixture::new(SYNC, false);
    fixture.store(1, 5);
    fixture.set_access(1, MprotectFlags::READ);
    let memory = File::options().write(true).open("/proc/self/mem").unwrap();
    match memory.write_at(&[6], fixture.at(1).0 as u64) {
        Ok(count) => assert_eq!((count, fixture.load(1)), (1, 6)),
        Err(error) => {
            assert!(is_since(6, 12), "{error}");
            assert_eq!((error.raw_os_error(), fixture.load(1)), (Some(libc::EIO), 5));
        }
    }
    assert_eq!(fixture.faults(), []);
}

#[test]
fn a_read_that_reaches_a_protected_page_is_cut_short_in_user_mode_only() {
    if !has_or_skips(&[Facility::UserModeOnly]) {
        return;
    }
    let page = PageSize::host();
    let memory = Mapping::anonymous(2 * page.bytes(), page).unwrap();
    let fd = open(Door::Syscall, KernelFaults::Refused).unwrap();
    let uffd = Uffd::new(fd, feature::WP, Some(Check::Populated)).unwrap();
    uffd.register(memory.range()).unwrap();
    let second = HostAddr(memory.range().start().0 + page.bytes());
    uffd.protect(HostRange::page_of(second, page)).unwrap();
    let (from, into) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&into, &[9; 8]).unwrap();
    let read_to = |address: usize, len| {
        // SAFETY: the kernel writes to the test's own mapping.
        let count = unsafe { libc::read(from.as_raw_fd(), address as *mut c_void, len) };
        if count >= 0 { Ok(count) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()) }
    };
    assert_eq!(read_to(second.0, 8), Err(Errno::FAULT), "no data is lost by it");
    assert_eq!(read_to(second.0 - 4, 8).unwrap_or(4), 4);
    // SAFETY: in the test's own mapping.
    assert_eq!(unsafe { second.as_ptr().read_volatile() }, 0);
}

#[test]
fn a_forks_child_is_untracked_and_the_parent_stays_tracked() {
    let fixture = Fixture::new(SYNC, false);
    fixture.store(1, 1);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let status = in_child(|| {
        fixture.store(1, 2); // would sleep for ever if it were tracked
        let refused = fixture.uffd.unprotect(fixture.pages(0, 4)) == Err(Error::InForkChild);
        u8::from(!refused) | u8::from(fixture.load(1) != 2) << 1
    });
    assert_eq!(status, Ended::Returned(0));
    assert_eq!(fixture.load(1), 1);
    assert_eq!(fixture.protected(), [0, 1, 2, 3]);
}

#[test]
fn an_ioctl_by_a_forks_child_acts_on_the_parent() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let (start, len) = (fixture.at(1).0, fixture.page.bytes());
    let refused = in_child(|| u8::from(uffd_calls::unprotect(fixture.uffd.copies()[0], start, len).is_err()));
    assert_eq!(refused, Ended::Returned(0));
    assert_eq!(fixture.protected(), [0, 2, 3]);
}

#[test]
fn an_ordinary_store_by_another_thread_is_seen_under_protection() {
    // The control of this file: without protection the helper's store does not sleep.
    let fixture = Fixture::new(SYNC, false);
    let stored = AtomicU8::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fixture.store(1, 1);
            stored.store(1, SeqCst);
        });
    });
    assert_eq!((stored.load(SeqCst), fixture.faults().len()), (1, 0));
}
