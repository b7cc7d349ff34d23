//! What must not happen in the test's own process: a forked child that makes
//! system calls alone. (`support/alone.rs` starts this binary again.)
//!
//! # Safety
//!
//! Other threads of the process may hold any lock at a fork: children call what is
//! async-signal-safe and leave by `_exit`.
#![allow(unsafe_code)]

use core::ffi::c_int;

/// Runs `body`, which makes system calls, plain loads and stores and nothing else,
/// in a forked child; gives what it returned, 255 at most.
pub(crate) fn in_fork(body: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: see the head.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        let code = body();
        // SAFETY: leaves without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let status = wait_for(pid);
    assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
    libc::WEXITSTATUS(status)
}

/// Waits for a child, which may share the memory.
pub(crate) fn wait_for(pid: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: a child of this thread and a local to write to.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
    status
}
