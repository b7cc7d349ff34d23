//! The host memory that a run needs before its guest starts, asked for at once: later
//! a failed allocation ends the process, and so does a stack that cannot grow.
//!
//! # Safety
//!
//! The mapping that is tried is the caller's alone, and is gone before it returns. The
//! one byte that is read lies in the calling thread's own stack or where the kernel lets
//! that grow; nothing is written there.
#![allow(unsafe_code)]

use std::{io, ptr};

/// Bytes of stack that the first hart gets where the limit may be raised for a moment.
const STACK_BYTES: u64 = 1 << 20;

/// Bytes above it that the arguments may take, which lie in the stack too.
const ARGUMENTS_BYTES: u64 = 512 << 10;

/// Bytes of stack that compiling needs.
const LEAST_STACK_BYTES: u64 = 256 << 10;

/// Whether `len_bytes` of private memory can be had beside what there is.
pub fn check_data(len_bytes: usize) -> io::Result<()> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has that length, and nobody knows of it.
    unsafe { libc::munmap(start, len_bytes) };
    Ok(())
}

/// Lets the main thread's stack grow to what compiling needs. The limit on its size
/// counts only while it grows, so it is raised for that moment, if it may be.
pub fn grow_stack() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= STACK_BYTES {
        return Ok(());
    }
    let rlim_cur = STACK_BYTES + ARGUMENTS_BYTES;
    let raised = libc::rlimit { rlim_cur, rlim_max: limit.rlim_max.max(rlim_cur) };
    // SAFETY: the kernel reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const raised) } != 0 {
        let refused = io::Error::last_os_error();
        return if limit.rlim_cur < LEAST_STACK_BYTES { Err(refused) } else { Ok(()) };
    }
    let here = 0u8;
    let low = (&raw const here).wrapping_sub(STACK_BYTES as usize);
    // SAFETY: see the module's head.
    unsafe { low.read_volatile() };
    // SAFETY: the kernel reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
