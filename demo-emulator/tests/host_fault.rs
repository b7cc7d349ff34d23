//! The emulator's signal handler and faults that are not the guest's. Signal actions belong to the
//! process, so every scenario runs in a child: this binary, running one test, with `SCENARIO` set.
//!
//! # Safety
//!
//! The children install handlers that do only async-signal-safe work, and touch pages that they
//! have mapped for it.
#![allow(unsafe_code)]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use demo_emulator::memory::{Window, host_fault};

/// Runs `scenario` in a child that runs this test alone, and returns its output; in the child, runs
/// it.
fn in_child(test: &str, scenario: fn()) -> Output {
    if std::env::var_os("SCENARIO").is_some() {
        scenario();
        std::process::exit(0);
    }
    let binary = std::env::current_exe().unwrap();
    let arguments = ["--exact", test, "--nocapture", "--test-threads=1"];
    Command::new(binary).args(arguments).env("SCENARIO", test).output().unwrap()
}

/// A page without access.
fn closed_page() -> *mut u8 {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping.
    let page = unsafe { libc::mmap(ptr::null_mut(), 4096, libc::PROT_NONE, flags, -1, 0) };
    assert_ne!(page, libc::MAP_FAILED);
    page.cast()
}

fn open_page(addr: usize) -> bool {
    // SAFETY: a page that `closed_page` made.
    unsafe { libc::mprotect((addr & !4095) as *mut libc::c_void, 4096, libc::PROT_READ | libc::PROT_WRITE) == 0 }
}

/// Stores to a page that a handler opens, and reads the page.
fn write_and_read(page: *mut u8) -> u8 {
    // SAFETY: a page that `closed_page` made; while it is closed, the process waits at the store.
    unsafe {
        page.write_volatile(7);
        page.read_volatile()
    }
}

static CALLS: AtomicUsize = AtomicUsize::new(0);

#[test]
fn a_crash_of_the_host_still_kills() {
    let output = in_child("a_crash_of_the_host_still_kills", || {
        host_fault::install().unwrap();
        // SAFETY: none: this must kill the process.
        unsafe { closed_page().write_volatile(1) };
    });
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
}

#[test]
fn a_crash_kills_where_the_action_was_the_default() {
    let output = in_child("a_crash_kills_where_the_action_was_the_default", || {
        // SAFETY: sets the default action.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        host_fault::install().unwrap();
        // SAFETY: none: this must kill the process.
        unsafe { closed_page().write_volatile(1) };
    });
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
}

#[test]
fn a_signal_that_was_sent_kills_where_the_action_was_the_default() {
    let output = in_child("a_signal_that_was_sent_kills_where_the_action_was_the_default", || {
        // SAFETY: sets the default action and sends the signal.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        host_fault::install().unwrap();
        // SAFETY: as above.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

#[test]
fn a_stack_overflow_is_still_reported() {
    let output = in_child("a_stack_overflow_is_still_reported", || {
        #[allow(unconditional_recursion)]
        fn deeper(n: u64) -> u64 {
            std::hint::black_box(deeper(std::hint::black_box(n + 1)) + n)
        }
        host_fault::install().unwrap();
        deeper(0);
    });
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("has overflowed its stack"), "{output:?}");
}

extern "C" fn earlier_handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's argument.
    open_page(unsafe { (*info).si_addr() } as usize);
}

#[test]
fn the_earlier_handler_gets_other_faults() {
    let output = in_child("the_earlier_handler_gets_other_faults", || {
        // SAFETY: a handler that opens the page that faulted.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = earlier_handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut());
        }
        // A second install must not make the handler its own predecessor.
        host_fault::install().unwrap();
        host_fault::install().unwrap();
        let page = closed_page();
        assert_eq!(write_and_read(page), 7);
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
        // A guest's fault does not reach it.
        assert!(Window::reserve().unwrap().load_u8(0).is_err());
        assert_eq!(CALLS.load(Ordering::Relaxed), 1);
    });
    assert!(output.status.success(), "{output:?}");
}

unsafe extern "C" fn hook(signal: libc::c_int, info: *const libc::siginfo_t, _: *mut libc::ucontext_t) -> bool {
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel's argument.
    signal == libc::SIGSEGV && open_page(unsafe { (*info).si_addr() } as usize)
}

#[test]
fn the_hook_is_asked_before_the_handler_before() {
    let output = in_child("the_hook_is_asked_before_the_handler_before", || {
        host_fault::install().unwrap();
        host_fault::set_fault_hook(hook);
        let page = closed_page();
        assert_eq!(write_and_read(page), 7);
        assert!(Window::reserve().unwrap().load_u8(0).is_err());
        assert_eq!(CALLS.load(Ordering::Relaxed), 1, "the accesses' own faults come first");
        // A fault that the handler does not claim kills as before.
        // SAFETY: none: this must kill the process.
        unsafe { ptr::without_provenance_mut::<u8>(64).write_volatile(1) };
    });
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}");
}
