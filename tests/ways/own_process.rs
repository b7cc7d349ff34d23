//! Ways that must not run in the test's own process. This binary runs once more, because the
//! kernel may kill it.
//!
//! # Safety
//!
//! The thread that made a child waits for it.
#![allow(unsafe_code)]

use core::ffi::c_int;
use std::os::unix::process::ExitStatusExt;

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;

use crate::alone::{run_alone, task};
use crate::support::{Fixture, PAGES, page_bytes, skip, tracking_modes};

/// The exit code of a process that cannot try its way here.
pub(crate) const NOT_HERE: c_int = 3;

/// Runs `way` in every mode, announced and not, each in a process of its own. The process must
/// end normally. If `way` is not announced and the mode refuses the kernel's writes, it must
/// die of SIGSEGV. `name` is the path of the calling test.
pub(crate) fn fatal_unless_announced(name: &str, variables: &[(&str, &str)], way: impl Fn(Mode, bool)) {
    if let Some(task) = task() {
        let (mode, how) = task.split_once(' ').unwrap();
        way(Mode::from_name(mode).unwrap(), how == "announced");
        std::process::exit(0);
    }
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        let guest = Fixture::new(mode, GuestMemory::anonymous(PAGES * page_bytes()).unwrap());
        for how in ["announced", "unannounced"] {
            let status = run_alone(name, &format!("{mode} {how}"), variables).status;
            if status.code() == Some(NOT_HERE) {
                return skip(&format!("{name} cannot be tried here"));
            }
            if how == "announced" || guest.kernel_writes_pass() {
                assert_eq!(status.code(), Some(0), "{mode} {how}: {status}");
            } else {
                assert_eq!(status.signal(), Some(libc::SIGSEGV), "{mode} {how}: {status}");
            }
        }
    }
}

/// Waits for a child, which may share the memory.
pub(crate) fn wait_for(pid: c_int) -> c_int {
    let mut status = 0;
    // SAFETY: a child of this thread and a local to write to.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) }, pid);
    status
}
