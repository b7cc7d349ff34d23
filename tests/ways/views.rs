//! One memfd mapped several times. A JIT does this if no page of it may be writable and executable:
//! it writes through one mapping (RW) and runs another one (RX). Each view lies in a region and is
//! declared. Then a store through any view reaches the blocks made from all views.
//!
//! # Safety
//!
//! Views outlive the cache, which is dropped first.
#![allow(unsafe_code)]

use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use codewarden::addr::{GuestAddr, HostAddr};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, Facility, Mode};
use codewarden::tracker::SharedMemory;
use rustix::mm::{MapFlags, ProtFlags};

use crate::support::{Fixture, GUEST, PAGES, has_or_skips, page_bytes, region, tracking_modes};

/// The guest addresses of its other views.
const EXECUTABLE: u64 = GUEST + 0x100_0000;
const SECOND: u64 = GUEST + 0x200_0000;

/// The fixture's own view is RW; the others are one RX and one more RW.
struct Views {
    guest: Fixture,
    executable: GuestMemory,
    second: GuestMemory,
}

fn map_executable(memory: &GuestMemory) -> GuestMemory {
    let (file, access) = (memory.file().unwrap(), ProtFlags::READ | ProtFlags::EXEC);
    let (start, len) = (core::ptr::null_mut(), memory.len());
    // SAFETY: a new mapping at an address of the kernel's choice.
    let mapped = unsafe { rustix::mm::mmap(start, len, access, MapFlags::SHARED, file, 0) }.unwrap();
    // SAFETY: the mapping stays until the process ends and is this test's alone.
    unsafe { GuestMemory::from_raw(HostAddr(mapped as usize), len, memory.host_view()) }.unwrap()
}

impl Views {
    fn new(mode: Mode) -> Self {
        let guest = Fixture::new(mode, GuestMemory::memfd(PAGES * page_bytes()).unwrap());
        let executable = map_executable(&guest.memory);
        let second = guest.memory.another_view().unwrap();
        let tracker = guest.cache.tracker();
        let read_only = region(EXECUTABLE, &executable, mode).with_access(Access::Read);
        // SAFETY: the views outlive the cache.
        unsafe {
            tracker.add_region(read_only).unwrap();
            tracker.add_region(region(SECOND, &second, mode)).unwrap();
        }
        let shared = SharedMemory { backing: guest.memory.backing_id().unwrap(), offset: 0 };
        for view in [GUEST, EXECUTABLE, SECOND] {
            tracker.declare_shared(GuestAddr(view), guest.memory.len() as u64, shared).unwrap();
        }
        Self { guest, executable, second }
    }

    /// A block of the byte that the guest runs through its RX view.
    fn block(&self, page: usize) -> u64 {
        let key = EXECUTABLE + (page * page_bytes()) as u64;
        let mut ticket = self.guest.cache.begin(GuestAddr(key).into());
        while ticket.claim(GuestAddr(key)).is_err() {}
        ticket.commit(0x1000, 0).unwrap();
        key
    }

    fn expect(&self, key: u64, reachable: bool, why: &str) {
        self.guest.announce();
        assert_eq!(self.guest.lookup(key).is_some(), reachable, "{}: {why}", self.guest.mode);
    }

    /// Checks that the write was learned of; without tracking the block is stale.
    fn expect_learned(&self, key: u64, why: &str) {
        self.expect(key, self.guest.mode == Mode::None, why);
    }
}

fn in_every_mode(way: impl Fn(&Views)) {
    let modes = tracking_modes().into_iter().filter(|&mode| has_or_skips(mode, Facility::WpShmem));
    for mode in modes.chain([Mode::None]) {
        let views = Views::new(mode);
        way(&views);
        // The cache first.
        let Views { guest, executable, second } = views;
        drop(guest.cache);
        drop((executable, second));
    }
}

#[test]
fn a_store_through_each_writable_view() {
    in_every_mode(|views| {
        for (view, memory) in [(GUEST, &views.guest.memory), (SECOND, &views.second)] {
            let (key, other) = (views.block(1), views.block(2));
            memory.write(page_bytes() + 4, &[7]).unwrap();
            views.expect_learned(key, &format!("a store through the view at {view:#x}"));
            views.expect(other, true, "another page");
        }
    });
}

