//! A thread's number, and its errno, which a handler preserves.
//!
//! # Safety
//!
//! Only the calling thread's errno is read or written. The thread pointer is only read.
#![allow(unsafe_code)]

use core::ffi::c_int;
use core::sync::atomic::{AtomicIsize, Ordering};

/// A number that differs between all living threads, without a system call or a call of the C
/// library: the thread pointer, or elsewhere the address of errno. Async-signal-safe.
#[cfg(not(loom))]
#[inline]
pub(crate) fn this_thread() -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let pointer: u64;
        // SAFETY: by the x86-64 ABI the thread pointer is the first word of its own block.
        unsafe { core::arch::asm!("mov {}, fs:0", out(reg) pointer, options(nostack, preserves_flags, readonly)) };
        pointer
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    {
        let pointer: u64;
        // SAFETY: reads a register.
        unsafe { core::arch::asm!("mrs {}, tpidr_el0", out(reg) pointer, options(nostack, preserves_flags, nomem)) };
        pointer
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    // SAFETY: gives an address; nothing is read.
    (unsafe { libc::__errno_location() } as u64)
}

/// All threads of a model run on one thread of the system.
#[cfg(loom)]
pub(crate) fn this_thread() -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    BuildHasherDefault::<DefaultHasher>::default().hash_one(loom::thread::current().id())
}

/// The address of errno less the number of its thread; 0 before it is known. It is the same for all
/// threads: the C library keeps errno at a fixed place in the block of each.
static FROM_THREAD: AtomicIsize = AtomicIsize::new(0);

/// The address of this thread's errno. In a fault handler a call into the C library costs a tenth of
/// the library's own time, as its code is far away.
#[inline]
fn errno() -> *mut c_int {
    match FROM_THREAD.load(Ordering::Relaxed) {
        0 => ask_for_errno(),
        from_thread => (this_thread() as *mut c_int).wrapping_byte_offset(from_thread),
    }
}

#[cold]
#[inline(never)]
fn ask_for_errno() -> *mut c_int {
    // SAFETY: gives an address.
    let at = unsafe { libc::__errno_location() };
    if cfg!(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(any(miri, loom)))) {
        FROM_THREAD.store((at as isize).wrapping_sub(this_thread() as isize), Ordering::Relaxed);
    }
    at
}

/// Puts errno back: the interrupted code may be about to look at it.
pub(super) struct KeepErrno {
    at: *mut c_int,
    value: c_int,
}

impl KeepErrno {
    #[inline]
    pub(super) fn new() -> Self {
        let at = errno();
        // SAFETY: errno of this thread.
        Self { at, value: unsafe { *at } }
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: errno of this thread.
        unsafe { *self.at = self.value };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_thread_finds_its_own_errno() {
        ask_for_errno();
        let check = || {
            // SAFETY: gives an address.
            assert_eq!(errno(), unsafe { libc::__errno_location() });
            this_thread()
        };
        let own = check();
        std::thread::scope(|threads| {
            let others = [(); 4].map(|()| threads.spawn(check));
            assert!(others.into_iter().all(|other| other.join().unwrap() != own));
        });
    }
}
