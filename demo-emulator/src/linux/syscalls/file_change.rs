//! Calls that change the bytes of a file, except write and its variants. The file may be mapped:
//! see [`file_change`](super::super::file_change).

use std::ffi::CStr;
use std::ops::Range;

use super::super::errno::SysResult;
use super::super::host_fs;
use super::super::process::FileChange;
use super::super::thread::Thread;
use super::path::host_path;

/// All bytes that a file may have.
pub(super) const ALL: Range<u64> = 0..u64::MAX;

/// Announces that any byte of the file may change.
pub(super) fn of_all(thread: &Thread, fd: u64) -> Option<FileChange<'_>> {
    thread.process.file_change(&host_fs::stat_fd(fd as i32).ok()?, ALL)
}

/// Announces a new length. If a file grows, the rest of its old last page may have been written to,
/// and is made zero.
fn resized<'a>(thread: &'a Thread, stat: &libc::stat, len: u64) -> Option<FileChange<'a>> {
    thread.process.file_change(stat, len.min(stat.st_size as u64)..u64::MAX)
}

/// ftruncate.
pub(super) fn resize(thread: &mut Thread, [fd, len, ..]: [u64; 6]) -> SysResult {
    let stat = host_fs::stat_fd(fd as i32);
    let _change = stat.ok().and_then(|stat| resized(thread, &stat, len));
    thread.host_call(libc::SYS_ftruncate, [fd, len, 0, 0, 0, 0])
}

/// truncate.
pub(super) fn resize_path(thread: &mut Thread, [path, len, ..]: [u64; 6]) -> SysResult {
    let path = host_path(thread, path)?;
    let stat = host_fs::stat_path(libc::AT_FDCWD, &path, 0);
    let _change = stat.ok().and_then(|stat| resized(thread, &stat, len));
    thread.host_call(libc::SYS_truncate, [path.as_ptr() as u64, len, 0, 0, 0, 0])
}

/// fallocate, which may punch holes, write zeros, and move the bytes after them.
pub(super) fn allocate(thread: &mut Thread, [fd, mode, offset, len, ..]: [u64; 6]) -> SysResult {
    let moves = (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) as u64;
    let _change = host_fs::stat_fd(fd as i32).ok().and_then(|stat| {
        let end = if mode & moves == 0 { offset.saturating_add(len) } else { u64::MAX };
        thread.process.file_change(&stat, offset.min(stat.st_size as u64)..end)
    });
    thread.host_call(libc::SYS_fallocate, [fd, mode, offset, len, 0, 0])
}

/// sendfile.
pub(super) fn send(thread: &mut Thread, [to, from, offset, len, ..]: [u64; 6]) -> SysResult {
    let (offset, _write) = thread.out_pointer(offset, 8)?;
    let _change = of_all(thread, to);
    thread.host_call(libc::SYS_sendfile, [to, from, offset, len, 0, 0])
}

/// splice.
pub(super) fn splice(thread: &mut Thread, arguments: [u64; 6]) -> SysResult {
    between(thread, libc::SYS_splice, arguments)
}

/// copy_file_range.
pub(super) fn copy(thread: &mut Thread, arguments: [u64; 6]) -> SysResult {
    between(thread, libc::SYS_copy_file_range, arguments)
}

fn between(thread: &Thread, number: i64, [from, from_at, to, to_at, len, flags]: [u64; 6]) -> SysResult {
    let (from_at, _from) = thread.out_pointer(from_at, 8)?;
    let (to_at, _to) = thread.out_pointer(to_at, 8)?;
    // The whole file, not the offset behind `to_at`: the guest may change that meanwhile.
    let _change = of_all(thread, to);
    thread.host_call(number, [from, from_at, to, to_at, len, flags])
}

/// Makes an open that empties the file.
pub(super) fn truncating_open(
    thread: &Thread,
    dir: i32,
    path: &CStr,
    flags: u64,
    open: impl FnOnce() -> SysResult,
) -> SysResult {
    let follow = if flags & libc::O_NOFOLLOW as u64 == 0 { 0 } else { libc::AT_SYMLINK_NOFOLLOW };
    let before = host_fs::stat_path(dir, path, follow).ok();
    let _change = before.and_then(|stat| thread.process.file_change(&stat, ALL));
    let fd = open()?;
    // Meanwhile the name may have been given to another file.
    let now = host_fs::stat_fd(fd as i32)
        .ok()
        .filter(|now| before.is_none_or(|before| (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino)));
    drop(now.and_then(|stat| thread.process.file_change(&stat, ALL)));
    Ok(fd)
}
