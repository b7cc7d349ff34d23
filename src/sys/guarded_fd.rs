//! A descriptor that other code of the process may close or replace without our knowledge.
//!
//! A process knows an open file only by its number. Any code in it may call `close`, `dup2` or
//! `close_range` on a number that it does not own. So a [`GuardedFd`] remembers the file that it
//! named: device and inode. (Userfaultfds have an inode each since Linux 5.12, and so do sockets;
//! the other anonymous files share one. So the library opens no eventfd.) It checks before each
//! step that would harm a foreign file: it closes the number only while that is still the file it
//! opened.
//!
//! # Safety
//!
//! The number is closed once, by the drop, by `give_up` or by `close`, and only
//! while it names the library's own file. `dup3` over it replaces that with another file of
//! the library.
#![allow(unsafe_code)]

use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// See the module head.
#[derive(Debug)]
pub(crate) struct GuardedFd {
    fd: ManuallyDrop<OwnedFd>,
    /// Device and inode of the file that was opened; `None` if the kernel could not tell: then
    /// the number is trusted.
    file: Option<(u64, u64)>,
    /// The library itself put another file in its place.
    replaced: AtomicBool,
    /// Device and inode of that file.
    inert: [AtomicU64; 2],
    /// The number is free.
    closed: AtomicBool,
}

impl GuardedFd {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let file = file_of(fd.as_fd());
        Self {
            fd: ManuallyDrop::new(fd),
            file,
            replaced: AtomicBool::new(false),
            inert: [0; 2].map(AtomicU64::new),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether the number still names the file that was opened. One system call;
    /// async-signal-safe but for errno.
    pub(crate) fn is_ours(&self) -> bool {
        self.file.is_none_or(|file| file_of(self.fd.as_fd()) == Some(file))
    }

    /// When it is not used any more: closes the number, which frees it for other descriptors. In a
    /// fork's child the parent's copy stays.
    pub(crate) fn close(&self) {
        if self.is_the_librarys() && !self.closed.swap(true, Ordering::SeqCst) {
            // SAFETY: the number is this object's own, and `closed` says from here on that it is
            // not.
            unsafe { libc::close(self.fd.as_raw_fd()) };
        }
    }

    /// Gives this copy of the file up. From here on the number names an inert file, so that no
    /// other file gets the number while threads may still be about to use it. If no inert file
    /// is available the number is closed. A number that is no longer ours is left alone.
    /// Async-signal-safe but for errno.
    pub(crate) fn give_up(&self) -> Result<(), Errno> {
        if self.replaced.load(Ordering::SeqCst) || !self.is_ours() {
            return Ok(());
        }
        let number = self.fd.as_raw_fd();
        if let Ok(inert) = silent_socket() {
            if let Some((device, inode)) = file_of(inert.as_fd()) {
                self.inert[0].store(device, Ordering::SeqCst);
                self.inert[1].store(inode, Ordering::SeqCst);
            }
            // SAFETY: takes two numbers and touches no memory; the second is this object's own.
            let replaced = unsafe { libc::dup3(inert.as_raw_fd(), number, libc::O_CLOEXEC) } == number;
            self.replaced.store(replaced, Ordering::SeqCst);
            if replaced {
                return Ok(());
            }
        }
        // SAFETY: the number is this object's own, and the drop finds that it no longer is.
        match unsafe { libc::close(number) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::BADF)),
        }
    }
}

impl GuardedFd {
    /// Whether the number names the opened file or the inert one, and no foreign one.
    fn is_the_librarys(&self) -> bool {
        if !self.replaced.load(Ordering::SeqCst) {
            return self.is_ours();
        }
        let inert = (self.inert[0].load(Ordering::SeqCst), self.inert[1].load(Ordering::SeqCst));
        file_of(self.fd.as_fd()) == Some(inert)
    }

    /// Its number, as long as it names a file of the library: the opened one or the inert
    /// one.
    pub(crate) fn number(&self) -> Option<RawFd> {
        self.is_the_librarys().then(|| self.fd.as_raw_fd())
    }
}

impl AsFd for GuardedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for GuardedFd {
    fn drop(&mut self) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        if self.is_the_librarys() {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// A file that is never readable by itself, with an inode of its own. Async-signal-safe but for
/// errno.
pub(crate) fn silent_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
}

fn file_of(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;

    use super::*;

    /// A foreign file takes the number: the drop must not close it.
    #[test]
    fn a_number_that_was_taken_by_another_file_is_left_alone() {
        let kept = GuardedFd::new(crate::sys::mmap::memfd("kept", 4096).unwrap());
        let stranger = crate::sys::mmap::memfd("stranger", 8192).unwrap();
        let number = kept.as_fd().as_raw_fd();
        assert!(kept.is_ours());
        // SAFETY: the tested case: code replaces a number that it does not own.
        assert_eq!(unsafe { libc::dup3(stranger.as_raw_fd(), number, libc::O_CLOEXEC) }, number);
        assert!(!kept.is_ours());
        assert_eq!(kept.give_up(), Ok(()));
        drop(kept);
        // SAFETY: the number is the foreign file's copy, made above.
        let left = unsafe { OwnedFd::from_raw_fd(number) };
        assert_eq!(rustix::fs::fstat(&left).unwrap().st_size, 8192);
    }

    /// Another file may take the number: the drop must not close that one.
    #[test]
    fn a_copy_that_was_closed_is_closed_once() {
        let kept = GuardedFd::new(crate::sys::mmap::memfd("kept", 4096).unwrap());
        let number = kept.as_fd().as_raw_fd();
        let stranger = crate::sys::mmap::memfd("stranger", 8192).unwrap();
        kept.close();
        // SAFETY: the number is free, unless another test took it meanwhile; the file is foreign.
        let taken = unsafe { libc::fcntl(stranger.as_raw_fd(), libc::F_DUPFD_CLOEXEC, number) };
        assert!(taken >= number);
        kept.close();
        drop(kept);
        // SAFETY: made by the call above.
        let left = unsafe { OwnedFd::from_raw_fd(taken) };
        assert_eq!(rustix::fs::fstat(&left).unwrap().st_size, 8192);
    }

    #[test]
    fn a_copy_that_was_given_up_names_nothing_of_ours() {
        let kept = GuardedFd::new(crate::sys::mmap::memfd("kept", 4096).unwrap());
        kept.give_up().unwrap();
        assert!(!kept.is_ours());
        assert_eq!(kept.give_up(), Ok(()), "once is enough");
    }
}
