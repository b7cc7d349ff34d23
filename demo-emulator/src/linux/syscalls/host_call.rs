//! Host system calls for the guest.
//!
//! # Safety
//!
//! A call through [`Thread::host_call`] takes every pointer that the kernel may follow from one of
//! three sources:
//!
//! - [`Thread::pointer`], which keeps it in the guest's window: the kernel may access all of it;
//! - the address of a local buffer that is as long as the call says and outlives the call;
//! - null.
//!
//! Some commands of ioctl, fcntl, prctl and futex make an integer a pointer; they are checked by
//! command first. Calls that act on the emulator's own memory or threads (mmap, clone, exit,
//! rt_sigaction and the like) never come through here.
#![allow(unsafe_code)]

use super::super::errno::{Errno, Stop, SysResult};
use super::super::process::KernelWrite;
use super::super::safe_syscall::{RESTART, safe_syscall};
use super::super::thread::Thread;
use super::super::user_memory::host_pointer;

impl Thread {
    /// Makes a host system call that a guest signal interrupts.
    pub(super) fn host_call(&self, number: i64, arguments: [u64; 6]) -> SysResult {
        // SAFETY: the module's head bounds the pointers' sources.
        match unsafe { safe_syscall(self.pending_signal(), number, &arguments) } {
            RESTART => Err(Stop::Restart),
            error @ -4095..0 => Err(Stop::Errno(Errno(-error as i32))),
            value => Ok(value as u64),
        }
    }

    /// The host address of `len_bytes` guest bytes; null stays null.
    pub(super) fn pointer(&self, address: u64, len_bytes: u64) -> Result<u64, Errno> {
        if address == 0 { Ok(0) } else { host_pointer(&self.process.window, address, len_bytes) }
    }

    /// As [`Thread::pointer`], and announces the kernel's write.
    pub(super) fn out_pointer(&self, address: u64, len_bytes: u64) -> Result<(u64, Option<KernelWrite<'_>>), Errno> {
        let host = self.pointer(address, len_bytes)?;
        let announce = host != 0 && len_bytes != 0;
        Ok((host, announce.then(|| self.process.kernel_write(host, len_bytes))))
    }
}
