//! The arguments of a clone, for a thread or a process.

use crate::hart::Hart;

/// The arguments of clone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CloneRequest {
    /// `CLONE_*` and the signal to send at the child's end.
    pub flags: u64,
    /// The child's stack pointer, 0 to keep the parent's.
    pub stack: u64,
    /// The address for the child's id in the parent.
    pub parent_tid: u64,
    /// The child's thread pointer.
    pub tls: u64,
    /// The address for the child's id in the child, or for the zero at its end.
    pub child_tid: u64,
}

impl CloneRequest {
    /// Whether the flag `CLONE_*` is set.
    pub fn has(&self, flag: i32) -> bool {
        self.flags & flag as u64 != 0
    }

    /// Sets the child's stack and thread pointer.
    pub fn apply(&self, hart: &mut Hart) {
        if self.stack != 0 {
            hart.x[2] = self.stack;
        }
        if self.has(libc::CLONE_SETTLS) {
            hart.x[4] = self.tls;
        }
        hart.reserved = 0;
    }
}
