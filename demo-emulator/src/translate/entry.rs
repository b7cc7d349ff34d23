//! The border between Rust and compiled code: the trampoline in, the stubs that lead out, and the
//! fault hook.
//!
//! Compiled blocks follow Cranelift's `tail` convention. On x86-64 it passes (hart, base) in rdi
//! and rsi and returns in rax; on aarch64 it passes them in x2 and x3 and returns in x2. The base is
//! the host address of guest address 0. Blocks leave the stack as they found it when they jump to each other, so any of
//! them may return to the trampoline. A fault returns there from the middle of a block, with that
//! block's registers: so the trampoline saves those that Rust wants preserved. `hart.host_sp` holds
//! the trampoline's stack pointer.
//!
//! # Safety
//!
//! The hook runs on the signal path, in the thread that faulted: it takes no lock and allocates
//! nothing. The only thread-local is const-initialized and has no destructor. It is set exactly
//! while its thread is inside `enter`, and its target lives in `enter`'s frame.
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::cell::Cell;
use std::mem::{offset_of, size_of};
use std::ptr;

use codewarden::{EntryCell, EntryStubs, FRONT_SLOTS, FrontSlot};
use libc::{c_int, siginfo_t, ucontext_t};

use super::fault_index::FaultIndex;
use crate::hart::Hart;
use crate::host_context;

/// The reason why compiled code returned. `hart.pc` is the next pc.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u64)]
pub enum ExitReason {
    /// There is no compiled block at `hart.pc`, or it is not yet valid.
    Miss = 0,
    /// `hart.exit_request` was set.
    Interrupted = 1,
    /// An indirect jump to a target that is not in the front.
    IndirectMiss = 2,
    /// The block's own store killed it; the store has retired.
    SelfModified = 3,
    /// A FENCE.I has retired.
    FenceI = 4,
    /// ECALL, EBREAK or an illegal instruction, at `hart.pc`.
    Trap = 5,
    /// An instruction cannot retire in the current state. The hart is as it was before it, or before
    /// an earlier one at `hart.pc`. All between may run again. If they may be many, `hart.far_region` is
    /// not 0.
    Fault = 6,
    /// The guest's bytes differ from the source of the block at `hart.pc`.
    CheckFailed = 7,
    /// A block of the quick compiler has run so often that a region is worthwhile. It has done
    /// nothing of this run.
    Hot = 8,
}

impl ExitReason {
    /// The number of reasons, for tables of counters.
    pub const COUNT: usize = 9;

    fn of(code: u64) -> Self {
        use ExitReason::*;
        match code {
            0 => Miss,
            1 => Interrupted,
            2 => IndirectMiss,
            3 => SelfModified,
            4 => FenceI,
            5 => Trap,
            6 => Fault,
            7 => CheckFailed,
            _ => Hot,
        }
    }
}

