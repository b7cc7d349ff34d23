//! Reads and writes of `/proc/self/mem`: the file's offsets are guest addresses.
//!
//! As on Linux, a write changes read-only memory too, and a transfer ends before the first address
//! that is not mapped. The address space is locked during each entry, because the host must not
//! touch unmapped parts of the window.

use codewarden::addr::HostAddr;

use super::super::errno::{Errno, SysResult};
use super::super::host_fs;
use super::super::own_memory::Owner;
use super::super::thread::Thread;

#[derive(Clone, Copy)]
enum Direction {
    /// From the addresses in the file to the call's vector.
    Read,
    /// From the call's vector to the addresses in the file.
    Write,
}

/// Fills `vector`, pairs of host address and length, from the addresses at `offset`,
/// or at the file's position.
pub(super) fn read(thread: &Thread, fd: u64, vector: &[[u64; 2]], offset: Option<u64>) -> SysResult {
    transfer(thread, fd, vector, offset, Direction::Read)
}

/// Writes the bytes of `vector` there, if the memory is this process's own.
pub(super) fn write(thread: &Thread, owner: Owner, fd: u64, vector: &[[u64; 2]], offset: Option<u64>) -> SysResult {
    if owner == Owner::Parent {
        // Linux's answer for memory that cannot be written.
        return Err(Errno(libc::EIO).into());
    }
    transfer(thread, fd, vector, offset, Direction::Write)
}

fn transfer(thread: &Thread, fd: u64, vector: &[[u64; 2]], offset: Option<u64>, direction: Direction) -> SysResult {
    let start = match offset {
        Some(offset) => offset,
        None => host_fs::seek(fd as i32, 0, libc::SEEK_CUR)?,
    };
    let mut done = 0;
    for &[pointer, len] in vector {
        match transfer_entry(thread, fd, [pointer, len], start.wrapping_add(done), direction) {
            Ok(moved) => {
                done += moved;
                if moved < len {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(stop) => return Err(stop),
        }
    }
    if offset.is_none() {
        host_fs::seek(fd as i32, start.wrapping_add(done) as i64, libc::SEEK_SET)?;
    }
    Ok(done)
}

fn transfer_entry(thread: &Thread, fd: u64, [pointer, len]: [u64; 2], address: u64, direction: Direction) -> SysResult {
    if len == 0 {
        return Ok(0);
    }
    let process = &thread.process;
    let space = process.space();
    let len = len.min(space.mappings().mapped_up_to(address) - address);
    if len == 0 {
        return Err(Errno(libc::EIO).into());
    }
    let host = process.window.base() as u64 + address;
    match direction {
        Direction::Read => {
            let _write = process.kernel_write(pointer, len);
            thread.host_call(libc::SYS_pread64, [fd, pointer, len, host, 0, 0])
        }
        Direction::Write => {
            let range = HostAddr(host as usize)..HostAddr((host + len) as usize);
            let _announced = process.observer.unseen_write(&range);
            let result = thread.host_call(libc::SYS_pwrite64, [fd, pointer, len, host, 0, 0]);
            process.observer.changed(&range);
            result
        }
    }
}
