//! The calls on a userfaultfd: its ioctls, and the read of its messages.
//!
//! [`super::uffd`] describes the use of each, and the meaning of errors.
//!
//! # Safety
//!
//! Each ioctl has the number and the structure of `linux-raw-sys`, whose size the number
//! encodes. None of them touches memory of ours but that structure. A message is a plain
//! structure, and any bit pattern is a valid one.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, opcode};

use crate::addr::HostAddr;
#[cfg(feature = "userfaultfd")]
use crate::error::Error;

const GROUP: u8 = raw::UFFDIO as u8;
const API: Opcode = opcode::read_write::<raw::uffdio_api>(GROUP, raw::_UFFDIO_API as u8);
const REGISTER: Opcode = opcode::read_write::<raw::uffdio_register>(GROUP, raw::_UFFDIO_REGISTER as u8);
// The kernel calls these two reads, although it reads their structure.
const UNREGISTER: Opcode = opcode::read::<raw::uffdio_range>(GROUP, raw::_UFFDIO_UNREGISTER as u8);
const WAKE: Opcode = opcode::read::<raw::uffdio_range>(GROUP, raw::_UFFDIO_WAKE as u8);
const WRITEPROTECT: Opcode = opcode::read_write::<raw::uffdio_writeprotect>(GROUP, raw::_UFFDIO_WRITEPROTECT as u8);

/// `UFFDIO_WRITEPROTECT_MODE_WP`, which `linux-raw-sys` lacks.
const MODE_WP: u64 = 1;

/// Number of messages that one read takes.
const MESSAGES_PER_READ: usize = 32;

fn range(start: usize, len: usize) -> raw::uffdio_range {
    raw::uffdio_range { start: start as u64, len: len as u64 }
}

/// `USERFAULTFD_IOC_NEW` of `/dev/userfaultfd`: a descriptor, with the flags of the
/// system call.
pub(super) fn new(device: impl AsFd, flags: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: `New` is this device's ioctl.
    unsafe { rustix::ioctl::ioctl(device, New(flags as usize)) }
}

struct New(usize);

// SAFETY: `_IO(0xAA, 0)` takes an integer in place of a pointer and gives a new descriptor.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(raw::USERFAULTFD_IOC as u8, 0)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.0 as *mut c_void
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the ioctl succeeded: `out` is a descriptor that no other code has.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

/// `UFFDIO_API`: asks for `features` and gives all that the kernel offers. Once
/// per descriptor: a second one is EINVAL, so a probe has a descriptor of its own.
pub(crate) fn api(fd: BorrowedFd<'_>, features: u64) -> Result<u64, Errno> {
    let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features, ioctls: 0 };
    // SAFETY: the number and the structure belong together.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<API, _>::new(&mut api)) }?;
    Ok(api.features)
}

/// The features of a negotiated descriptor, as `/proc/self/fdinfo` reports them.
#[cfg(feature = "userfaultfd")]
pub(crate) fn features_of(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    use std::os::fd::AsRawFd;
    const NONE: Error = Error::BadArgument("the descriptor is no userfaultfd, or /proc/self/fdinfo does not tell");
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).map_err(|_| NONE)?;
    // API:	aa:FEATURES:ALL, each in hexadecimal.
    let features = info.lines().find_map(|line| line.strip_prefix("API:")?.trim().split(':').nth(1));
    features.and_then(|bits| u64::from_str_radix(bits, 16).ok()).ok_or(NONE)
}

/// `UFFDIO_REGISTER`, for write protection.
pub(super) fn register(fd: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), Errno> {
    let mode = raw::UFFDIO_REGISTER_MODE_WP.into();
    let mut register = raw::uffdio_register { range: range(start, len), mode, ioctls: 0 };
    // SAFETY: the number and the structure belong together.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<REGISTER, _>::new(&mut register)) }
}

/// `UFFDIO_UNREGISTER`.
pub(super) fn unregister(fd: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the number and the structure belong together.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<UNREGISTER, _>::new(&mut range(start, len))) }
}

