//! The registers of an interrupted thread, as a signal handler sees and changes them.

use libc::ucontext_t;

/// The program counter.
#[cfg(target_arch = "x86_64")]
pub fn pc(context: &ucontext_t) -> usize {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize
}

/// The program counter.
#[cfg(target_arch = "aarch64")]
pub fn pc(context: &ucontext_t) -> usize {
    context.uc_mcontext.pc as usize
}

/// Lets the thread go on at `pc`.
#[cfg(target_arch = "x86_64")]
pub fn set_pc(context: &mut ucontext_t, pc: usize) {
    context.uc_mcontext.gregs[libc::REG_RIP as usize] = pc as i64;
}

/// Lets the thread go on at `pc`.
#[cfg(target_arch = "aarch64")]
pub fn set_pc(context: &mut ucontext_t, pc: usize) {
    context.uc_mcontext.pc = pc as u64;
}

/// Sets the register of a function's first argument.
#[cfg(target_arch = "x86_64")]
pub fn set_argument(context: &mut ucontext_t, value: u64) {
    context.uc_mcontext.gregs[libc::REG_RDI as usize] = value as i64;
}

/// Sets the register of a function's first argument.
#[cfg(target_arch = "aarch64")]
pub fn set_argument(context: &mut ucontext_t, value: u64) {
    context.uc_mcontext.regs[0] = value;
}

/// Sets the registers in which a function returns two words.
#[cfg(target_arch = "x86_64")]
pub fn set_results(context: &mut ucontext_t, results: [u64; 2]) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = results[0] as i64;
    context.uc_mcontext.gregs[libc::REG_RDX as usize] = results[1] as i64;
}

/// Sets the registers in which a function returns two words.
#[cfg(target_arch = "aarch64")]
pub fn set_results(context: &mut ucontext_t, results: [u64; 2]) {
    context.uc_mcontext.regs[..2].copy_from_slice(&results);
}
