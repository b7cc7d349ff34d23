//! A seccomp filter that refuses the library's system calls, before a region is made and
//! under a region in use.
//!
//! # Safety
//!
//! Installs filters made here, in processes of their own.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_long};
use std::sync::mpsc::channel;
use std::thread::scope;

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, Key};

use crate::address_space::{replace, unmap};
use crate::limits::set_limit;
use crate::scenario::{End, SYNCHRONOUS, TRACKING, UFFD, byte_of, fixture, scenario};
use crate::support::{Fixture, GUEST, skip};

/// One call that a filter answers: its number, and the low half of its second argument if
/// that decides.
#[derive(Clone, Copy)]
pub(crate) struct Call {
    pub(crate) number: c_long,
    pub(crate) command: Option<u32>,
}

const fn ioctl(command: u32) -> Call {
    Call { number: libc::SYS_ioctl, command: Some(command) }
}

const USERFAULTFD: Call = Call { number: libc::SYS_userfaultfd, command: None };
const MPROTECT: Call = Call { number: libc::SYS_mprotect, command: None };
const MINCORE: Call = Call { number: libc::SYS_mincore, command: None };
const CLOSE: Call = Call { number: libc::SYS_close, command: None };
const MEMBARRIER: Call = Call { number: libc::SYS_membarrier, command: None };
const DUP3: Call = Call { number: libc::SYS_dup3, command: None };
/// `_IO(0xAA, 0)`
const USERFAULTFD_IOC_NEW: Call = ioctl(0xaa00);
/// `_IOWR(0xAA, 0x3f, struct uffdio_api)`
const UFFDIO_API: Call = ioctl(0xc018_aa3f);
/// `_IOWR(0xAA, 6, struct uffdio_writeprotect)`
const UFFDIO_WRITEPROTECT: Call = ioctl(0xc018_aa06);
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: Call = ioctl(0xc060_6610);

/// The filter's answers to a call.
pub(crate) const KILL_THREAD: u32 = 0;
pub(crate) const fn errno(errno: c_int) -> u32 {
    0x0005_0000 | errno as u32
}
const ALLOW: u32 = 0x7fff_0000;

