//! The tracking modes by name. `protection` describes each mode. The module is separate because the
//! errors below `protection` name the modes too.

use core::fmt;

/// How the library learns of writes to a region.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Mode {
    /// uffd-wp, the fault handled by SIGBUS in the faulting thread. Synchronous.
    Sigbus,
    /// uffd-wp, the fault handled by a thread of the library. It covers the kernel's own writes if
    /// the permissions allow. Synchronous.
    Thread,
    /// uffd-wp asynchronous: writes are found by `sync`.
    Deferred,
    /// mprotect and SIGSEGV: the baseline, for kernels without userfaultfd. Synchronous.
    Mprotect,
    /// No tracking at all: promises nothing.
    None,
}

impl Mode {
    /// All modes, best synchronous one first.
    pub const ALL: [Mode; 5] = [Mode::Sigbus, Mode::Thread, Mode::Mprotect, Mode::Deferred, Mode::None];

    /// Whether blocks are unreachable as soon as the store has retired.
    pub fn is_synchronous(self) -> bool {
        matches!(self, Mode::Sigbus | Mode::Thread | Mode::Mprotect)
    }

    /// The name that command lines and reports use.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Sigbus => "sigbus",
            Mode::Thread => "thread",
            Mode::Deferred => "deferred",
            Mode::Mprotect => "mprotect",
            Mode::None => "none",
        }
    }

    /// The mode with that [`Mode::name`].
    pub fn from_name(name: &str) -> Option<Self> {
        Mode::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
