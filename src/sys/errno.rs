//! errno: its address serves as a thread's number, and a handler preserves its value.
//!
//! # Safety
//!
//! Only the calling thread's errno is read or written.
#![allow(unsafe_code)]

use core::ffi::c_int;

/// A number that differs between all living threads, without a system call: the address of
/// errno. Async-signal-safe.
#[cfg(not(loom))]
pub(crate) fn this_thread() -> u64 {
    // SAFETY: gives an address; nothing is read.
    (unsafe { libc::__errno_location() }) as u64
}

/// All threads of a model run on one thread of the system.
#[cfg(loom)]
pub(crate) fn this_thread() -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    BuildHasherDefault::<DefaultHasher>::default().hash_one(loom::thread::current().id())
}

/// Puts errno back: the interrupted code may be about to look at it.
pub(super) struct KeepErrno(c_int);

impl KeepErrno {
    pub(super) fn new() -> Self {
        // SAFETY: errno of this thread.
        Self(unsafe { *libc::__errno_location() })
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: errno of this thread.
        unsafe { *libc::__errno_location() = self.0 };
    }
}
