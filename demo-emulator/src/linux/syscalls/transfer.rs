//! read, write and their variants move bytes between a descriptor and guest memory. Memory is one
//! piece or a vector; the offset is the file's position or the call's.
//!
//! A read changes guest memory. A write may change a mapped file. `/proc/self/mem` is guest memory
//! itself.

use super::super::errno::{Errno, SysResult};
use super::super::host_fs;
use super::super::process::{FileChange, KernelWrite};
use super::super::thread::Thread;
use super::super::user_memory::{host_pointer, read_bytes, word_at};
use super::{file_change, own_memory};

/// Most entries of an iovec.
const IOV_MAX: u64 = 1024;

/// A guest iovec as the host's: pairs of host address and length.
pub(super) fn vector(thread: &Thread, address: u64, count: u64) -> Result<Vec<[u64; 2]>, Errno> {
    if count > IOV_MAX {
        return Err(Errno::EINVAL);
    }
    let window = &thread.process.window;
    let mut bytes = vec![0; 16 * count as usize];
    read_bytes(window, address, &mut bytes)?;
    bytes
        .chunks_exact(16)
        .map(|entry| {
            let (base, len) = (word_at(entry, 0), word_at(entry, 8));
            // The kernel ignores the pointer of an empty entry.
            let host = if len == 0 { 0 } else { host_pointer(window, base, len)? };
            Ok([host, len])
        })
        .collect()
}

/// Announces the kernel's writes to every entry.
pub(super) fn announce<'a>(thread: &'a Thread, vector: &[[u64; 2]]) -> Vec<KernelWrite<'a>> {
    vector.iter().filter(|[_, len]| *len != 0).map(|[host, len]| thread.process.kernel_write(*host, *len)).collect()
}

/// A vector of one entry.
fn one_entry(thread: &Thread, address: u64, len: u64) -> Result<[[u64; 2]; 1], Errno> {
    Ok([[thread.pointer(address, len)?, len]])
}

/// read.
pub(super) fn read(thread: &mut Thread, [fd, address, len, ..]: [u64; 6]) -> SysResult {
    if thread.process.own_memory.owner(fd as i32).is_some() {
        return own_memory::read(thread, fd, &one_entry(thread, address, len)?, None);
    }
    let (pointer, _write) = thread.out_pointer(address, len)?;
    thread.host_call(libc::SYS_read, [fd, pointer, len, 0, 0, 0])
}

/// pread64.
pub(super) fn read_at(thread: &mut Thread, [fd, address, len, offset, ..]: [u64; 6]) -> SysResult {
    if thread.process.own_memory.owner(fd as i32).is_some() {
        return own_memory::read(thread, fd, &one_entry(thread, address, len)?, Some(offset));
    }
    let (pointer, _write) = thread.out_pointer(address, len)?;
    thread.host_call(libc::SYS_pread64, [fd, pointer, len, offset, 0, 0])
}

/// write.
pub(super) fn write(thread: &mut Thread, [fd, address, len, ..]: [u64; 6]) -> SysResult {
    if let Some(owner) = thread.process.own_memory.owner(fd as i32) {
        return own_memory::write(thread, owner, fd, &one_entry(thread, address, len)?, None);
    }
    let pointer = thread.pointer(address, len)?;
    let _change = written(thread, fd, None, len);
    thread.host_call(libc::SYS_write, [fd, pointer, len, 0, 0, 0])
}

/// pwrite64.
pub(super) fn write_at(thread: &mut Thread, [fd, address, len, offset, ..]: [u64; 6]) -> SysResult {
    if let Some(owner) = thread.process.own_memory.owner(fd as i32) {
        return own_memory::write(thread, owner, fd, &one_entry(thread, address, len)?, Some(offset));
    }
    let pointer = thread.pointer(address, len)?;
    let _change = written(thread, fd, Some(offset), len);
    thread.host_call(libc::SYS_pwrite64, [fd, pointer, len, offset, 0, 0])
}

/// readv.
pub(super) fn read_vector(thread: &mut Thread, [fd, address, count, ..]: [u64; 6]) -> SysResult {
    let vector = vector(thread, address, count)?;
    if thread.process.own_memory.owner(fd as i32).is_some() {
        return own_memory::read(thread, fd, &vector, None);
    }
    let _writes = announce(thread, &vector);
    thread.host_call(libc::SYS_readv, [fd, vector.as_ptr() as u64, count, 0, 0, 0])
}

/// writev.
pub(super) fn write_vector(thread: &mut Thread, [fd, address, count, ..]: [u64; 6]) -> SysResult {
    let vector = vector(thread, address, count)?;
    if let Some(owner) = thread.process.own_memory.owner(fd as i32) {
        return own_memory::write(thread, owner, fd, &vector, None);
    }
    let _change = written(thread, fd, None, len_bytes(&vector));
    thread.host_call(libc::SYS_writev, [fd, vector.as_ptr() as u64, count, 0, 0, 0])
}

/// preadv and preadv2.
pub(super) fn read_vector_at(thread: &mut Thread, arguments: [u64; 6]) -> SysResult {
    let [fd, address, count, offset, high, flags] = arguments;
    let vector = vector(thread, address, count)?;
    if thread.process.own_memory.owner(fd as i32).is_some() {
        return own_memory::read(thread, fd, &vector, position(thread, offset));
    }
    let _writes = announce(thread, &vector);
    let number = if has_flags(thread) { libc::SYS_preadv2 } else { libc::SYS_preadv };
    thread.host_call(number, [fd, vector.as_ptr() as u64, count, offset, high, flags])
}

/// pwritev and pwritev2.
pub(super) fn write_vector_at(thread: &mut Thread, arguments: [u64; 6]) -> SysResult {
    let [fd, address, count, offset, high, flags] = arguments;
    let vector = vector(thread, address, count)?;
    if let Some(owner) = thread.process.own_memory.owner(fd as i32) {
        return own_memory::write(thread, owner, fd, &vector, position(thread, offset));
    }
    // One of the flags appends.
    let at = position(thread, offset).filter(|_| !has_flags(thread) || flags == 0);
    let _change = written(thread, fd, at, len_bytes(&vector));
    let number = if has_flags(thread) { libc::SYS_pwritev2 } else { libc::SYS_pwritev };
    thread.host_call(number, [fd, vector.as_ptr() as u64, count, offset, high, flags])
}

/// The guest's numbers of preadv2 and pwritev2 are 286 and 287.
fn has_flags(thread: &Thread) -> bool {
    thread.hart.x[17] >= 286
}

/// The call's offset in the file; `None` for the file's position, for which the calls with flags
/// take an offset of -1.
fn position(thread: &Thread, offset: u64) -> Option<u64> {
    Some(offset).filter(|offset| !has_flags(thread) || *offset != u64::MAX)
}

fn len_bytes(vector: &[[u64; 2]]) -> u64 {
    vector.iter().fold(0, |sum, [_, len]| sum.saturating_add(*len))
}

/// Announces that `len` bytes are written to the file, at the call's offset if it has one.
/// Otherwise the whole file counts, since another thread may move the file's own position
/// meanwhile.
fn written(thread: &Thread, fd: u64, offset: Option<u64>, len: u64) -> Option<FileChange<'_>> {
    let stat = host_fs::stat_fd(fd as i32).ok()?;
    let bytes = match offset {
        Some(start) if !host_fs::appends(fd as i32) => start..start.saturating_add(len),
        _ => file_change::ALL,
    };
    thread.process.file_change(&stat, bytes)
}
