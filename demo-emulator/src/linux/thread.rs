//! The state of a guest thread, which is a hart on a host thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::hart::Hart;

use super::errno::Errno;
use super::host_signals::{self, Registration, SigSet, Signal};
use super::machine::Executor;
use super::process::Process;
use super::signal_frame::AltStack;

/// One guest thread, used by its host thread alone.
pub struct Thread {
    /// The state that it shares.
    pub process: Arc<Process>,
    /// Its registers.
    pub hart: Box<Hart>,
    /// Runs its instructions.
    pub(super) executor: Box<dyn Executor>,
    pub(super) registration: Registration,
    /// Blocked signals.
    pub mask: SigSet,
    /// The mask to go back to once a call that replaced it is over.
    pub suspended_mask: Option<SigSet>,
    /// Its alternate signal stack.
    pub alt_stack: AltStack,
    /// Signals that it sent itself and that the host must not see.
    pub queued: Vec<Signal>,
    /// Zeroed and woken when it ends; 0 for none.
    pub clear_child_tid: u64,
    /// Head of its robust list; 0 for none.
    pub robust_list: u64,
    /// The last fault that made its instruction run again.
    pub(super) run_again: Option<Refused>,
}

/// An access that the host refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Refused {
    /// The instruction's address.
    pub(super) pc: u64,
    /// The access's address.
    pub(super) address: u64,
    /// The address space's count of changes before.
    pub(super) changes: u64,
}

impl Thread {
    /// The first thread of `process`, on the calling host thread.
    pub fn first(process: Arc<Process>, hart: Box<Hart>) -> Result<Self, Errno> {
        let mask = host_signals::set_mask(SigSet::MAX);
        let thread = Self::on_this_thread(process, hart, mask)?;
        host_signals::set_mask(mask);
        Ok(thread)
    }

    /// A new thread of `process` on the calling host thread. Signals must be blocked.
    pub(super) fn on_this_thread(process: Arc<Process>, hart: Box<Hart>, mask: SigSet) -> Result<Self, Errno> {
        let registration = Registration::new(&raw const hart.exit_request)?;
        let executor = process.machine.executor()?;
        Ok(Self {
            process,
            hart,
            executor,
            registration,
            mask,
            suspended_mask: None,
            alt_stack: AltStack::DISABLED,
            queued: Vec::new(),
            clear_child_tid: 0,
            robust_list: 0,
            run_again: None,
        })
    }

    /// The kernel's id of this thread, which is the guest's.
    pub fn tid(&self) -> u32 {
        self.registration.tid()
    }

    /// The word that a safe system call looks at.
    pub fn pending_signal(&self) -> &AtomicU32 {
        self.registration.mailbox().pending()
    }

    /// Whether a signal waits to be delivered.
    pub fn has_signal(&self) -> bool {
        self.pending_signal().load(Ordering::Acquire) != 0
    }

    /// Takes the signal that the host's handler left.
    pub fn mailbox_signal(&self) -> Option<Signal> {
        self.registration.mailbox().take()
    }
}
