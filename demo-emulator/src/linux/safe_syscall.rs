//! Blocking system calls that no signal can slip past.
//!
//! A guest's `read` must return EINTR when a signal comes, but the host's signal handler only notes
//! the signal. If a signal comes after the last check of the note and before the kernel entry, the
//! guest would notice it only when the `read` returns, perhaps never. The gap is closed as in QEMU:
//! the check and the system call's instruction lie between two labels. If the handler finds the program
//! counter between them, it moves the counter to the way out, which answers "restart".
//!
//! To restart a call (SA_RESTART), the kernel moves the program counter back to that instruction.
//! The handler's move then answers "restart" for it as well, and the guest's handler runs before
//! the call is made again. So the kernel itself decides which calls restart.
//!
//! # Safety
//!
//! [`safe_syscall`] makes any system call there is, so it is unsafe: the caller answers for the
//! memory that the kernel may then read and write. The assembly keeps the C calling convention. It
//! changes only registers that the caller saves, and preserves `rbx` on x86-64.
#![allow(unsafe_code)]

use std::sync::atomic::AtomicU32;

/// The answer if the call was not made: the kernel's own ERESTARTSYS.
pub const RESTART: i64 = -512;

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .text.demo_safe_syscall,\"ax\",@progbits",
    ".globl demo_safe_syscall",
    "demo_safe_syscall:",
    "push rbx",
    "mov rbx, rdi",
    "mov rax, rsi",
    "mov r11, rdx",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8,  [r11 + 32]",
    "mov r9,  [r11 + 40]",
    ".globl demo_safe_syscall_start",
    "demo_safe_syscall_start:",
    "cmp dword ptr [rbx], 0",
    "jne demo_safe_syscall_restart",
    "syscall",
    // An interrupted call that the kernel does not restart returns here.
    ".globl demo_safe_syscall_end",
    "demo_safe_syscall_end:",
    "pop rbx",
    "ret",
    ".globl demo_safe_syscall_restart",
    "demo_safe_syscall_restart:",
    "mov rax, -512",
    "pop rbx",
    "ret",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .text.demo_safe_syscall,\"ax\",@progbits",
    ".balign 4",
    ".globl demo_safe_syscall",
    "demo_safe_syscall:",
    "mov x9, x0",
    "mov x8, x1",
    "mov x10, x2",
    "ldp x0, x1, [x10]",
    "ldp x2, x3, [x10, #16]",
    "ldp x4, x5, [x10, #32]",
    ".globl demo_safe_syscall_start",
    "demo_safe_syscall_start:",
    "ldr w11, [x9]",
    "cbnz w11, demo_safe_syscall_restart",
    "svc #0",
    // An interrupted call that the kernel does not restart returns here.
    ".globl demo_safe_syscall_end",
    "demo_safe_syscall_end:",
    "ret",
    ".globl demo_safe_syscall_restart",
    "demo_safe_syscall_restart:",
    "mov x0, #-512",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn demo_safe_syscall(pending: *const AtomicU32, number: i64, arguments: *const [u64; 6]) -> i64;
    static demo_safe_syscall_start: u8;
    static demo_safe_syscall_end: u8;
    static demo_safe_syscall_restart: u8;
}

/// Makes the system call unless `pending` is not 0, without a gap between the two. Returns the
/// kernel's result, a negative errno included, or [`RESTART`].
///
/// # Safety
///
/// As for the system call itself; pointers among the arguments that the kernel
/// writes through must lie in the guest's window or in memory that may change.
pub unsafe fn safe_syscall(pending: &AtomicU32, number: i64, arguments: &[u64; 6]) -> i64 {
    // SAFETY: the caller answers for the call; both references outlive it.
    unsafe { demo_safe_syscall(pending, number, arguments) }
}

/// The pc at which a thread interrupted at `pc` must go on instead. Async-signal-safe.
pub fn redirect(pc: u64) -> Option<u64> {
    let (start, end, restart) =
        (&raw const demo_safe_syscall_start, &raw const demo_safe_syscall_end, &raw const demo_safe_syscall_restart);
    (start as u64..end as u64).contains(&pc).then_some(restart as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_signal_keeps_the_call_from_being_made() {
        let arguments = [0; 6];
        // SAFETY: getpid touches no memory.
        let result = unsafe { safe_syscall(&AtomicU32::new(10), libc::SYS_getpid, &arguments) };
        assert_eq!(result, RESTART);
        // SAFETY: as above.
        let result = unsafe { safe_syscall(&AtomicU32::new(0), libc::SYS_getpid, &arguments) };
        assert_eq!(result, i64::from(std::process::id()));
    }

    #[test]
    fn arguments_arrive_in_order() {
        // mmap takes all six; a bad file descriptor is refused with EBADF.
        let arguments = [0, 4096, 1, libc::MAP_PRIVATE as u64, u64::MAX, 0];
        // SAFETY: the mapping is refused.
        let result = unsafe { safe_syscall(&AtomicU32::new(0), libc::SYS_mmap, &arguments) };
        assert_eq!(result, -i64::from(libc::EBADF));
    }

    #[test]
    fn only_the_gap_is_redirected() {
        let start = &raw const demo_safe_syscall_start as u64;
        let end = &raw const demo_safe_syscall_end as u64;
        assert_eq!(redirect(start), redirect(end - 1));
        assert!(redirect(start).is_some() && redirect(end).is_none() && redirect(start - 1).is_none());
    }
}
