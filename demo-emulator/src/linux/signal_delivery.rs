//! Delivery of signals onto the guest's stack.
//!
//! A signal is delivered after an executor came back: the hart is then between two instructions,
//! and its registers are complete. Until the frame is built, the host thread has every signal
//! blocked (see `host_signals`). Setting the new guest mask on the host lets the next signal in.

use std::sync::atomic::Ordering;

use super::guest_fault::GuestFault;
use super::host_signals::{self, SIGINFO_BYTES, SigSet, Signal, set_of};
use super::signal_actions::{Action, DEFAULT, IGNORE, UNBLOCKABLE};
use super::signal_frame::{self, FRAME_BYTES};
use super::thread::Thread;
use super::user_memory::Fields;

/// The effect of a signal that the guest does not handle.
#[derive(PartialEq, Eq)]
enum DefaultAction {
    Die,
    Nothing,
    Stop,
}

fn default_action(signal: u32) -> DefaultAction {
    match signal as i32 {
        libc::SIGCHLD | libc::SIGURG | libc::SIGWINCH | libc::SIGCONT => DefaultAction::Nothing,
        libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU => DefaultAction::Stop,
        _ => DefaultAction::Die,
    }
}

/// The `siginfo_t` of a fault at `address`.
fn fault_info(signal: u32, code: i32, address: u64) -> [u8; SIGINFO_BYTES] {
    let mut info = [0; SIGINFO_BYTES];
    let fields = Fields::default().u32s(&[signal, 0, code as u32, 0]).u64s(&[address]).padded_to(SIGINFO_BYTES);
    info.copy_from_slice(&fields.0);
    info
}

impl Thread {
    /// Delivers the waiting signals. A later signal finds the hart in its executor or in a safe
    /// system call, and neither of them misses it.
    pub fn deliver_signals(&mut self) {
        loop {
            self.hart.exit_request.store(0, Ordering::Release);
            if let Some(signal) = self.mailbox_signal() {
                self.deliver(&signal);
            } else if let Some(at) = self.queued.iter().position(|s| self.mask & set_of(s.number) == 0) {
                let signal = self.queued.remove(at);
                self.deliver(&signal);
            } else {
                break;
            }
        }
        if let Some(mask) = self.suspended_mask.take() {
            self.set_signal_mask(mask);
        }
    }

    /// Sets the guest's mask, and the host's after it.
    pub fn set_signal_mask(&mut self, mask: SigSet) {
        self.mask = mask & !UNBLOCKABLE;
        host_signals::set_mask(self.mask);
    }

    /// Queues a signal that the host must not see. Holds one of each number, as Linux does for
    /// signals that are not real-time.
    pub fn queue(&mut self, signal: Signal) {
        if self.queued.iter().all(|other| other.number != signal.number) {
            self.queued.push(signal);
        }
    }

    fn deliver(&mut self, signal: &Signal) {
        // Only a signal that the host cannot block arrives although the guest blocks it.
        if self.mask & set_of(signal.number) != 0 {
            self.queue(*signal);
            return;
        }
        let action = self.process.actions().get(signal.number);
        match action.handler {
            IGNORE => {}
            DEFAULT => match default_action(signal.number) {
                DefaultAction::Nothing => {}
                DefaultAction::Stop => host_signals::stop_process(),
                DefaultAction::Die => self.process.die_by(signal.number),
            },
            _ => return self.enter_handler(signal, action),
        }
        self.set_signal_mask(self.mask);
    }

    /// A fault of the instruction at `pc`.
    pub(super) fn raise_fault(&mut self, fault: &GuestFault) {
        let number = fault.signal as u32;
        let action = self.process.actions().get(number);
        if self.mask & set_of(number) != 0 || matches!(action.handler, DEFAULT | IGNORE) {
            self.process.die_of(number, fault);
        }
        self.enter_handler(&Signal { number, info: fault_info(number, fault.code, fault.address) }, action);
    }

    /// Builds the frame and goes to the handler.
    fn enter_handler(&mut self, signal: &Signal, action: Action) {
        let stack_pointer = self.hart.x[2];
        let switches = action.flags & libc::SA_ONSTACK as u64 != 0
            && self.alt_stack.flags & signal_frame::SS_DISABLE == 0
            && !self.alt_stack.holds(stack_pointer);
        let top = if switches { self.alt_stack.start.wrapping_add(self.alt_stack.len_bytes) } else { stack_pointer };
        let frame = top.wrapping_sub(FRAME_BYTES) & !15;
        let return_mask = self.suspended_mask.take().unwrap_or(self.mask);
        let overflows = self.alt_stack.holds(top) && !self.alt_stack.holds(frame);
        let window = self.process.window;
        if overflows
            || signal_frame::write(&window, frame, &self.hart, &signal.info, return_mask, self.alt_stack).is_err()
        {
            let (pc, number) = (self.hart.pc, signal.number);
            let why = format_args!(
                "the guest died of SIGSEGV: its stack at address {frame:#x} has no room for the frame of signal {number}, which came at pc {pc:#x}"
            );
            self.process.die_of(libc::SIGSEGV as u32, &why);
        }
        let hart = &mut self.hart;
        hart.x[1] = self.process.trampoline;
        hart.x[2] = frame;
        hart.x[10] = u64::from(signal.number);
        hart.x[11] = frame;
        hart.x[12] = frame + SIGINFO_BYTES as u64;
        hart.pc = action.handler & !1;
        hart.reserved = 0;
        let own = if action.flags & libc::SA_NODEFER as u64 == 0 { set_of(signal.number) } else { 0 };
        if action.flags & libc::SA_RESETHAND as u64 != 0 {
            // The host refuses only an action that the guest could not have set either.
            let _ = self.process.actions().set(signal.number, Action { handler: DEFAULT, ..action });
        }
        self.set_signal_mask(self.mask | action.mask | own);
    }

    /// rt_sigreturn.
    pub fn return_from_handler(&mut self) {
        let frame = self.hart.x[2];
        let window = self.process.window;
        match signal_frame::restore(&window, frame, &mut self.hart) {
            Ok((mask, stack)) => {
                if !self.alt_stack.holds(self.hart.x[2]) {
                    let flags = stack.flags & !signal_frame::SS_ONSTACK;
                    self.alt_stack = signal_frame::AltStack { flags, ..stack };
                }
                self.set_signal_mask(mask);
            }
            Err(_) => {
                let pc = self.hart.pc;
                let why = format_args!(
                    "the guest died of SIGSEGV: rt_sigreturn at pc {pc:#x} found no frame of a signal at address {frame:#x}"
                );
                self.process.die_of(libc::SIGSEGV as u32, &why)
            }
        }
    }
}
