//! Signal calls. Masks and dispositions are set on the host as well.

use super::super::errno::{Errno, Stop, SysResult};
use super::super::host_signals::{self, NEVER_BLOCKED, SigSet, Signal, set_of};
use super::super::signal_actions::{Action, SIGNAL_MAX, UNBLOCKABLE};
use super::super::signal_frame::{AltStack, SS_DISABLE, SS_ONSTACK};
use super::super::thread::Thread;
use super::super::user_memory::{Fields, half_at, read_array, read_u64, word_at, write_bytes, write_u64};

const SIGSET_BYTES: u64 = 8;
/// Least alternate stack on riscv64.
const MINSIGSTKSZ: u64 = 2048;
const SI_TKILL: i32 = -6;

/// rt_sigaction: riscv64's structure has no restorer.
pub(super) fn action(thread: &mut Thread, [signal, new, old, len, ..]: [u64; 6]) -> SysResult {
    let signal = signal as u32;
    if len != SIGSET_BYTES || signal == 0 || signal > SIGNAL_MAX {
        return Err(Errno::EINVAL.into());
    }
    let window = &thread.process.window;
    let wanted = if new == 0 { None } else { Some(read_array::<24>(window, new)?) };
    if wanted.is_some() && set_of(signal) & UNBLOCKABLE != 0 {
        return Err(Errno::EINVAL.into());
    }
    let mut actions = thread.process.actions();
    let before = actions.get(signal);
    if let Some(bytes) = wanted {
        let mask = word_at(&bytes, 16) & !UNBLOCKABLE;
        actions.set(signal, Action { handler: word_at(&bytes, 0), flags: word_at(&bytes, 8), mask })?;
    }
    drop(actions);
    if old != 0 {
        let words = [before.handler, before.flags, before.mask];
        write_bytes(window, old, &Fields::default().u64s(&words).0)?;
    }
    Ok(0)
}

/// rt_sigprocmask.
pub(super) fn mask(thread: &mut Thread, [how, new, old, len, ..]: [u64; 6]) -> SysResult {
    if len != SIGSET_BYTES {
        return Err(Errno::EINVAL.into());
    }
    let before = thread.mask;
    let window = thread.process.window;
    if new != 0 {
        let set: SigSet = read_u64(&window, new)?;
        let mask = match how as i32 {
            libc::SIG_BLOCK => before | set,
            libc::SIG_UNBLOCK => before & !set,
            libc::SIG_SETMASK => set,
            _ => return Err(Errno::EINVAL.into()),
        };
        // While all signals are blocked, none can arrive that the new mask blocks.
        host_signals::set_mask(SigSet::MAX);
        if thread.has_signal() {
            return Err(Stop::Restart);
        }
        thread.set_signal_mask(mask);
    }
    if old != 0 {
        write_u64(&window, old, before)?;
    }
    Ok(0)
}

/// rt_sigpending.
pub(super) fn pending(thread: &mut Thread, [set, len, ..]: [u64; 6]) -> SysResult {
    let mut host: SigSet = 0;
    thread.host_call(libc::SYS_rt_sigpending, [&raw mut host as u64, len, 0, 0, 0, 0])?;
    let queued = thread.queued.iter().fold(0, |set, signal| set | set_of(signal.number));
    write_u64(&thread.process.window, set, (host | queued) & thread.mask)?;
    Ok(0)
}

/// rt_sigsuspend.
pub(super) fn suspend(thread: &mut Thread, [set, len, ..]: [u64; 6]) -> SysResult {
    super::wait::with_mask(thread, set, |thread, mask| {
        thread.host_call(libc::SYS_rt_sigsuspend, [mask, len, 0, 0, 0, 0])
    })
}

/// sigaltstack.
pub(super) fn alternate_stack(thread: &mut Thread, [new, old, ..]: [u64; 6]) -> SysResult {
    let window = thread.process.window;
    let before = thread.alt_stack;
    let stack_pointer = thread.hart.x[2];
    if new != 0 {
        let bytes: [u8; 24] = read_array(&window, new)?;
        if before.holds(stack_pointer) {
            return Err(Errno::EPERM.into());
        }
        let flags = half_at(&bytes, 8);
        let stack = AltStack { start: word_at(&bytes, 0), flags, len_bytes: word_at(&bytes, 16) };
        thread.alt_stack = match flags {
            flags if flags & SS_DISABLE != 0 => AltStack::DISABLED,
            0 | SS_ONSTACK if stack.len_bytes < MINSIGSTKSZ => return Err(Errno::ENOMEM.into()),
            0 | SS_ONSTACK => AltStack { flags: 0, ..stack },
            _ => return Err(Errno::EINVAL.into()),
        };
    }
    if old != 0 {
        write_bytes(&window, old, &before.to_bytes(stack_pointer))?;
    }
    Ok(0)
}

/// rt_sigreturn.
pub(super) fn return_from_handler(thread: &mut Thread, _arguments: [u64; 6]) -> SysResult {
    thread.return_from_handler();
    Err(Stop::Registers)
}

/// Whether the signal must not reach the host: the thread sent itself one of the emulator's own
/// signals.
fn keep_own(thread: &mut Thread, tid: u64, signal: u64) -> bool {
    let number = signal as u32;
    let own = (1..=SIGNAL_MAX).contains(&number) && set_of(number) & NEVER_BLOCKED != 0;
    if !own || tid as u32 != thread.tid() {
        return false;
    }
    let uid = rustix::process::getuid().as_raw();
    let info = host_signals::sent_info(number, SI_TKILL, std::process::id(), uid);
    thread.queue(Signal { number, info });
    true
}

/// kill.
pub(super) fn kill(thread: &mut Thread, [pid, signal, ..]: [u64; 6]) -> SysResult {
    if pid as u32 == std::process::id() && keep_own(thread, u64::from(thread.tid()), signal) {
        return Ok(0);
    }
    thread.host_call(libc::SYS_kill, [pid, signal, 0, 0, 0, 0])
}

/// tkill.
pub(super) fn kill_thread(thread: &mut Thread, [tid, signal, ..]: [u64; 6]) -> SysResult {
    if keep_own(thread, tid, signal) {
        return Ok(0);
    }
    thread.host_call(libc::SYS_tkill, [tid, signal, 0, 0, 0, 0])
}

/// tgkill.
pub(super) fn kill_thread_of(thread: &mut Thread, [pid, tid, signal, ..]: [u64; 6]) -> SysResult {
    if pid as u32 == std::process::id() && keep_own(thread, tid, signal) {
        return Ok(0);
    }
    thread.host_call(libc::SYS_tgkill, [pid, tid, signal, 0, 0, 0])
}
