//! A signal's frame: the kernel writes it to the handler's stack. If that stack is protected
//! guest memory and kernel writes are refused, the kernel kills the process with SIGSEGV. So an
//! embedder gives its threads a signal stack of its own
//! ([`AltStack`](codewarden::protection::AltStack)), or holds the stack that a guest registers.
//!
//! Each case runs in a process of its own.
//!
//! # Safety
//!
//! The stack is the fixture's memory, which the process keeps until its end.
#![allow(unsafe_code)]

use core::ffi::c_int;
use core::ptr;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;

use crate::own_process::fatal_unless_announced;
use crate::support::{Fixture, page_bytes};

/// Room for a frame with every register that a processor has.
const STACK_BYTES: usize = 256 << 10;

static HANDLED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: c_int) {
    HANDLED.store(true, SeqCst);
}

/// Handles a signal on a stack with protected last pages.
fn on_a_guests_stack(mode: Mode, announced: bool) {
    let guest = Fixture::new(mode, GuestMemory::anonymous(STACK_BYTES).unwrap());
    let pages = STACK_BYTES / page_bytes();
    let blocks: Vec<_> = (0..pages).map(|page| guest.block(page, 0)).collect();
    let held = announced.then(|| guest.prepare(0, 0, STACK_BYTES));
    // SAFETY: the handler stores to an atomic; the stack stays.
    unsafe {
        let stack = libc::stack_t { ss_sp: guest.host(0, 0).cast(), ss_flags: 0, ss_size: STACK_BYTES };
        assert_eq!(libc::sigaltstack(&raw const stack, ptr::null_mut()), 0);
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = note as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()), 0);
        libc::raise(libc::SIGUSR1);
        let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        assert_eq!(libc::sigaltstack(&raw const none, ptr::null_mut()), 0);
    }
    assert!(HANDLED.load(SeqCst));
    drop(held);
    guest.expect_learned(blocks[pages - 1]);
}

#[test]
fn a_frame_on_a_protected_stack() {
    fatal_unless_announced("signal_frame::a_frame_on_a_protected_stack", &[], on_a_guests_stack);
}
