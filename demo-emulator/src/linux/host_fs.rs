//! The emulator's own questions to the host about files that the guest names by descriptor.
//!
//! # Safety
//!
//! The descriptors are the guest's numbers. They may be closed or of any kind, and the kernel
//! answers bad ones with an error. None is owned or closed here.
#![allow(unsafe_code)]

use std::ffi::CStr;
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

/// fstatat.
pub(super) fn stat_path(dir: i32, path: &CStr, flags: i32) -> Result<libc::stat, Errno> {
    let mut stat = MaybeUninit::uninit();
    // SAFETY: the path ends with a NUL; the kernel fills the structure in when it answers 0.
    unsafe {
        if libc::fstatat(dir, path.as_ptr(), stat.as_mut_ptr(), flags) != 0 {
            return Err(Errno::last());
        }
        Ok(stat.assume_init())
    }
}

/// Whether writes always go to the file's end.
pub(super) fn appends(fd: i32) -> bool {
    // SAFETY: asks for flags and touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_APPEND != 0
}

/// Whether it is a file of procfs.
pub(super) fn is_of_proc(fd: i32) -> bool {
    let mut about = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the structure in when it answers 0.
    unsafe { libc::fstatfs(fd, about.as_mut_ptr()) == 0 && about.assume_init().f_type == libc::PROC_SUPER_MAGIC }
}

/// lseek.
pub(super) fn seek(fd: i32, offset: i64, whence: i32) -> Result<u64, Errno> {
    // SAFETY: moves a file's position and touches no memory.
    let position = unsafe { libc::lseek64(fd, offset, whence) };
    // An address of another process may look negative.
    if position == -1 { Err(Errno::last()) } else { Ok(position as u64) }
}