// The layout of fronts and cells that compiled code relies on.
const _: () = assert!(
    size_of::<FrontSlot>() == 16
        && offset_of!(FrontSlot, key) == 0
        && offset_of!(FrontSlot, cell) == 8
        && size_of::<EntryCell>() == size_of::<usize>()
        && FRONT_SLOTS.is_power_of_two()
);

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.guest_entry,\"ax\",@progbits",
    ".globl guest_enter, guest_fault, guest_dead, guest_pending",
    ".hidden guest_enter, guest_fault, guest_dead, guest_pending",
    // u64 guest_enter(Hart *hart, code, base)
    "guest_enter:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    // Calls want the stack at a multiple of 16.
    "sub rsp, 8",
    "mov [rdi + {host_sp}], rsp",
    "mov rax, rsi",
    "mov rsi, rdx",
    "call rax",
    "2:",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    // The fault hook resumes here, with the hart in rdi.
    "guest_fault:",
    "mov rsp, [rdi + {host_sp}]",
    "mov eax, {fault}",
    "jmp 2b",
    // The code of entry cells that lead to no block.
    ".balign 16",
    "guest_dead:",
    "mov eax, {miss}",
    "ret",
    ".balign 16",
    "guest_pending:",
    "mov eax, {miss}",
    "ret",
    ".popsection",
    host_sp = const offset_of!(Hart, host_sp),
    miss = const ExitReason::Miss as u64,
    fault = const ExitReason::Fault as u64,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.guest_entry,\"ax\",@progbits",
    ".globl guest_enter, guest_fault, guest_dead, guest_pending",
    ".hidden guest_enter, guest_fault, guest_dead, guest_pending",
    ".balign 16",
    // u64 guest_enter(Hart *hart, code, base)
    "guest_enter:",
    "stp x29, x30, [sp, #-160]!",
    "mov x29, sp",
    "stp x19, x20, [sp, #16]",
    "stp x21, x22, [sp, #32]",
    "stp x23, x24, [sp, #48]",
    "stp x25, x26, [sp, #64]",
    "stp x27, x28, [sp, #80]",
    "stp d8, d9, [sp, #96]",
    "stp d10, d11, [sp, #112]",
    "stp d12, d13, [sp, #128]",
    "stp d14, d15, [sp, #144]",
    "str x29, [x0, {host_sp}]",
    "mov x3, x2",
    "mov x2, x0",
    "blr x1",
    "2:",
    "mov x0, x2",
    "ldp x19, x20, [sp, #16]",
    "ldp x21, x22, [sp, #32]",
    "ldp x23, x24, [sp, #48]",
    "ldp x25, x26, [sp, #64]",
    "ldp x27, x28, [sp, #80]",
    "ldp d8, d9, [sp, #96]",
    "ldp d10, d11, [sp, #112]",
    "ldp d12, d13, [sp, #128]",
    "ldp d14, d15, [sp, #144]",
    "ldp x29, x30, [sp], #160",
    "ret",
    // The fault hook resumes here, with the hart in x0.
    "guest_fault:",
    "ldr x9, [x0, {host_sp}]",
    "mov sp, x9",
    "mov x2, {fault}",
    "b 2b",
    // The code of entry cells that lead to no block.
    ".balign 16",
    "guest_dead:",
    "mov x2, {miss}",
    "ret",
    ".balign 16",
    "guest_pending:",
    "mov x2, {miss}",
    "ret",
    ".popsection",
    host_sp = const offset_of!(Hart, host_sp),
    miss = const ExitReason::Miss as u64,
    fault = const ExitReason::Fault as u64,
);

unsafe extern "C" {
    fn guest_enter(hart: *mut Hart, code: usize, base: *mut u8) -> u64;
    fn guest_fault();
    fn guest_dead();
    fn guest_pending();
}

/// The values of entry cells that lead to no block: code that returns to the dispatcher.
pub fn entry_stubs() -> EntryStubs {
    EntryStubs { dead: guest_dead as *const () as usize, pending: guest_pending as *const () as usize }
}

/// The fault hook's knowledge of its thread.
struct Running<'a> {
    hart: *mut Hart,
    faults: &'a FaultIndex,
}

thread_local! {
    static RUNNING: Cell<*const Running<'static>> = const { Cell::new(ptr::null()) };
}

/// Runs compiled code until it returns.
///
/// # Safety
///
/// `code` is the entry of a compiled block or one of the stubs, and `base` its window's base. It and
/// everything that it links to stay allocated until this returns. `hart.front` points to a vCPU's front that no other thread
/// uses, and the front's cells stay alive as long.
pub(super) unsafe fn enter(hart: &mut Hart, code: usize, base: *mut u8, faults: &FaultIndex) -> ExitReason {
    let hart = ptr::from_mut(hart);
    let running = Running { hart, faults };
    let outer = RUNNING.replace(ptr::from_ref(&running).cast());
    // SAFETY: the caller's promise; the trampoline preserves the registers that Rust's calls
    // preserve.
    let code = unsafe { guest_enter(hart, code, base) };
    RUNNING.set(outer);
    ExitReason::of(code)
}

/// Claims faults of compiled code: see [`crate::memory::host_fault`].
pub(super) unsafe extern "C" fn fault_hook(_: c_int, _: *const siginfo_t, context: *mut ucontext_t) -> bool {
    let running = RUNNING.get();
    if running.is_null() {
        return false;
    }
    // SAFETY: `enter` is on this thread's stack, and its `running` with it; the
    // context is the kernel's.
    unsafe {
        let Some((pc, far)) = (*running).faults.restart(host_context::pc(&*context)) else {
            return false;
        };
        (*(*running).hart).pc = pc;
        (*(*running).hart).far_region = far.unwrap_or(0);
        host_context::set_argument(&mut *context, (*running).hart as u64);
        host_context::set_pc(&mut *context, guest_fault as *const () as usize);
    }
    true
}
