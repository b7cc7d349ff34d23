//! What must not happen in the test's own process: a forked child that makes
//! system calls alone, or this binary started again for one test.
//!
//! # Safety
//!
//! Other threads of the process may hold any lock at a fork: children call what is
//! async-signal-safe and leave by `_exit`.
#![allow(unsafe_code)]

use core::ffi::c_int;
use std::process::{Command, ExitStatus};

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

/// Set where this binary runs one test for another process of it.
const TASK: &str = "CODEWARDEN_WAYS_TASK";

/// What this process was started for, where it was.
pub(crate) fn task() -> Option<String> {
    std::env::var(TASK).ok()
}

/// Runs the test `name` of this binary in a process of its own, where [`task`]
/// gives `task`.
pub(crate) fn run_alone(name: &str, task: &str) -> ExitStatus {
    let own_path = std::env::current_exe().expect("the path of this test");
    let mut command = Command::new(own_path);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(TASK, task);
    // Threads of it have no rseq area of the C library's.
    command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    command.output().expect("a child").status
}
