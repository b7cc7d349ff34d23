//! The state of one page in mprotect mode, in one atomic word.
//!
//! | bits | content |
//! |---|---|
//! | 0..2 | the guest's access; 0 if the page is not attached |
//! | 2 | the library holds the page read-only |
//! | 3 | a change is under way |
//! | 4..28 | number of threads that are opening the page |
//! | 28..64 | number of changes made |

use super::super::contract::Access;
use crate::sync::{AtomicU64, Ordering};

const ACCESS: u64 = 0b11;
const PROTECTED: u64 = 1 << 2;
const CHANGING: u64 = 1 << 3;
const OPENER: u64 = 1 << 4;
/// More than Linux has thread ids.
const OPENERS: u64 = 0xff_ffff * OPENER;
const CHANGE_SHIFT: u32 = 28;
const CHANGE: u64 = 1 << CHANGE_SHIFT;

/// See the module head.
#[derive(Debug)]
pub(super) struct Word(AtomicU64);

/// A value of the word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen(u64);

impl Seen {
    fn of(access: Option<Access>) -> Self {
        Self(match access {
            None => 0,
            Some(Access::None) => 1,
            Some(Access::Read) => 2,
            Some(Access::ReadWrite) => 3,
        })
    }

    /// The guest's access; `None` if the page is not attached.
    pub(super) fn access(self) -> Option<Access> {
        match self.0 & ACCESS {
            0 => None,
            1 => Some(Access::None),
            2 => Some(Access::Read),
            _ => Some(Access::ReadWrite),
        }
    }

    /// The access that the kernel has to allow; `None` if the page is not attached.
    pub(super) fn kernel_access(self) -> Option<Access> {
        match self.access() {
            Some(Access::ReadWrite) if self.0 & PROTECTED != 0 => Some(Access::Read),
            access => access,
        }
    }

    /// Number of changes made; `None` while one is under way.
    pub(super) fn changes(self) -> Option<u64> {
        (self.0 & CHANGING == 0).then_some(self.0 >> CHANGE_SHIFT)
    }

    pub(super) fn with_access(self, access: Option<Access>) -> Self {
        Self(self.0 & !ACCESS | Self::of(access).0)
    }

    pub(super) fn protected(self) -> Self {
        Self(self.0 | PROTECTED)
    }

    pub(super) fn open(self) -> Self {
        Self(self.0 & !PROTECTED)
    }
}

impl Word {
    /// An open page.
    pub(super) fn new(access: Option<Access>) -> Self {
        Self(AtomicU64::new(Seen::of(access).0))
    }

    pub(super) fn load(&self) -> Seen {
        Seen(self.0.load(Ordering::Acquire))
    }

    fn update(&self, next: impl Fn(Seen) -> Seen) {
        let mut seen = self.0.load(Ordering::Acquire);
        while let Err(now) = self.0.compare_exchange_weak(seen, next(Seen(seen)).0, Ordering::AcqRel, Ordering::Acquire)
        {
            seen = now;
        }
    }

    /// A change begins. Only one at a time.
    pub(super) fn begin_change(&self, next: impl Fn(Seen) -> Seen) {
        self.update(|seen| Seen(next(seen).0 | CHANGING));
    }

    /// The change is over.
    pub(super) fn end_change(&self) {
        self.0.fetch_add(CHANGE - CHANGING, Ordering::AcqRel);
    }

    /// A thread is about to open the page.
    pub(super) fn enter(&self) {
        self.update(|seen| Seen(seen.open().0 + OPENER));
    }

    /// Its call to the kernel is over.
    pub(super) fn leave(&self) {
        self.0.fetch_sub(OPENER, Ordering::AcqRel);
    }

    /// The threads that were opening it do not exist in this process. Nothing is written, to a page that
    /// the parent shares, if there were none.
    pub(super) fn forget_openers(&self) {
        if self.is_being_opened() {
            self.update(|seen| Seen(seen.0 & !OPENERS));
        }
    }

    pub(super) fn is_being_opened(&self) -> bool {
        self.load().0 & OPENERS != 0
    }
}
