//! The embedder blocks the library's signal, or takes it. The kernel offers no way to prevent
//! either. These tests show the checks that an embedder can make first, and how the process ends.
//!
//! # Safety
//!
//! Changes masks and handlers of processes of their own.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::mem::MaybeUninit;
use core::ptr;

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Handled, Mode, handle_fault, handler_is_ours, is_blocked_here};
use codewarden::{CodeCache, EntryStubs};

use crate::scenario::{End, byte_of, fixture, scenario};
use crate::support::{GUEST, PAGES, page_bytes, region};

/// The signal by which `mode` learns of a store.
fn signal_of(mode: Mode) -> c_int {
    if mode == Mode::Sigbus { libc::SIGBUS } else { libc::SIGSEGV }
}

fn block(signals: &[c_int]) {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: works on the local set.
    unsafe {
        signals.iter().for_each(|signo| assert_eq!(libc::sigaddset(set.as_mut_ptr(), *signo), 0));
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut());
    }
}

fn install(signo: c_int, handler: usize) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a zeroed action is a valid one; the handlers are those of this file.
    unsafe {
        let action = action.assume_init_mut();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(signo, action, ptr::null_mut()), 0);
    }
}

/// A store by a thread that blocks the signal: the kernel ends the process, before
/// the store retires.
fn blocked(mode: Mode) {
    let guest = fixture(mode);
    guest.block(1);
    assert!(!is_blocked_here(signal_of(mode)));
    block(&[signal_of(mode)]);
    assert!(is_blocked_here(signal_of(mode)), "the embedder could have known");
    guest.store(byte_of(1), 1);
}

#[test]
fn sigbus_blocked() {
    scenario("signals::sigbus_blocked", &[Mode::Sigbus], End::Signal(libc::SIGBUS), blocked);
}

#[test]
fn sigsegv_blocked() {
    scenario("signals::sigsegv_blocked", &[Mode::Mprotect], End::Signal(libc::SIGSEGV), blocked);
}

/// A thread that adds a region while it blocks its signal will block it at its stores, and so
/// will the threads that it starts. That is an error, whoever owns the signals.
#[test]
fn blocked_when_a_region_is_added() {
    let modes = [Mode::Sigbus, Mode::Mprotect];
    scenario("signals::blocked_when_a_region_is_added", &modes, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
        block(&[signal_of(mode)]);
        for embedder_owns_signals in [false, true] {
            let options = region(GUEST, &memory, mode).with_embedder_signals(embedder_owns_signals);
            // SAFETY: the memory outlives the cache.
            let error = unsafe { cache.tracker().add_region(options) }.unwrap_err().to_string();
            let name = if mode == Mode::Sigbus { "SIGBUS" } else { "SIGSEGV" };
            assert!(error.contains(name) && error.contains(mode.name()) && error.contains("unblock"), "{error}");
        }
    });
}

/// The other modes need no signal of the storing thread.
#[test]
fn blocked_where_none_is_needed() {
    let modes = [Mode::Thread, Mode::Deferred, Mode::None];
    scenario("signals::blocked_where_none_is_needed", &modes, End::Well, |mode| {
        let guest = fixture(mode);
        block(&[libc::SIGBUS, libc::SIGSEGV]);
        guest.expect_tracked(1);
    });
}

unsafe extern "C" fn hands_on(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the arguments are the kernel's.
    if unsafe { handle_fault(signo, info, context) } == Handled::NotOurs {
        // SAFETY: leaves from a handler.
        unsafe { libc::_exit(3) };
    }
}

/// A handler installed over the library's that calls `handle_fault` first, as it should:
/// nothing changes.
#[test]
fn replaced_by_one_that_hands_on() {
    scenario("signals::replaced_by_one_that_hands_on", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        install(signal_of(mode), hands_on as *const () as usize);
        assert!(!handler_is_ours(signal_of(mode)));
        guest.store_to(1);
        guest.expect_dead(1);
        guest.expect_tracked(2);
    });
}

/// A handler that ignores the library: the default action.
fn replaced_by_the_default(mode: Mode) {
    let guest = fixture(mode);
    guest.block(1);
    assert!(handler_is_ours(signal_of(mode)));
    install(signal_of(mode), libc::SIG_DFL);
    assert!(!handler_is_ours(signal_of(mode)), "the embedder could have known");
    guest.store(byte_of(1), 1);
}

#[test]
fn sigbus_replaced() {
    scenario("signals::sigbus_replaced", &[Mode::Sigbus], End::Signal(libc::SIGBUS), replaced_by_the_default);
}

#[test]
fn sigsegv_replaced() {
    scenario("signals::sigsegv_replaced", &[Mode::Mprotect], End::Signal(libc::SIGSEGV), replaced_by_the_default);
}

#[test]
fn replaced_where_none_is_needed() {
    let modes = [Mode::Thread, Mode::Deferred, Mode::None];
    scenario("signals::replaced_where_none_is_needed", &modes, End::Well, |mode| {
        let guest = fixture(mode);
        [libc::SIGBUS, libc::SIGSEGV].into_iter().for_each(|signo| install(signo, libc::SIG_DFL));
        guest.expect_tracked(1);
    });
}
