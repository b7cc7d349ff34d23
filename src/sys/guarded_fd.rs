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
//! the library. `renew` gives the object another number, when it has none any more.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// See the module head.
#[derive(Debug)]
pub(crate) struct GuardedFd {
    fd: AtomicI32,
    /// The file that was opened. If the kernel could not tell, the number is trusted.
    file: FileId,
    /// The library itself put another file in its place.
    replaced: AtomicBool,
    /// That file.
    inert: FileId,
    /// The number is free.
    closed: AtomicBool,
}

/// Device and inode of a file, if they are known.
#[derive(Debug)]
struct FileId([AtomicU64; 2]);

impl FileId {
    const UNKNOWN: (u64, u64) = (u64::MAX, u64::MAX);

    fn new(file: Option<(u64, u64)>) -> Self {
        let (device, inode) = file.unwrap_or(Self::UNKNOWN);
        Self([device, inode].map(AtomicU64::new))
    }

    fn set(&self, file: Option<(u64, u64)>) {
        let (device, inode) = file.unwrap_or(Self::UNKNOWN);
        self.0[0].store(device, Ordering::SeqCst);
        self.0[1].store(inode, Ordering::SeqCst);
    }

    fn get(&self) -> Option<(u64, u64)> {
        let file = (self.0[0].load(Ordering::SeqCst), self.0[1].load(Ordering::SeqCst));
        (file != Self::UNKNOWN).then_some(file)
    }
}

impl GuardedFd {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        let file = file_of(fd.as_fd());
        Self {
            fd: AtomicI32::new(fd.into_raw_fd()),
            file: FileId::new(file),
            replaced: AtomicBool::new(false),
            inert: FileId::new(None),
            closed: AtomicBool::new(false),
        }
    }

    fn raw(&self) -> RawFd {
        self.fd.load(Ordering::Relaxed)
    }

    /// In a fork's child, with no other thread inside: closes the number that it inherited.
    /// [`GuardedFd::renew`] follows, or nothing more.
    pub(crate) fn close_inherited(&self) {
        self.close();
        // If another file has the number it is left alone.
        self.closed.store(true, Ordering::SeqCst);
    }

    /// After [`GuardedFd::close_inherited`]: takes `fd` over.
    pub(crate) fn renew(&self, fd: OwnedFd) {
        self.file.set(file_of(fd.as_fd()));
        self.fd.store(fd.into_raw_fd(), Ordering::SeqCst);
        self.replaced.store(false, Ordering::SeqCst);
        self.closed.store(false, Ordering::SeqCst);
    }

    /// Whether the number still names the file that was opened. One system call;
    /// async-signal-safe but for errno.
    pub(crate) fn is_ours(&self) -> bool {
        self.file.get().is_none_or(|file| file_of(self.as_fd()) == Some(file))
    }

    /// When it is not used any more: closes the number, which frees it for other descriptors. In a
    /// fork's child the parent's copy stays.
    pub(crate) fn close(&self) {
        if self.is_the_librarys() && !self.closed.swap(true, Ordering::SeqCst) {
            // SAFETY: the number is this object's own, and `closed` says from here on that it is
            // not.
            unsafe { libc::close(self.raw()) };
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
        let number = self.raw();
        if let Ok(inert) = silent_socket() {
            self.inert.set(file_of(inert.as_fd()));
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
        file_of(self.as_fd()).is_some_and(|file| Some(file) == self.inert.get())
    }

    /// Its number, as long as it names a file of the library: the opened one or the inert
    /// one.
    pub(crate) fn number(&self) -> Option<RawFd> {
        self.is_the_librarys().then(|| self.raw())
    }
}

impl AsFd for GuardedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: only names the number for calls. It may name another file, or none, as the module's
        // head says; the caller asks `is_ours`.
        unsafe { BorrowedFd::borrow_raw(self.raw()) }
    }
}

impl Drop for GuardedFd {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::SeqCst) {
            self.close();
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
