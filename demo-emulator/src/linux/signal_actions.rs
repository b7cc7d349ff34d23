//! The guest's action for each signal, mirrored on the host.

use super::errno::Errno;
use super::host_signals::{self, Disposition, NEVER_BLOCKED, SigSet, set_of};

/// Signals are 1 to 64.
pub const SIGNAL_MAX: u32 = 64;

/// SIGKILL and SIGSTOP: neither caught nor blocked.
pub const UNBLOCKABLE: SigSet = set_of(libc::SIGKILL as u32) | set_of(libc::SIGSTOP as u32);

/// `SIG_DFL`.
pub const DEFAULT: u64 = 0;
/// `SIG_IGN`.
pub const IGNORE: u64 = 1;

/// The guest's action for a signal.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Action {
    /// Address of the handler, [`DEFAULT`] or [`IGNORE`].
    pub handler: u64,
    /// `SA_*`, the same on both machines.
    pub flags: u64,
    /// Blocked while the handler runs.
    pub mask: SigSet,
}

/// The action of every signal.
#[derive(Clone, Debug)]
pub struct Actions([Action; SIGNAL_MAX as usize + 1]);

impl Actions {
    /// The actions after execve: ignored signals stay ignored.
    pub fn inherited() -> Self {
        let mut actions = [Action::default(); SIGNAL_MAX as usize + 1];
        for (number, action) in (1..).zip(&mut actions[1..]) {
            if set_of(number) & NEVER_BLOCKED == 0 && host_signals::is_ignored(number) {
                action.handler = IGNORE;
            }
        }
        Self(actions)
    }

    /// The action of `signal`, which is 1 to 64.
    pub fn get(&self, signal: u32) -> Action {
        self.0.get(signal as usize).copied().unwrap_or_default()
    }

    /// Sets it, on the host too.
    pub fn set(&mut self, signal: u32, action: Action) -> Result<(), Errno> {
        if set_of(signal) & NEVER_BLOCKED == 0 {
            let disposition = match action.handler {
                DEFAULT => Disposition::Default,
                IGNORE => Disposition::Ignore,
                _ => Disposition::Forward(action.flags),
            };
            host_signals::set_disposition(signal, disposition)?;
        }
        self.0[signal as usize] = action;
        Ok(())
    }
}
