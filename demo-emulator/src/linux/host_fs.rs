//! What the emulator itself asks the host about files that the guest names by
//! descriptor.
//!
//! # Safety
//!
//! The descriptors are the guest's numbers: they may be closed or be anything,
//! which the kernel answers with an error. None is owned or closed here.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use super::errno::Errno;

/// fstat.
pub(super) fn stat_fd(fd: i32) -> Result<libc::stat, Errno> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: the kernel fills the structure in when it answers 0.
    unsafe {
        if libc::fstat(fd, stat.as_mut_ptr()) != 0 {
            return Err(Errno::last());
        }
        Ok(stat.assume_init())
    }
}