/// From here on every thread of the process gets `answer` for these calls.
pub(crate) fn refuse(calls: &[Call], answer: u32) {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const NUMBER_AT: u32 = 0;
    const SECOND_ARGUMENT_AT: u32 = 24;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = Vec::new();
    for call in calls {
        let conditions = [(NUMBER_AT, Some(call.number as u32)), (SECOND_ARGUMENT_AT, call.command)];
        let mut conditions: Vec<_> = conditions.into_iter().filter_map(|(at, value)| Some((at, value?))).collect();
        let mut left = 2 * conditions.len() as u8 + 1;
        for (at, value) in conditions.drain(..) {
            left -= 2;
            program.push(step(LOAD, 0, 0, at));
            program.push(step(IF_EQUAL, 0, left, value));
        }
        program.push(step(RETURN, 0, 0, answer));
    }
    program.push(step(RETURN, 0, 0, ALLOW));
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    const ON_EVERY_THREAD: c_int = 1; // SECCOMP_FILTER_FLAG_TSYNC
    const SET_FILTER: c_int = 1; // SECCOMP_SET_MODE_FILTER
    // SAFETY: the program lives until the call is over; it works on numbers alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let installed = libc::syscall(libc::SYS_seccomp, SET_FILTER, ON_EVERY_THREAD, &raw const program);
        assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Checks the choice of `auto` and the errors of the modes that are not available.
fn expect_fallback(missing: &[Mode], says: &str) {
    let probe = Probe::of_this_process();
    for mode in missing {
        let error = probe.check(*mode).expect_err(mode.name());
        assert!(matches!(&error, Error::ModeUnavailable { mode: at, .. } if at == mode), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let (best, why) = probe.best_synchronous().unwrap();
    if missing.contains(&Mode::Sigbus) {
        assert_eq!(best, Mode::Mprotect, "{why}");
        assert!(why.contains(says), "{why}");
    } else {
        assert_eq!(best, Mode::Sigbus, "{why}");
    }
    fixture(best).expect_tracked(1);
}

#[test]
fn userfaultfd_refused_before() {
    scenario("seccomp::userfaultfd_refused_before", &[Mode::Mprotect], End::Well, |_| {
        refuse(&[USERFAULTFD, USERFAULTFD_IOC_NEW], errno(libc::EPERM));
        expect_fallback(&UFFD, "seccomp");
    });
}

/// The same result as on a kernel without the call.
#[test]
fn userfaultfd_hidden_before() {
    scenario("seccomp::userfaultfd_hidden_before", &[Mode::Mprotect], End::Well, |_| {
        refuse(&[USERFAULTFD, USERFAULTFD_IOC_NEW], errno(libc::ENOSYS));
        expect_fallback(&UFFD, "CONFIG_USERFAULTFD");
    });
}

/// As in a container of Docker or Podman with their default profiles that was given the device.
#[test]
fn the_device_is_enough() {
    scenario("seccomp::the_device_is_enough", &TRACKING, End::Well, |mode| {
        refuse(&[USERFAULTFD], errno(libc::EPERM));
        let probe = Probe::of_this_process();
        let has_device = probe.why_missing(Facility::UffdDevice).is_none();
        match probe.check(mode) {
            Ok(()) => {
                fixture(mode).expect_tracked(1);
                if UFFD.contains(&mode) {
                    // The reason is the limit then, and not the filter.
                    set_limit(rustix::process::Resource::Nofile, 0);
                    let error = Probe::of_this_process().check(mode).unwrap_err().to_string();
                    assert!(error.contains("/dev/userfaultfd") && error.contains("ulimit -n"), "{error}");
                }
            }
            Err(error) => {
                assert!(!has_device && error.to_string().contains("/dev/userfaultfd"), "{error}");
                skip(&error);
            }
        }
    });
}

/// As Podman's default profile did until 2022: no synchronous mode is right without a barrier on all
/// threads, and no memory for code. The error names the call to allow.
#[test]
fn barrier_refused_before() {
    scenario("seccomp::barrier_refused_before", &[Mode::None], End::Well, |_| {
        refuse(&[USERFAULTFD, USERFAULTFD_IOC_NEW], errno(libc::EPERM));
        refuse(&[MEMBARRIER], errno(libc::ENOSYS));
        let probe = Probe::of_this_process();
        for mode in SYNCHRONOUS {
            let error = probe.check(mode).expect_err(mode.name()).to_string();
            assert!(error.contains("membarrier") && error.contains("seccomp"), "{error}");
        }
        let error = probe.best_synchronous().unwrap_err().to_string();
        assert!(error.contains("membarrier") && error.contains("seccomp"), "{error}");
        let error = CodeBuffer::new(4096).map(drop).unwrap_err().to_string();
        assert!(error.contains("membarrier") && error.contains("seccomp"), "{error}");
        assert!(probe.check(Mode::Deferred).is_err());
        fixture(Mode::None).block(1);
    });
}

#[test]
fn its_first_ioctl_refused_before() {
    scenario("seccomp::its_first_ioctl_refused_before", &[Mode::Mprotect], End::Well, |_| {
        refuse(&[UFFDIO_API], errno(libc::EPERM));
        expect_fallback(&UFFD, "UFFDIO_API");
    });
}

#[test]
fn scan_refused_before() {
    scenario("seccomp::scan_refused_before", &[Mode::Deferred], End::Well, |_| {
        refuse(&[PAGEMAP_SCAN], errno(libc::EPERM));
        expect_fallback(&[Mode::Deferred], "seccomp");
        SYNCHRONOUS.into_iter().for_each(|mode| fixture(mode).expect_tracked(1));
    });
}

/// Blocks exist already: closing the descriptors opens the pages, after the blocks are dead.
#[test]
fn ioctl_refused_under_a_region() {
    scenario("seccomp::ioctl_refused_under_a_region", &[Mode::Sigbus, Mode::Thread], End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        guest.block(2);
        // By then a handler thread waits for messages.
        std::thread::sleep(std::time::Duration::from_millis(50));
        refuse(&[UFFDIO_WRITEPROTECT], errno(libc::EPERM));
        let error = guest.begin_error(3).expect("protecting is refused");
        assert!(error.to_string().contains("seccomp"), "{error}");
        guest.store_to(1);
        guest.expect_dead(1);
        guest.expect_dead(2);
        guest.expect_lost();
        guest.store_to(2);
    });
}

/// A deferred region asks by one call, whichever other calls are refused with it.
fn scan_and_more_refused(mode: Mode, more: &[Call]) {
    let guest = fixture(mode);
    guest.block(1);
    refuse(&[&[PAGEMAP_SCAN], more].concat(), errno(libc::ENOSYS));
    guest.store_to(1);
    let error = guest.cache.tracker().sync().expect_err("nothing can be asked");
    assert!(error.to_string().contains("PAGEMAP_SCAN"), "{error}");
    assert_eq!(guest.lookup(byte_of(1)), None, "the block is stale");
    guest.cache.tracker().sync().expect("nothing is made from any page, so nothing is asked");
    assert!(guest.begin_error(1).is_some());
    guest.store_to(1);
}

#[test]
fn scan_refused_under_a_region() {
    let name = "seccomp::scan_refused_under_a_region";
    scenario(name, &[Mode::Deferred], End::Well, |mode| scan_and_more_refused(mode, &[]));
}

#[test]
fn scan_and_replacing_refused_under_a_region() {
    let name = "seccomp::scan_and_replacing_refused_under_a_region";
    scenario(name, &[Mode::Deferred], End::Well, |mode| scan_and_more_refused(mode, &[DUP3]));
}

#[test]
fn scan_replacing_and_closing_refused_under_a_region() {
    let name = "seccomp::scan_replacing_and_closing_refused_under_a_region";
    scenario(name, &[Mode::Deferred], End::Well, |mode| scan_and_more_refused(mode, &[DUP3, CLOSE]));
}

/// No barrier orders other threads behind the end of the region any more. The end returns an
/// error and happens all the same: no page stays protected, and no descriptor stays.
#[test]
fn membarrier_refused_at_the_end_of_a_region() {
    scenario("seccomp::membarrier_refused_at_the_end_of_a_region", &SYNCHRONOUS, End::Well, |mode| {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let guest = fixture(mode);
        (1..4).for_each(|page| guest.block(page));
        let error = beside_a_pin(&guest.cache, || {
            refuse(&[MEMBARRIER], errno(libc::EPERM));
            guest.cache.tracker().remove_region(GuestAddr(GUEST)).expect_err("the barrier is refused")
        });
        assert!(error.to_string().contains("membarrier"), "{error}");
        (1..4).for_each(|page| guest.expect_dead(page));
        (1..4).for_each(|page| guest.store(byte_of(page), 1));
        assert_eq!(guest.cache.tracker().mode_at(GuestAddr(GUEST)), None);
        // Dead blocks keep their claims for a while.
        let Fixture { cache, memory: _memory, .. } = guest;
        drop(cache);
        assert_eq!(descriptors(), before, "{mode}");
    });
}

/// `mincore` tells whether a page that cannot be protected is a hole. If the call is refused,
/// the page counts as no hole.
#[test]
fn mincore_refused_under_a_region() {
    scenario("seccomp::mincore_refused_under_a_region", &TRACKING, End::Well, |mode| {
        let guest = fixture(mode);
        refuse(&[MINCORE], errno(libc::EPERM));
        if mode == Mode::Mprotect {
            unmap(&guest.memory, 3)
        } else {
            replace(&guest.memory, 3)
        };
        assert!(guest.begin_error(3).is_some(), "{mode}: a page that nobody tracks was handed out");
        guest.expect_tracked_or_lost(4);
    });
}

/// No call is left that could open the page. The store's own signal ends the process instead
/// of coming back for ever.
#[test]
fn mprotect_refused_under_a_region() {
    mprotect_and_more_refused("seccomp::mprotect_refused_under_a_region", &[]);
}

#[test]
fn mprotect_and_replacing_refused_under_a_region() {
    mprotect_and_more_refused("seccomp::mprotect_and_replacing_refused_under_a_region", &[DUP3]);
}

#[test]
fn mprotect_replacing_and_closing_refused_under_a_region() {
    mprotect_and_more_refused("seccomp::mprotect_replacing_and_closing_refused_under_a_region", &[DUP3, CLOSE]);
}

fn mprotect_and_more_refused(name: &str, more: &[Call]) {
    scenario(name, &[Mode::Mprotect], End::Signal(libc::SIGSEGV), |mode| {
        let guest = fixture(mode);
        guest.block(1);
        refuse(&[&[MPROTECT], more].concat(), errno(libc::EPERM));
        guest.store(byte_of(1), 1);
    });
}

/// The call that would put an inert file in the descriptor's place is refused too.
#[test]
fn replacing_refused_under_a_region() {
    scenario("seccomp::replacing_refused_under_a_region", &[Mode::Sigbus, Mode::Thread], End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        refuse(&[UFFDIO_WRITEPROTECT, DUP3], errno(libc::EPERM));
        guest.store_to(1);
        guest.expect_dead(1);
        guest.expect_lost();
    });
}

/// Runs `body` while a vCPU of another thread is pinned.
fn beside_a_pin<R>(cache: &CodeCache<u32>, body: impl FnOnce() -> R) -> R {
    let ((told, is_pinned), (end, is_over)) = (channel(), channel::<()>());
    scope(|threads| {
        threads.spawn(move || {
            let mut vcpu = cache.attach_vcpu();
            let _pin = vcpu.pin();
            told.send(()).unwrap();
            let _ = is_over.recv();
        });
        is_pinned.recv().unwrap();
        let result = body();
        drop(end);
        result
    })
}

/// While another vCPU runs, no page is opened without a barrier between the end of its blocks and
/// the opening. The process ends at the store instead of running on into a dead block.
fn barrier_refused(mode: Mode) {
    let guest = fixture(mode);
    guest.block(1);
    beside_a_pin(&guest.cache, || {
        refuse(&[MEMBARRIER], errno(libc::EPERM));
        guest.store(byte_of(1), 1);
    });
}

/// If no other vCPU runs no barrier is needed, nor in a region with explicit fetch.
#[test]
fn barrier_refused_where_none_is_needed() {
    scenario("seccomp::barrier_refused_where_none_is_needed", &SYNCHRONOUS, End::Well, |mode| {
        let guest = fixture(mode);
        let memory = GuestMemory::anonymous(1).unwrap();
        let explicit = RegionOptions::new(GuestAddr(2 * GUEST), memory.range(), mode).with_explicit_fetch(true);
        // SAFETY: the region is removed before the memory is dropped.
        unsafe { guest.cache.tracker().add_region(explicit) }.unwrap();
        let mut ticket = guest.cache.begin(Key::new(2 * GUEST));
        ticket.claim(GuestAddr(2 * GUEST)).unwrap();
        ticket.commit(0x1000, 0).unwrap();
        guest.block(1);
        refuse(&[MEMBARRIER], errno(libc::EPERM));
        guest.store_to(1);
        guest.expect_dead(1);
        beside_a_pin(&guest.cache, || memory.write(0, &[1]).unwrap());
        assert_eq!(guest.cache.attach_vcpu().pin().lookup(Key::new(2 * GUEST)), None);
        guest.cache.tracker().remove_region(GuestAddr(2 * GUEST)).unwrap();
    });
}

#[test]
fn barrier_refused_under_sigbus() {
    scenario("seccomp::barrier_refused_under_sigbus", &[Mode::Sigbus], End::Signal(libc::SIGBUS), barrier_refused);
}

#[test]
fn barrier_refused_under_mprotect() {
    scenario("seccomp::barrier_refused_under_mprotect", &[Mode::Mprotect], End::Signal(libc::SIGSEGV), barrier_refused);
}

#[test]
fn barrier_refused_under_thread() {
    scenario("seccomp::barrier_refused_under_thread", &[Mode::Thread], End::Signal(libc::SIGABRT), barrier_refused);
}

/// This mode needs no barrier, because it opens nothing.
#[test]
fn barrier_refused_under_deferred() {
    scenario("seccomp::barrier_refused_under_deferred", &[Mode::Deferred], End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        refuse(&[MEMBARRIER], errno(libc::EPERM));
        guest.store_to(1);
        guest.expect_dead(1);
        guest.expect_tracked(2);
        guest.cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
    });
}

