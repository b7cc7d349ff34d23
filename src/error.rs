//! What can go wrong, with the range it happened on and the system's errno.

use std::fmt;

use crate::mode::Mode;

/// An operation of the library that could not be done. Nothing was lost: the
/// state is what it was before the call unless the variant says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A range that is empty, wraps, is not aligned or lies outside its region.
    BadRange {
        /// First byte, guest or host as the call takes it.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// What a range must be here.
        why: &'static str,
    },
    /// An argument that cannot be used.
    BadArgument(&'static str),
    /// The system refused an operation on a range of host memory.
    System {
        /// What was asked for: the name of the call.
        call: &'static str,
        /// First byte of the host range, 0 where the call takes none.
        start: usize,
        /// Length in bytes.
        len: usize,
        /// The errno.
        errno: i32,
    },
    /// A tracking mode that was asked for by name cannot be had here.
    ModeUnavailable {
        /// The mode.
        mode: Mode,
        /// What is missing, and what to change to get it.
        why: String,
    },
    /// Another tracker, of this library or not, has the range or a part of it:
    /// one range has one owner.
    AlreadyTracked {
        /// First byte of the host range.
        start: usize,
        /// Length in bytes.
        len: usize,
    },
    /// A fixed table of the library is full.
    Full {
        /// Which table.
        what: &'static str,
        /// How many it holds.
        limit: usize,
    },
    /// This process is a fork's child and `after_fork_child` was not called.
    InForkChild,
    /// The kernel no longer tracks the region: its descriptor was closed or its
    /// handler died. Every translation of it is unreachable.
    TrackingLost,
}

impl Error {
    /// A system call on `range` that failed with `errno`.
    pub(crate) fn system(call: &'static str, start: usize, len: usize, errno: rustix::io::Errno) -> Self {
        Self::System { call, start, len, errno: errno.raw_os_error() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRange { start, len, why } => write!(f, "bad range {start:#x} + {len:#x}: {why}"),
            Self::BadArgument(why) => f.write_str(why),
            Self::System { call, start, len, errno } => {
                let error = std::io::Error::from_raw_os_error(*errno);
                if *len == 0 {
                    write!(f, "{call}: {error}")
                } else {
                    write!(f, "{call} on {start:#x} + {len:#x}: {error}")
                }
            }
            Self::ModeUnavailable { mode, why } => write!(f, "tracking mode {mode} cannot be had here: {why}"),
            Self::AlreadyTracked { start, len } => write!(
                f,
                "{start:#x} + {len:#x} has an owner: another tracker, or another userfaultfd (EBUSY), tracks a part of \
                 it; detach it there first"
            ),
            Self::Full { what, limit } => write!(f, "no room for another {what}: the limit is {limit}"),
            Self::InForkChild => f.write_str("this is a fork's child: call after_fork_child first"),
            Self::TrackingLost => f.write_str("the kernel no longer tracks this region; its translations are stale"),
        }
    }
}

impl std::error::Error for Error {}