/// A JIT that flips its one view: RX, then RW, a patch, RX again.
#[test]
fn a_store_through_the_executable_view_made_writable() {
    in_every_mode(|views| {
        let key = views.block(1);
        let tracker = views.guest.cache.tracker();
        let set = |access| tracker.set_access(GuestAddr(key), 1, access).unwrap();
        set(Access::ReadWrite);
        views.expect(key, true, "no byte changed");
        views.executable.write(page_bytes(), &[3]).unwrap();
        set(Access::Read);
        views.expect_learned(key, "a store through what was the executable view");
    });
}

/// A page that is announced through one view alone is held for all of them.
#[test]
fn a_system_calls_write_through_another_view() {
    in_every_mode(|views| {
        let key = views.block(1);
        let (from, mut into) = std::io::pipe().unwrap();
        into.write_all(&[1, 2, 3, 4]).unwrap();
        let at = SECOND + page_bytes() as u64;
        let held = views.guest.cache.tracker().prepare_kernel_write(GuestAddr(at), 4).unwrap();
        let to = views.second.range().start().as_ptr().wrapping_add(page_bytes());
        // SAFETY: four bytes of the view.
        assert_eq!(unsafe { libc::read(from.as_raw_fd(), to.cast(), 4) }, 4);
        if !views.guest.kernel_writes_pass() {
            let mut ticket = views.guest.cache.begin(GuestAddr(key).into());
            assert!(ticket.claim(GuestAddr(key)).is_err(), "begun while another view is held");
        }
        drop(held);
        views.expect_learned(key, "read(2) into the second view");
    });
}

/// Writes to the file itself, past every mapping.
#[test]
fn pwrite_to_the_memfd() {
    in_every_mode(|views| {
        let key = views.block(1);
        let file = views.guest.memory.file().unwrap();
        rustix::io::pwrite(file, &[9], page_bytes() as u64).unwrap();
        assert_eq!(views.guest.bytes(1, 0, 1), [9]);
        views.expect(key, true, "nobody is told of a pwrite");
        // Any of the views will do: the block lies on each.
        views.guest.invalidate(1, 0, 1);
        views.expect(key, false, "announced");
    });
}

#[test]
fn a_store_through_the_hosts_view() {
    in_every_mode(|views| {
        let key = views.block(1);
        views.guest.memory.write_untracked(page_bytes(), &[9]).unwrap();
        views.expect(key, true, "the host's view is not tracked");
        views.guest.invalidate(1, 0, 1);
        views.expect(key, false, "announced");
        views.guest.store(GUEST + page_bytes() as u64, 1);
        let key = views.block(1);
        views.guest.store(GUEST + page_bytes() as u64, 2);
        views.expect_learned(key, "tracked as before");
    });
}

/// An announcement for a range reaches writes to its bytes through any view, even through views
/// that the range cuts in the middle.
#[test]
fn an_announcement_for_a_range_that_cuts_views() {
    in_every_mode(|views| {
        let tracker = views.guest.cache.tracker();
        let (bytes, in_view) = (page_bytes() as u64, 6 * page_bytes() as u64);
        for (start, end) in [
            (GUEST, GUEST + 7 * bytes),
            (GUEST + in_view, GUEST + in_view + 1),
            (GUEST, SECOND + 3 * bytes),
            (EXECUTABLE + 7 * bytes, SECOND + 7 * bytes),
            (EXECUTABLE + 3 * bytes, EXECUTABLE + 7 * bytes),
            (SECOND + in_view + 5, SECOND + in_view + 6),
        ] {
            let (key, other) = (views.block(6), views.block(7));
            views.second.write(6 * page_bytes(), &[7]).unwrap();
            tracker.sync_range(GuestAddr(start), end - start).unwrap();
            let reachable = |key| views.guest.lookup(key).is_some();
            assert_eq!(reachable(key), views.guest.mode == Mode::None, "{}: {start:#x}..{end:#x}", views.guest.mode);
            assert!(reachable(other), "{}: nothing was written", views.guest.mode);
        }
    });
}
