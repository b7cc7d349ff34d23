//! A debugger's writes, by the kernel's way to the memory of another process:
//! `/proc/PID/mem`, `ptrace`.
//!
//! userfaultfd's synchronous modes refuse them with EIO and without an event, thread mode too.
//! mprotect lets them through to private memory, unreported. Deferred mode learns of them. So
//! a debugger announces its writes in every mode.
//!
//! # Safety
//!
//! The tracer writes to the fixture's own memory.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::ptr;
use std::fs::File;
use std::io::{self, Error};
use std::os::unix::fs::FileExt;

use codewarden::protection::Mode;

use crate::child::{Ended, in_child};
use crate::expect::in_every_mode;
use crate::support::skip;

const NEW: u64 = 0x1122_3344_5566_7788;

/// A debugger's write of NEW.
type Call = fn(*mut u8) -> io::Result<()>;

fn in_each_mode_by(call: Call) {
    let mut local = 0_u64;
    if let Err(error) = call((&raw mut local).cast()) {
        return skip(&format_args!("a debugger's write: {error}"));
    }
    assert_eq!(local, NEW);
    in_every_mode(|guest| {
        let is_new = |page| guest.bytes(page, 8, 8) == NEW.to_ne_bytes();
        let block = guest.block(1, 8);
        match (call(guest.host(1, 8)), guest.mode) {
            (Ok(()), Mode::Deferred | Mode::None) => {
                assert!(is_new(1));
                guest.expect_learned(block);
            }
            // Private memory: by copy on write, whatever access the mapping allows.
            (Ok(()), Mode::Mprotect) => {
                assert!(is_new(1) && guest.memory.file().is_none());
                guest.expect_reachable(block);
            }
            (Err(error), Mode::Sigbus | Mode::Thread | Mode::Mprotect) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{}", guest.mode);
                assert!(!is_new(1));
                guest.expect_reachable(block);
            }
            (result, mode) => panic!("{mode}: {result:?}"),
        }
        let block = guest.block(2, 8);
        let held = guest.prepare_unseen(2, 8, 8);
        call(guest.host(2, 8)).unwrap();
        guest.expect_dead(block);
        drop(held);
        assert!(is_new(2));
        guest.expect_tracked(2, 8);
    });
}

#[test]
fn proc_self_mem() {
    in_each_mode_by(|at| {
        let memory = File::options().write(true).open("/proc/self/mem")?;
        memory.write_all_at(&NEW.to_ne_bytes(), at as u64)
    });
}

/// Stops the thread `tid`, writes NEW, continues the thread. Returns an errno.
fn poke(tid: c_int, at: *mut u8) -> c_int {
    let nothing = ptr::null_mut::<c_void>();
    // SAFETY: the write disturbs nothing: the thread waits for this process.
    unsafe {
        let errno = || *libc::__errno_location();
        if libc::ptrace(libc::PTRACE_SEIZE, tid, nothing, nothing) != 0
            || libc::ptrace(libc::PTRACE_INTERRUPT, tid, nothing, nothing) != 0
            || libc::waitpid(tid, ptr::null_mut(), libc::__WALL) != tid
        {
            return errno();
        }
        let word = ptr::without_provenance_mut::<c_void>(NEW as usize);
        let poked = libc::ptrace(libc::PTRACE_POKEDATA, tid, at, word);
        let result = if poked == 0 { 0 } else { errno() };
        libc::ptrace(libc::PTRACE_DETACH, tid, nothing, nothing);
        result
    }
}

#[test]
fn ptrace_poke_data() {
    in_each_mode_by(|at| {
        // SAFETY: asks for a number.
        let tid = unsafe { libc::gettid() };
        match in_child(|| poke(tid, at) as u8) {
            Ended::Returned(0) => Ok(()),
            Ended::Returned(errno) => Err(Error::from_raw_os_error(errno.into())),
            ended => panic!("{ended:?}"),
        }
    });
}
