//! The end of the process or of one host thread.
//!
//! # Safety
//!
//! The unsafe blocks are the two system calls that end them; neither returns.
#![allow(unsafe_code)]

/// Ends the process with all its threads, at once.
pub(super) fn exit_process(status: i32) -> ! {
    // SAFETY: nothing is left to do after the guest's end.
    unsafe { libc::_exit(status) }
}

/// Ends the calling host thread alone; the process goes on with the others.
pub(super) fn end_host_thread() -> ! {
    loop {
        // SAFETY: the thread's stack and locals stay mapped and unused.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}