/// `UFFDIO_WAKE`.
pub(super) fn wake(fd: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the number and the structure belong together.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<WAKE, _>::new(&mut range(start, len))) }
}

/// `UFFDIO_WRITEPROTECT` that protects.
#[inline]
pub(crate) fn protect(fd: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), Errno> {
    write_protect(fd, start, len, MODE_WP)
}

/// `UFFDIO_WRITEPROTECT` that opens, and wakes the threads that wait.
#[inline]
pub(crate) fn unprotect(fd: BorrowedFd<'_>, start: usize, len: usize) -> Result<(), Errno> {
    write_protect(fd, start, len, 0)
}

#[inline]
fn write_protect(fd: BorrowedFd<'_>, start: usize, len: usize, mode: u64) -> Result<(), Errno> {
    let mut change = raw::uffdio_writeprotect { range: range(start, len), mode };
    // SAFETY: the number and the structure belong together.
    unsafe { rustix::ioctl::ioctl(fd, Updater::<WRITEPROTECT, _>::new(&mut change)) }
}

/// A page fault, as a message reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageFault {
    pub(crate) address: HostAddr,
    /// Kernel thread id of the thread that waits; 0 if `THREAD_ID` was not asked for.
    pub(crate) tid: u32,
}

/// Room for one read.
pub(crate) struct MessageBuffer([u8; MESSAGES_PER_READ * size_of::<raw::uffd_msg>()]);

impl MessageBuffer {
    pub(crate) fn new() -> Self {
        Self([0; MESSAGES_PER_READ * size_of::<raw::uffd_msg>()])
    }

    /// Reads the queued messages, without waiting, and gives the page faults among them.
    pub(super) fn read(&mut self, fd: BorrowedFd<'_>) -> Result<impl Iterator<Item = PageFault>, Errno> {
        let bytes = match rustix::io::read(fd, &mut self.0) {
            Err(Errno::AGAIN) => 0,
            // The end of a file: it is no userfaultfd.
            Ok(0) => return Err(Errno::BADF),
            read => read?,
        };
        Ok(self.0[..bytes].chunks_exact(size_of::<raw::uffd_msg>()).filter_map(page_fault))
    }
}

fn page_fault(message: &[u8]) -> Option<PageFault> {
    debug_assert_eq!(message.len(), size_of::<raw::uffd_msg>());
    // SAFETY: as many bytes as the structure has; the buffer is not aligned for it.
    let message = unsafe { message.as_ptr().cast::<raw::uffd_msg>().read_unaligned() };
    if u32::from(message.event) != raw::UFFD_EVENT_PAGEFAULT {
        return None;
    }
    // SAFETY: the event names the valid part of the union, and every bit pattern of it is
    // valid.
    let (fault, tid) = unsafe { (message.arg.pagefault, message.arg.pagefault.feat.ptid) };
    Some(PageFault { address: HostAddr(fault.address as usize), tid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_kernels() {
        use linux_raw_sys::ioctl;
        let ours = [API, REGISTER, UNREGISTER, WAKE, WRITEPROTECT];
        let kernels = [
            ioctl::UFFDIO_API,
            ioctl::UFFDIO_REGISTER,
            ioctl::UFFDIO_UNREGISTER,
            ioctl::UFFDIO_WAKE,
            ioctl::UFFDIO_WRITEPROTECT,
        ];
        assert_eq!(ours.map(u64::from), kernels.map(u64::from));
    }

    #[test]
    fn a_message_that_is_no_fault_is_none() {
        let mut message = [0u8; size_of::<raw::uffd_msg>()];
        message[0] = raw::UFFD_EVENT_REMOVE as u8;
        assert_eq!(page_fault(&message), None);
        message[0] = raw::UFFD_EVENT_PAGEFAULT as u8;
        // Behind 8 bytes of head and 8 of flags: the address, then the thread.
        message[16..24].copy_from_slice(&0x7000_1234_u64.to_ne_bytes());
        message[24..28].copy_from_slice(&77_u32.to_ne_bytes());
        assert_eq!(page_fault(&message), Some(PageFault { address: HostAddr(0x7000_1234), tid: 77 }));
    }
}
