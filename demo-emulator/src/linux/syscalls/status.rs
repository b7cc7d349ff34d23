//! File status: the only structure of the file calls that differs. riscv64 and aarch64 have the
//! asm-generic `struct stat`, x86-64 one of its own.

use std::mem::offset_of;

use super::super::errno::SysResult;
use super::super::thread::Thread;
use super::super::user_memory::{Fields, half_at, word_at, write_bytes};
use super::path::host_path;

const HOST_BYTES: usize = size_of::<libc::stat>();

/// The guest's `struct stat`, 128 bytes, from the host's.
fn to_guest(host: &[u8; HOST_BYTES]) -> Vec<u8> {
    let word = |offset| word_at(host, offset);
    let half = |offset| half_at(host, offset);
    Fields::default()
        .u64s(&[word(offset_of!(libc::stat, st_dev)), word(offset_of!(libc::stat, st_ino))])
        .u32s(&[half(offset_of!(libc::stat, st_mode)), word(offset_of!(libc::stat, st_nlink)) as u32])
        .u32s(&[half(offset_of!(libc::stat, st_uid)), half(offset_of!(libc::stat, st_gid))])
        .u64s(&[word(offset_of!(libc::stat, st_rdev)), 0, word(offset_of!(libc::stat, st_size))])
        .u32s(&[word(offset_of!(libc::stat, st_blksize)) as u32, 0])
        .u64s(&[word(offset_of!(libc::stat, st_blocks))])
        .u64s(&[word(offset_of!(libc::stat, st_atime)), word(offset_of!(libc::stat, st_atime_nsec))])
        .u64s(&[word(offset_of!(libc::stat, st_mtime)), word(offset_of!(libc::stat, st_mtime_nsec))])
        .u64s(&[word(offset_of!(libc::stat, st_ctime)), word(offset_of!(libc::stat, st_ctime_nsec))])
        .u32s(&[0, 0])
        .0
}

/// fstat.
pub(super) fn stat_descriptor(thread: &mut Thread, [fd, buffer, ..]: [u64; 6]) -> SysResult {
    let mut host = [0; HOST_BYTES];
    thread.host_call(libc::SYS_fstat, [fd, host.as_mut_ptr() as u64, 0, 0, 0, 0])?;
    write_bytes(&thread.process.window, buffer, &to_guest(&host))?;
    Ok(0)
}

/// newfstatat.
pub(super) fn stat_at(thread: &mut Thread, [dir, path, buffer, flags, ..]: [u64; 6]) -> SysResult {
    // The empty path of AT_EMPTY_PATH may be null.
    let path = if path == 0 { c"".into() } else { host_path(thread, path)? };
    let mut host = [0; HOST_BYTES];
    let arguments = [dir, path.as_ptr() as u64, host.as_mut_ptr() as u64, flags, 0, 0];
    thread.host_call(libc::SYS_newfstatat, arguments)?;
    write_bytes(&thread.process.window, buffer, &to_guest(&host))?;
    Ok(0)
}
