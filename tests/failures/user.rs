//! An ordinary user. If root runs the tests, only this test runs as one.
//!
//! # Safety
//!
//! Gives up the process's rights, in processes of their own; lets the kernel write to the fixture's
//! memory.
#![allow(unsafe_code)]

use std::os::fd::AsRawFd;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::{CodeCache, EntryStubs};

use crate::scenario::{End, byte_of, fixture, populates, scenario};
use crate::support::{Fixture, GUEST, PAGES, memories, page_bytes, region, skip};

const NOBODY: libc::uid_t = 65_534;

/// From here on the process runs as the user "nobody". Its own files in /proc belong to root.
fn change_the_user() {
    // SAFETY: changes the user of the process.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setgid(NOBODY), 0);
        assert_eq!(libc::setuid(NOBODY), 0);
    }
}

/// From here on the process may read its own /proc files as before.
fn be_dumpable() {
    // SAFETY: sets a flag.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) }, 0);
}

fn is_root() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() == 0 }
}

/// Runs `run` as an ordinary user: root changes its user first.
fn as_nobody(name: &str, modes: &[Mode], run: impl Fn(Mode)) {
    scenario(name, modes, End::Well, |mode| {
        if is_root() {
            change_the_user();
            be_dumpable();
        } else {
            skip(&"not root: this user is taken for an ordinary one");
        }
        run(mode);
    });
}

fn read_into(guest: &Fixture, page: usize) -> std::io::Result<usize> {
    let zeroes = std::fs::File::open("/dev/zero").unwrap();
    let into = guest.memory.range().start().as_ptr().wrapping_add((byte_of(page) - GUEST) as usize);
    // SAFETY: the kernel writes one byte of the guest's, or nothing.
    let count = unsafe { libc::read(zeroes.as_raw_fd(), into.cast(), 1) };
    usize::try_from(count).map_err(|_| std::io::Error::last_os_error())
}

/// Every mode is available, and keeps its promise.
#[test]
fn every_mode_works() {
    as_nobody("user::every_mode_works", &Mode::ALL, |mode| {
        for memory in memories(mode) {
            let guest = Fixture::new(mode, memory);
            guest.expect_tracked(1);
            guest.expect_tracked(2);
        }
    });
}

/// A process that gives its rights up keeps its regions. A new deferred region needs /proc, and so
/// does a synchronous one on a kernel before 6.4: it is refused until the process is dumpable again, and the error says so.
#[test]
fn a_process_that_changed_its_user() {
    scenario("user::a_process_that_changed_its_user", &Mode::ALL, End::Well, |mode| {
        if !is_root() {
            return skip(&"not root: it cannot change its user");
        }
        let before = fixture(mode);
        change_the_user();
        before.expect_tracked(1);
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
        // SAFETY: the memory outlives the cache.
        let add = || unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) };
        if mode == Mode::Deferred || populates(mode) {
            let refused = add().unwrap_err().to_string();
            assert!(refused.contains("PR_SET_DUMPABLE"), "{refused}");
            be_dumpable();
        }
        add().unwrap();
    });
}

/// With a descriptor for user mode alone, thread mode does not see the kernel's writes. They
/// are refused until they are announced, and the probe names the missing permission.
#[test]
fn kernel_writes_need_a_permission() {
    as_nobody("user::kernel_writes_need_a_permission", &[Mode::Thread], |mode| {
        let probe = Probe::of_this_process();
        let Some(why) = probe.why_missing(Facility::KernelFaults) else {
            return skip(&"this kernel lets ordinary users handle its faults");
        };
        for permission in ["CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd=1", "/dev/userfaultfd"] {
            assert!(why.contains(permission), "{why}");
        }
        assert!(!probe.has(Facility::UffdDevice) && probe.has(Facility::UserModeOnly));
        let device = probe.why_missing(Facility::UffdDevice).unwrap();
        assert!(device.contains("permission") || device.contains("there is no"), "{device}");

        let guest = fixture(mode);
        guest.block(1);
        assert_eq!(read_into(&guest, 1).unwrap_err().raw_os_error(), Some(libc::EFAULT));
        assert!(guest.lookup(byte_of(1)).is_some(), "nothing was written");
        let held = guest.cache.tracker().prepare_kernel_write(GuestAddr(byte_of(1)), 1).unwrap();
        assert_eq!(read_into(&guest, 1).unwrap(), 1);
        guest.expect_dead(1);
        drop(held);
    });
}
