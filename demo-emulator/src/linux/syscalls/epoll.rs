//! epoll: x86-64 packs `struct epoll_event` into 12 bytes, riscv64 and aarch64 have 16.

use std::mem::offset_of;

use super::super::errno::{Errno, SysResult};
use super::super::thread::Thread;
use super::super::user_memory::{Fields, half_at, read_array, word_at, write_bytes};
use super::wait::with_mask;

const HOST_BYTES: usize = size_of::<libc::epoll_event>();
/// The offset of the guest's own word.
const DATA: usize = offset_of!(libc::epoll_event, u64);
/// Linux's own bound is higher; a shorter answer is allowed.
const EVENTS_MAX: u64 = 4096;

/// epoll_ctl.
pub(super) fn control(thread: &mut Thread, [epoll, operation, fd, event, ..]: [u64; 6]) -> SysResult {
    if operation as i32 == libc::EPOLL_CTL_DEL {
        return thread.host_call(libc::SYS_epoll_ctl, [epoll, operation, fd, 0, 0, 0]);
    }
    let guest: [u8; 16] = read_array(&thread.process.window, event)?;
    let host = Fields::default().u32s(&[half_at(&guest, 0)]).padded_to(DATA).u64s(&[word_at(&guest, 8)]).0;
    thread.host_call(libc::SYS_epoll_ctl, [epoll, operation, fd, host.as_ptr() as u64, 0, 0])
}

/// epoll_pwait.
pub(super) fn wait(thread: &mut Thread, [epoll, events, count, timeout, mask, mask_len]: [u64; 6]) -> SysResult {
    if count as i32 <= 0 {
        return Err(Errno::EINVAL.into());
    }
    let count = count.min(EVENTS_MAX);
    let mut host = vec![0; HOST_BYTES * count as usize];
    let buffer = host.as_mut_ptr() as u64;
    let ready = with_mask(thread, mask, |thread, mask| {
        thread.host_call(libc::SYS_epoll_pwait, [epoll, buffer, count, timeout, mask, mask_len])
    })?;
    let mut guest = Fields::default();
    for event in host.chunks_exact(HOST_BYTES).take(ready as usize) {
        guest = guest.u32s(&[half_at(event, 0), 0]).u64s(&[word_at(event, DATA)]);
    }
    write_bytes(&thread.process.window, events, &guest.0)?;
    Ok(ready)
}