/// No call is left that could open the page: as under `mprotect`.
fn everything_refused(mode: Mode) {
    let guest = fixture(mode);
    guest.block(1);
    refuse(&[UFFDIO_WRITEPROTECT, DUP3, CLOSE], errno(libc::EPERM));
    guest.store(byte_of(1), 1);
}

#[test]
fn everything_refused_under_sigbus() {
    let end = End::Signal(libc::SIGBUS);
    scenario("seccomp::everything_refused_under_sigbus", &[Mode::Sigbus], end, everything_refused);
}

/// The writer would sleep for ever: the library ends the process.
#[test]
fn everything_refused_under_thread() {
    let end = End::Signal(libc::SIGABRT);
    scenario("seccomp::everything_refused_under_thread", &[Mode::Thread], end, everything_refused);
}

/// Without the barrier new code must not run: a core may have fetched the old code ahead.
#[test]
fn barrier_refused_under_code() {
    scenario("seccomp::barrier_refused_under_code", &[Mode::None], End::Well, |_| {
        let code = CodeBuffer::new(4096).unwrap().alloc(16, 16).unwrap();
        code.publish().unwrap();
        refuse(&[MEMBARRIER], errno(libc::EPERM));
        let error = code.publish().expect_err("the barrier is refused");
        let nothing: [&Allocation; 0] = [];
        Allocation::publish_all(nothing).expect("nothing needs no barrier");
        assert!(error.to_string().contains("SYNC_CORE") && error.to_string().contains("seccomp"), "{error}");
    });
}

/// This mode makes none of the calls.
#[test]
fn none_needs_nothing() {
    scenario("seccomp::none_needs_nothing", &[Mode::None], End::Well, |mode| {
        let (before, under) =
            ([USERFAULTFD, USERFAULTFD_IOC_NEW, UFFDIO_API, PAGEMAP_SCAN], [UFFDIO_WRITEPROTECT, MPROTECT]);
        refuse(&before, errno(libc::EPERM));
        let guest = fixture(mode);
        guest.block(1);
        refuse(&[&under[..], &[MINCORE, DUP3, CLOSE, MEMBARRIER]].concat(), errno(libc::EPERM));
        guest.store_to(1);
        guest.expect_tracked(2);
    });
}
