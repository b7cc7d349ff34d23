//! The gap between the last check for a signal and the kernel entry.
//!
//! Story: if a signal came in this gap, the handler noted it, but the thread noticed it only when
//! the call returned by itself; a `read` of a quiet pipe slept on. Here the processor's trap flag
//! stops a call before each of its instructions, and the signal comes at each. So the gap is met
//! every time, not by luck. The call would sleep for ever; it must answer "restart" instead.
//!
//! Only x86-64, whose trap flag this is. A binary of its own: SIGTRAP's handler belongs to the process.
//!
//! # Safety
//!
//! The handler stores to atomics and to the kernel's context. The trap flag is set alone, and
//! cleared in the saved flags.
#![cfg(target_arch = "x86_64")]
#![allow(unsafe_code)]

use std::arch::asm;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use demo_emulator::linux::safe_syscall::{RESTART, redirect, safe_syscall};

const TRAP_FLAG: u64 = 1 << 8;

static PENDING: AtomicU32 = AtomicU32::new(0);
/// Instructions of the gap seen so far in this call.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// The signal comes at this one.
static SIGNAL_AT: AtomicU64 = AtomicU64::new(0);

extern "C" fn on_step(_signal: i32, _info: *const libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: the kernel's context, valid until return.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let pc = registers[libc::REG_RIP as usize] as u64;
    let Some(restart) = redirect(pc) else { return };
    if SEEN.fetch_add(1, Ordering::Relaxed) == SIGNAL_AT.load(Ordering::Relaxed) {
        // The emulator's own handler does the same.
        PENDING.store(10, Ordering::Relaxed);
        registers[libc::REG_RIP as usize] = restart as i64;
        registers[libc::REG_EFL as usize] &= !(TRAP_FLAG as i64);
    }
}

#[test]
fn a_signal_at_any_instruction_of_the_gap_is_noticed() {
    // SAFETY: an async-signal-safe handler; no other code uses SIGTRAP.
    unsafe {
        // A signal that slips past makes the call sleep: SIGALRM ends that.
        libc::alarm(60);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_step as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGTRAP, &raw const action, std::ptr::null_mut()), 0);
    }
    // Compare, jump, syscall: each of the three must be met.
    for at in 0..3 {
        SEEN.store(0, Ordering::Relaxed);
        SIGNAL_AT.store(at, Ordering::Relaxed);
        PENDING.store(0, Ordering::Relaxed);
        // A ppoll of nothing without a timeout.
        let arguments = [0; 6];
        // SAFETY: sets the trap flag alone; the handler clears it in the gap.
        unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
        // SAFETY: the call is given no memory.
        let result = unsafe { safe_syscall(&PENDING, libc::SYS_ppoll, &arguments) };
        assert_eq!((result, SEEN.load(Ordering::Relaxed)), (RESTART, at + 1));
    }
}
