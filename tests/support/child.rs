//! A fork's child, for every test that needs one.
//!
//! If a child returned from its test, the test harness would go on in it, and a panic might end the
//! child as a success. So a child ends here, in `_exit`, whether or not its body panics.
//!
//! # Safety
//!
//! Other threads of the process may hold any lock at a fork. A body uses only plain memory,
//! system calls, and the things that its test's guards cover.
#![allow(unsafe_code)]

use core::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::limit::limit_s;

/// A child that waits longer waits for ever: SIGALRM ends it.
const LIMIT_S: u32 = 60;

/// The exit code of a child whose body panicked. No body returns it.
const PANICKED: c_int = 255;

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a child that fails is to fail the test"]
pub(crate) enum Ended {
    /// Its body returned this.
    Returned(u8),
    /// Its body panicked, and wrote the reason to standard error.
    Panicked,
    /// It hung.
    Hung,
    /// This signal ended it.
    Killed(c_int),
}

/// Runs `body` in a child and waits for its end. Before the wait the parent drops its copy of
/// `body`, with the guards in it.
pub(crate) fn in_child(body: impl FnOnce() -> u8) -> Ended {
    let limit_s = limit_s(LIMIT_S);
    // SAFETY: see the head.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "no process to be had: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: sets a timer of this process, which inherited none.
        unsafe { libc::alarm(limit_s) };
        let code = catch_unwind(AssertUnwindSafe(body)).map_or_else(|panic| told(&*panic), c_int::from);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    drop(body);
    let mut status = 0;
    // SAFETY: our own child, not waited for yet, and a local to write to.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status), libc::WTERMSIG(status)) {
        (true, PANICKED, _) => Ended::Panicked,
        (true, code, _) => Ended::Returned(code as u8),
        (false, _, libc::SIGALRM) => Ended::Hung,
        (false, _, signal) => Ended::Killed(signal),
    }
}

/// Writes the reason to standard error directly. The test harness holds a panic's text back
/// until its test ends, and the test ends in the parent alone.
fn told(panic: &(dyn core::any::Any + Send)) -> c_int {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    for piece in ["the forked child panicked: ", text.unwrap_or("it says nothing of itself"), "\n"] {
        // SAFETY: reads the text. If it cannot be written, the exit code says enough.
        unsafe { libc::write(libc::STDERR_FILENO, piece.as_ptr().cast(), piece.len()) };
    }
    PANICKED
}
