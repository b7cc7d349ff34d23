//! Closing and replacing descriptors: the emulator's own few are out of reach, as if they were not
//! open.

use super::super::errno::{Errno, SysResult};
use super::super::thread::Thread;

fn is_own(thread: &Thread, fd: u64) -> bool {
    thread.process.own_descriptors().contains(&(fd as i32))
}

/// close.
pub(super) fn close(thread: &mut Thread, [fd, ..]: [u64; 6]) -> SysResult {
    if is_own(thread, fd) {
        return Err(Errno::EBADF.into());
    }
    thread.host_call(libc::SYS_close, [fd, 0, 0, 0, 0, 0])
}

/// dup3.
pub(super) fn duplicate(thread: &mut Thread, [fd, onto, flags, ..]: [u64; 6]) -> SysResult {
    if is_own(thread, onto) {
        return Err(Errno::EBADF.into());
    }
    thread.host_call(libc::SYS_dup3, [fd, onto, flags, 0, 0, 0])
}

/// close_range: the parts between the emulator's own.
pub(super) fn close_range(thread: &mut Thread, [first, last, flags, ..]: [u64; 6]) -> SysResult {
    let (first, last) = (u64::from(first as u32), u64::from(last as u32));
    if first > last {
        return Err(Errno::EINVAL.into());
    }
    let mut from = first;
    for own in thread.process.own_descriptors().into_iter().map(|fd| fd as u64) {
        if own > last {
            break;
        }
        if own > from {
            thread.host_call(libc::SYS_close_range, [from, own - 1, flags, 0, 0, 0])?;
        }
        from = from.max(own + 1);
    }
    if from <= last {
        thread.host_call(libc::SYS_close_range, [from, last, flags, 0, 0, 0])?;
    }
    Ok(0)
}
