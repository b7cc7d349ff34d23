//! The host memory that a run needs, requested before its guest starts. Later, a failed allocation
//! would end the process, and so would a stack that cannot grow.
//!
//! # Safety
//!
//! The trial mapping is the caller's alone, and is gone before the function returns. The one byte
//! that is read lies in the calling thread's own stack, or in the range that the kernel lets it
//! grow into; nothing is written there.
#![allow(unsafe_code)]

use std::{io, ptr};

/// The first hart's bytes of stack, if the limit may be raised for a moment.
const STACK_BYTES: u64 = 1 << 20;

/// Bytes above it that the arguments may take; they lie in the stack too.
const ARGUMENTS_BYTES: u64 = 512 << 10;

/// Bytes of stack that compiling needs.
const LEAST_STACK_BYTES: u64 = 256 << 10;

/// Whether `len_bytes` more of private memory are available.
pub fn check_data(len_bytes: usize) -> io::Result<()> {
    let (protection, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { libc::mmap(ptr::null_mut(), len_bytes, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has that length, and no other code knows it.
    unsafe { libc::munmap(start, len_bytes) };
    Ok(())
}

/// Lets the main thread's stack grow to the size that compiling needs. The limit counts only while
/// the stack grows, so it is raised for that moment, if that is allowed.
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
    // An address and no more: to the compiler nothing of `here` lies there.
    let low = std::hint::black_box((&raw const here).expose_provenance() - STACK_BYTES as usize);
    // SAFETY: see the module's head.
    unsafe { ptr::with_exposed_provenance::<u8>(low).read_volatile() };
    // SAFETY: the kernel reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_STACK, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
