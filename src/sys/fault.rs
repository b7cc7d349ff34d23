//! The code that a signal handler runs.
//!
//! [`handle_fault`] is all that the library does in signal context. It asks three questions: is it
//! a signal that write protection raises, did the instruction write, is the address in a tracked
//! range? Then the range's [`FaultSink`] decides. Nothing here takes a lock, allocates or touches
//! guest memory, and errno is preserved.
//!
//! # Safety
//!
//! The raw pointers are those that the kernel gives to a signal handler.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};

use crate::addr::HostAddr;
use crate::sys::errno::KeepErrno;
use crate::sys::ranges::{Delivery, Handled, WriteFault, dispatch, some_was_given_up};
use crate::sys::repeats::Repeats;

/// Decides about one SIGBUS or SIGSEGV, for an embedder that owns these signals. Call it first
/// in the handler. On [`Handled::Retry`] return from the handler; on [`Handled::NotOurs`] go on
/// as without this library.
///
/// Async-signal-safe; errno is preserved. The handler must be installed with `SA_SIGINFO`, and with
/// `SA_ONSTACK` if the guest may own the stack pointer. No thread that stores to tracked memory may
/// have the signal blocked: the kernel kills the process at such a store.
///
/// # Safety
///
/// The arguments are those that the kernel gave to the handler that runs now.
#[inline]
pub unsafe fn handle_fault(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) -> Handled {
    // SAFETY: the caller's obligation: a valid siginfo.
    let code = unsafe { (*info).si_code };
    let delivery = match (signo, code) {
        (libc::SIGBUS, libc::BUS_ADRERR) => Delivery::Sigbus,
        (libc::SIGSEGV, SEGV_ACCERR) => Delivery::Sigsegv,
        _ => return Handled::NotOurs,
    };
    // SAFETY: the caller's obligation: a valid ucontext of this architecture.
    let Some(pc) = (unsafe { storing_pc(context.cast()) }) else {
        return Handled::NotOurs;
    };
    let _errno = KeepErrno::new();
    // SAFETY: both signals carry an address if the code is positive.
    let addr = HostAddr(unsafe { (*info).si_addr() } as usize);
    let fault = WriteFault { addr, pc: Some(pc), tid: 0 };
    dispatch(delivery, &fault).unwrap_or_else(|| try_once_more(&fault))
}

/// The last fault of each thread in no tracked range.
static FOREIGN: Repeats = Repeats::new();

/// A fault in no tracked range may have been under way when its range was given up, however long ago:
/// other threads may have changed all other ranges since. Then the store goes through now. If the fault
/// comes back it is not ours.
#[cold]
#[inline(never)]
fn try_once_more(fault: &WriteFault) -> Handled {
    const WORD: u64 = 0;
    if !some_was_given_up() || FOREIGN.is_repeat(fault, WORD, Some(0)) {
        return Handled::NotOurs;
    }
    FOREIGN.record(fault, WORD, Some(0));
    Handled::Retry
}

/// The libc crate lacks it; the value is the kernel's.
const SEGV_ACCERR: c_int = 2;

/// The instruction that faulted, if it wrote: write protection never stops a
/// read. Bit 1 of the page fault's error code says so.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn storing_pc(context: *const libc::ucontext_t) -> Option<HostAddr> {
    const WROTE: i64 = 1 << 1;
    // SAFETY: the caller's obligation.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    let wrote = registers[libc::REG_ERR as usize] & WROTE != 0;
    wrote.then_some(HostAddr(registers[libc::REG_RIP as usize] as usize))
}

/// The instruction that faulted. The kernel does not tell whether it wrote: the sink looks at the
/// page's state.
#[cfg(target_arch = "riscv64")]
unsafe fn storing_pc(context: *const libc::ucontext_t) -> Option<HostAddr> {
    const PC: usize = 0;
    // SAFETY: the caller's obligation.
    let registers = unsafe { &(*context).uc_mcontext.__gregs };
    Some(HostAddr(registers[PC] as usize))
}

/// The instruction that faulted, if it wrote: write protection never stops a
/// read. The kernel appends the exception syndrome to the register frame; bit 6
/// of a data abort's says "write".
#[cfg(target_arch = "aarch64")]
unsafe fn storing_pc(context: *const libc::ucontext_t) -> Option<HostAddr> {
    const ESR_MAGIC: u32 = 0x4553_5201;
    const WROTE: u64 = 1 << 6;
    const RESERVED_BYTES: usize = 4096;
    // SAFETY: the caller's obligation.
    let machine = unsafe { &(*context).uc_mcontext };
    let pc = HostAddr(machine.pc as usize);
    // `__reserved` is private to the libc crate; it is the last member.
    let records = (&raw const *machine).cast::<u8>().wrapping_add(size_of_val(machine) - RESERVED_BYTES);
    let mut at = 0;
    while at + 16 <= RESERVED_BYTES {
        let record = records.wrapping_add(at);
        // SAFETY: within `__reserved`, to which the kernel writes records of a 4-byte magic and
        // a 4-byte size.
        let (magic, len) = unsafe { (record.cast::<u32>().read(), record.cast::<u32>().add(1).read()) };
        match (magic, len) {
            (ESR_MAGIC, _) => {
                // SAFETY: the record's body, within `__reserved` by the loop's condition.
                let syndrome = unsafe { record.cast::<u64>().add(1).read() };
                return (syndrome & WROTE != 0).then_some(pc);
            }
            (0, _) | (_, 0) => break,
            _ => at += len as usize,
        }
    }
    // Without a syndrome, treat it as a write; the sink looks at the page's state.
    Some(pc)
}
