//! ppoll and pselect6: waiting with another signal mask in place.
//!
//! When a signal ends such a wait, its handler runs under the wait's mask and
//! returns to the one before; see `Thread::suspended_mask`.

use super::super::errno::{Errno, Stop, SysResult};
use super::super::host_signals::{NEVER_BLOCKED, SigSet};
use super::super::signal_actions::UNBLOCKABLE;
use super::super::thread::Thread;
use super::super::user_memory::read_array;
use super::super::user_memory::{read_u64, write_bytes};

/// Makes a call that waits under the mask at the guest's address `mask` (0: none); `call` gets the
/// address of the host's copy.
pub(super) fn with_mask(thread: &mut Thread, mask: u64, call: impl FnOnce(&Thread, u64) -> SysResult) -> SysResult {
    if mask == 0 {
        return call(thread, 0);
    }
    let guest: SigSet = read_u64(&thread.process.window, mask)?;
    let host = guest & !NEVER_BLOCKED;
    let result = call(thread, &raw const host as u64);
    if result == Err(Stop::Errno(Errno::EINTR)) {
        thread.suspended_mask = Some(thread.mask);
        thread.mask = guest & !UNBLOCKABLE;
    }
    result
}

/// A timeout that the kernel updates, in a copy of its own: the guest's may be read-only.
struct Timeout {
    guest: u64,
    host: [u8; 16],
}

impl Timeout {
    fn read(thread: &Thread, guest: u64) -> Result<Self, Errno> {
        let host = if guest == 0 { [0; 16] } else { read_array(&thread.process.window, guest)? };
        Ok(Self { guest, host })
    }

    fn pointer(&mut self) -> u64 {
        if self.guest == 0 { 0 } else { self.host.as_mut_ptr() as u64 }
    }

    fn write_back(&self, thread: &Thread) {
        if self.guest != 0 {
            // Linux, too, ignores a timeout that cannot be written.
            let _ = write_bytes(&thread.process.window, self.guest, &self.host);
        }
    }
}

/// ppoll.
pub(super) fn poll(thread: &mut Thread, [fds, count, timeout, mask, mask_len, _]: [u64; 6]) -> SysResult {
    let mut timeout = Timeout::read(thread, timeout)?;
    let pointer = timeout.pointer();
    let bytes = count.checked_mul(8).ok_or(Errno::EINVAL)?;
    let result = with_mask(thread, mask, |thread, mask| {
        let (fds, _write) = thread.out_pointer(fds, bytes)?;
        thread.host_call(libc::SYS_ppoll, [fds, count, pointer, mask, mask_len, 0])
    });
    timeout.write_back(thread);
    result
}

/// pselect6.
pub(super) fn select(thread: &mut Thread, [count, read, write, except, timeout, mask]: [u64; 6]) -> SysResult {
    let mut timeout = Timeout::read(thread, timeout)?;
    let pointer = timeout.pointer();
    // The last argument points to a mask's address and length.
    let (mask, mask_len) = match mask {
        0 => (0, 0),
        pair => (read_u64(&thread.process.window, pair)?, read_u64(&thread.process.window, pair + 8)?),
    };
    let set_bytes = (count as u32).div_ceil(64) as u64 * 8;
    let result = with_mask(thread, mask, |thread, mask| {
        let (read, _r) = thread.out_pointer(read, set_bytes)?;
        let (write, _w) = thread.out_pointer(write, set_bytes)?;
        let (except, _e) = thread.out_pointer(except, set_bytes)?;
        let pair = [mask, mask_len];
        thread.host_call(libc::SYS_pselect6, [count, read, write, except, pointer, pair.as_ptr() as u64])
    });
    timeout.write_back(thread);
    result
}
