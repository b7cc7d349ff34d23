//! The numbers of the library's own descriptors. They are high, so that an emulator's
//! guest finds the low numbers free, as in a process of its own. Such a guest does not
//! close a descriptor that it never opened.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{Errno, fcntl_dupfd_cloexec};

/// The lowest number of a descriptor of the library's, if the limit on descriptors
/// allows it.
pub const LOWEST_OWN_DESCRIPTOR: RawFd = 800;

/// Moves `fd` up; if the limit is too low it stays. Closed on exec.
pub(crate) fn raise(fd: OwnedFd) -> OwnedFd {
    fcntl_dupfd_cloexec(&fd, LOWEST_OWN_DESCRIPTOR).unwrap_or(fd)
}

/// Another number of the same file, as high as [`raise`] has them. Closed on exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(fd, LOWEST_OWN_DESCRIPTOR).or_else(|_| fcntl_dupfd_cloexec(fd, 0))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn descriptors_are_raised() {
        let fd = crate::sys::mmap::memfd("raised", 4096).unwrap();
        assert!(fd.as_raw_fd() >= LOWEST_OWN_DESCRIPTOR);
        let flags = rustix::io::fcntl_getfd(&fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}
