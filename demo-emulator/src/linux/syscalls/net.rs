//! Messages over sockets. `struct msghdr` is the same on both machines except for its pointers.

use super::super::errno::SysResult;
use super::super::thread::Thread;
use super::super::user_memory::{Fields, half_at, read_array, word_at, write_bytes};
use super::transfer::{announce, vector};

/// The kernel's `struct msghdr`.
const BYTES: usize = 56;

const CONTROL_LEN: usize = 40;

/// sendmsg.
pub(super) fn send_message(thread: &mut Thread, [fd, message, flags, ..]: [u64; 6]) -> SysResult {
    let guest: [u8; BYTES] = read_array(&thread.process.window, message)?;
    let vector = vector(thread, word_at(&guest, 16), word_at(&guest, 24))?;
    let name = thread.pointer(word_at(&guest, 0), half_at(&guest, 8).into())?;
    let control = thread.pointer(word_at(&guest, 32), word_at(&guest, CONTROL_LEN))?;
    let host = header(&guest, name, vector.as_ptr() as u64, control);
    thread.host_call(libc::SYS_sendmsg, [fd, host.as_ptr() as u64, flags, 0, 0, 0])
}

/// recvmsg.
pub(super) fn receive_message(thread: &mut Thread, [fd, message, flags, ..]: [u64; 6]) -> SysResult {
    let guest: [u8; BYTES] = read_array(&thread.process.window, message)?;
    let vector = vector(thread, word_at(&guest, 16), word_at(&guest, 24))?;
    let _writes = announce(thread, &vector);
    let (name, _name) = thread.out_pointer(word_at(&guest, 0), half_at(&guest, 8).into())?;
    let (control, _control) = thread.out_pointer(word_at(&guest, 32), word_at(&guest, CONTROL_LEN))?;
    let mut host = header(&guest, name, vector.as_ptr() as u64, control);
    let result = thread.host_call(libc::SYS_recvmsg, [fd, host.as_mut_ptr() as u64, flags, 0, 0, 0])?;
    let window = &thread.process.window;
    // The kernel's answers: length of the name, length of the control data, flags.
    write_bytes(window, message + 8, &host[8..12])?;
    write_bytes(window, message + CONTROL_LEN as u64, &host[CONTROL_LEN..CONTROL_LEN + 12])?;
    Ok(result)
}

fn header(guest: &[u8; BYTES], name: u64, vector: u64, control: u64) -> Vec<u8> {
    Fields::default()
        .u64s(&[name])
        .u32s(&[half_at(guest, 8), 0])
        .u64s(&[vector, word_at(guest, 24), control, word_at(guest, CONTROL_LEN)])
        .u32s(&[half_at(guest, 48), 0])
        .0
}
