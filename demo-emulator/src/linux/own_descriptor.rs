//! The emulator's own descriptors, out of the guest's reach.

use std::os::fd::OwnedFd;

use codewarden::protection::LOWEST_OWN_DESCRIPTOR;

/// Moves a descriptor of the emulator's above the numbers that a guest counts on. It stays in place
/// if the limit on descriptors is too low. It is closed on execve.
pub fn raise_descriptor(fd: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&fd, LOWEST_OWN_DESCRIPTOR).unwrap_or(fd)
}
