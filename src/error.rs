//! Errors, each with the range that it concerns and the system's errno.

use std::fmt;

use crate::mode::Mode;

/// An operation of the library that failed. Nothing was lost: the state is the same as before the
/// call unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A range that is empty, wraps, is not aligned or lies outside its region.
    BadRange {
        /// First byte, guest or host as the call takes it.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// The requirement that the range does not meet.
        why: &'static str,
    },
    /// No region tracks the guest range, or only a part of it is tracked and the call needs all of
    /// it. Nothing was done.
    NotTracked {
        /// First byte, as the guest sees it.
        start: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Host memory that is to be tracked is not mapped, or not all of it. Nothing was tracked.
    NotMapped {
        /// First byte of the host range.
        start: usize,
        /// Length in bytes.
        len: usize,
        /// The first page of the range that is not mapped.
        hole: usize,
    },
    /// An unusable argument.
    BadArgument(&'static str),
    /// The system refused an operation on a range of host memory.
    System {
        /// The name of the call.
        call: &'static str,
        /// First byte of the host range, 0 if the call takes none.
        start: usize,
        /// Length in bytes.
        len: usize,
        /// The errno.
        errno: i32,
    },
    /// A tracking mode that was asked for by name is not available here.
    ModeUnavailable {
        /// The mode.
        mode: Mode,
        /// The missing feature or permission, and the change that provides it.
        why: String,
    },
    /// A feature other than a single mode is not available here.
    Unavailable {
        /// The feature.
        what: &'static str,
        /// The missing feature or permission, and the change that provides it.
        why: String,
    },
    /// Another tracker, of this library or not, owns the range or a part of it. A range has one
    /// owner.
    AlreadyTracked {
        /// First byte of the host range.
        start: usize,
        /// Length in bytes.
        len: usize,
    },
    /// A code buffer is full.
    Full {
        /// The kind of entry that does not fit.
        what: &'static str,
        /// How many it holds.
        limit: usize,
    },
    /// Memory for the library's own tables is short. The call tracked and protected nothing.
    NoMemory {
        /// The table that the memory was for.
        what: &'static str,
        /// Length in bytes.
        len_bytes: usize,
    },
    /// This process is a fork's child and `after_fork_child` was not called.
    InForkChild,
    /// `after_fork_child` was called in the process that made the guard, not in its child. Nothing
    /// was changed.
    NotInForkChild,
    /// The kernel no longer tracks the region: its descriptor was closed or its handler died. Every
    /// translation of it is unreachable. Interpret, or remove the region and add it again.
    TrackingLost,
}

impl Error {
    /// A system call on `range` that failed with `errno`.
    pub(crate) fn system(call: &'static str, start: usize, len: usize, errno: rustix::io::Errno) -> Self {
        Self::System { call, start, len, errno: errno.raw_os_error() }
    }
}

/// Asks whether there is room for the zeroed allocation that comes next. Without room, that
/// allocation would end the process. (`Vec` can be asked, but then touches every byte.)
pub(crate) fn room_for<T>(count: usize, what: &'static str) -> Result<(), Error> {
    let no_memory = |_| Error::NoMemory { what, len_bytes: count.saturating_mul(size_of::<T>()) };
    Vec::<T>::new().try_reserve_exact(count).map_err(no_memory)
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange { start, len, why } => write!(f, "bad range {start:#x} + {len:#x}: {why}"),
            Self::NotTracked { start, len } => write!(
                f,
                "guest range {start:#x} + {len:#x}: no region has all of it, or a part of it has no mapping that can be \
                 tracked; add the region first, or declare the mapping, or leave the call out where nothing is tracked"
            ),
            Self::NotMapped { start, len, hole } => write!(
                f,
                "host range {start:#x} + {len:#x}: nothing is mapped at {hole:#x}; map all of it first, at least with \
                 PROT_NONE"
            ),
            Self::BadArgument(why) => f.write_str(why),
            Self::System { call, start, len, errno } => {
                let error = std::io::Error::from_raw_os_error(*errno);
                match *len {
                    0 => write!(f, "{call}: {error}")?,
                    len => write!(f, "{call} on {start:#x} + {len:#x}: {error}")?,
                }
                advice(call, *errno).map_or(Ok(()), |advice| write!(f, "; {advice}"))
            }
            Self::ModeUnavailable { mode, why } => write!(f, "tracking mode {mode} cannot be had here: {why}"),
            Self::Unavailable { what, why } => write!(f, "{what} cannot be had here: {why}"),
            Self::AlreadyTracked { start, len } => write!(
                f,
                "{start:#x} + {len:#x} has an owner: another tracker, or another userfaultfd (EBUSY), tracks a part of \
                 it; detach it there first"
            ),
            Self::Full { what, limit } => {
                write!(f, "no room for another {what}: the limit is {limit}; remove or evict some, and try again")
            }
            Self::NoMemory { what, len_bytes } => write!(
                f,
                "no memory for {what} ({len_bytes} bytes): raise the limit of addresses (ulimit -v), and of locked \
                 memory (ulimit -l) where that is locked, or free some, and try again"
            ),
            Self::InForkChild => {
                f.write_str("this is a fork's child, and the object is still its parent's: after_fork_child was not called, or it failed")
            }
            Self::NotInForkChild => f.write_str(
                "this is no fork's child: call after_fork_child in the child alone, and give the guard back here",
            ),
            Self::TrackingLost => f.write_str(
                "the kernel no longer tracks this region, and none of its translations can be reached: interpret, or \
                 remove the region and add it again",
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Advice for a process that may not open its own files in `/proc`.
pub(crate) const NOT_DUMPABLE: &str = "a process that has changed its user may not open its own files in /proc: let it \
                                       be dumpable again (prctl(PR_SET_DUMPABLE, 1))";

/// Advice, if call and errno are enough to give it.
fn advice(call: &str, errno: i32) -> Option<&'static str> {
    Some(match (call, errno) {
        (_, libc::EMFILE) => "raise the limit of open files (ulimit -n)",
        (_, libc::ENFILE) => "raise the system's limit of open files (sysctl fs.file-max)",
        (_, libc::EFBIG) => "raise the limit of file sizes (ulimit -f), or take anonymous memory, which has none",
        ("open(/proc/self/pagemap)", libc::EACCES) => NOT_DUMPABLE,
        ("mprotect", libc::ENOMEM) => {
            "each protected page between open ones takes two mappings: raise vm.max_map_count, or take a mode of \
             userfaultfd, which takes none"
        }
        ("UFFDIO_REGISTER" | "UFFDIO_UNREGISTER", libc::ENOMEM) => {
            "the limit of mappings is reached: raise vm.max_map_count"
        }
        ("UFFDIO_REGISTER", libc::EINVAL) => {
            "userfaultfd cannot write-protect this mapping in this mode: track a regular file in mode deferred or \
             mprotect, or read it into anonymous memory or a memfd (these from Linux 5.19 on)"
        }
        ("process_vm_readv", libc::EFAULT) => {
            "Linux before 6.4 cannot write-protect a page that was never touched and that nobody may read: let the \
             guest read it first, or take mode mprotect"
        }
        ("UFFDIO_REGISTER", libc::EPERM) => "the mapping may never be written, or a seccomp filter refuses the call",
        ("UFFDIO_WRITEPROTECT" | "mprotect", libc::EINVAL) | ("PAGEMAP_SCAN", libc::EIO) => {
            "memory of huge pages (MAP_HUGETLB, hugetlbfs) cannot be protected page by page: take other memory, of \
             transparent huge pages for instance"
        }
        ("madvise", libc::ENOMEM) => "a part of the range is not mapped",
        ("mremap", libc::ENOMEM) => {
            "the addresses behind the mapping are in use, or a limit is reached (ulimit -v, vm.max_map_count)"
        }
        ("UFFDIO_WRITEPROTECT", libc::EAGAIN) => "the memory map kept changing meanwhile: try again",
        ("pthread_create", libc::EAGAIN | libc::ENOMEM) => {
            "the handler thread needs addresses and a thread: raise ulimit -v and ulimit -u"
        }
        (_, libc::EAGAIN) if call.starts_with("mmap") || call.starts_with("mremap") => {
            "what is mapped is locked in memory (mlockall): raise ulimit -l"
        }
        (_, libc::ENOMEM) => "memory or addresses are short: raise the limits (ulimit -v, vm.max_map_count)",
        ("membarrier(REGISTER_PRIVATE_EXPEDITED_SYNC_CORE)", _) => {
            "executable memory needs it: Linux 4.16 or newer has it, and a seccomp filter must not refuse it"
        }
        ("membarrier(REGISTER_PRIVATE_EXPEDITED)", _) => {
            "synchronous modes need it: Linux 4.14 or newer has it, and a seccomp filter must not refuse it"
        }
        (_, libc::EPERM | libc::ENOSYS) => "a seccomp filter may refuse the call: allow it there",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_was_reached_is_said_with_what_to_raise() {
        let text = |call, errno| Error::System { call, start: 0x1000, len: 0x1000, errno }.to_string();
        assert!(text("open(/proc/self/pagemap)", libc::EACCES).contains("PR_SET_DUMPABLE"));
        assert!(text("socket", libc::EMFILE).contains("ulimit -n"));
        assert!(text("pthread_create", libc::EAGAIN).contains("ulimit -u"));
        assert!(text("pthread_create", libc::EPERM).contains("seccomp"));
        assert!(
            text("mmap", libc::EAGAIN).contains("ulimit -l")
                && text("mremap of code", libc::EAGAIN).contains("ulimit -l")
        );
        assert!(text("mprotect", libc::ENOMEM).contains("vm.max_map_count"));
        assert!(text("UFFDIO_REGISTER", libc::EINVAL).contains("mode deferred"));
        assert!(text("UFFDIO_WRITEPROTECT", libc::EINVAL).contains("MAP_HUGETLB"));
        assert!(text("mremap", libc::ENOMEM).contains("behind the mapping"));
        assert!(text("madvise", libc::ENOMEM).contains("not mapped"));
        assert_eq!(text("munmap", libc::EINVAL), "munmap on 0x1000 + 0x1000: Invalid argument (os error 22)");
    }
}
