//! Between Rust and compiled code: the trampoline in, the stubs that lead out,
//! and the fault hook.
//!
//! Compiled blocks follow Cranelift's `tail` convention, which on x86-64 passes
//! (hart, slot) in rdi and rsi, returns in rax and preserves nothing: the
//! trampoline saves what Rust wants kept. Blocks leave the stack as they found
//! it when they jump to each other, so that any of them may return to the
//! trampoline. A fault does so from the middle of a block: the trampoline's
//! stack pointer is in `hart.host_sp`.
//!
//! # Safety
//!
//! The hook runs on the signal path, in the thread that faulted: it takes no
//! lock and allocates nothing. The only thread-local is const-initialized and
//! has no destructor; it is set while, and only while, its thread is inside
//! `enter`, and what it points to lives in `enter`'s frame.
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::cell::Cell;
use std::mem::{offset_of, size_of};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};

use codewarden::{EntryCell, EntryStubs, FRONT_ENTRIES, FrontEntry, Link};
use libc::{c_int, siginfo_t, ucontext_t};

use super::fault_index::FaultIndex;
use crate::hart::Hart;

/// Why compiled code came back. `hart.pc` says where to go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u64)]
pub enum ExitReason {
    /// A direct exit that is not linked; its slot is in `hart.exit_slot`.
    Unlinked = 0,
    /// The target was killed, or is not yet valid.
    Miss = 1,
    /// `hart.exit_request` was set.
    Interrupted = 2,
    /// An indirect jump that the front does not know.
    IndirectMiss = 3,
    /// The block's own store killed it; the store has retired.
    SelfModified = 4,
    /// A FENCE.I has retired.
    FenceI = 5,
    /// ECALL, EBREAK or an illegal instruction, at `hart.pc`.
    Trap = 6,
    /// The instruction at `hart.pc` cannot retire as things are. It has had no
    /// effect.
    Fault = 7,
    /// The guest's bytes are not those that the block at `hart.pc` was made from.
    CheckFailed = 8,
}

impl ExitReason {
    /// How many there are, for tables of counters.
    pub const COUNT: usize = 9;

    fn of(code: u64) -> Self {
        use ExitReason::*;
        match code {
            0 => Unlinked,
            1 => Miss,
            2 => Interrupted,
            3 => IndirectMiss,
            4 => SelfModified,
            5 => FenceI,
            6 => Trap,
            7 => Fault,
            _ => CheckFailed,
        }
    }
}

/// Where a direct exit leads: the address of an entry cell. Compiled code holds
/// the slot's own address, so that it never moves.
#[derive(Debug)]
#[repr(C)]
pub struct LinkSlot {
    /// First: what compiled code reads.
    cell: AtomicPtr<EntryCell>,
    /// Keeps the cell as long as the block of this slot. An exit has one target.
    link: OnceLock<Link>,
}

impl LinkSlot {
    /// A slot that leads to the dispatcher.
    pub(super) fn unlinked() -> Self {
        Self { cell: AtomicPtr::new(unlinked_cell().cast_mut()), link: OnceLock::new() }
    }

    /// Sends the exit to the blocks of its target's key from now on.
    pub fn link(&self, link: Link) {
        self.send_through(self.link.get_or_init(|| link).cell());
    }

    /// Sends the exit through `cell`, which must stay allocated for as long as a
    /// hart can be in the block of this slot, or the slot be sent elsewhere first.
    pub(super) fn send_through(&self, cell: *const EntryCell) {
        self.cell.store(cell.cast_mut(), Ordering::Release);
    }

    /// The cell that the exit goes through.
    pub fn cell(&self) -> *const EntryCell {
        self.cell.load(Ordering::Acquire)
    }
}

// What compiled code takes for granted of a front, and of a cell.
const _: () = assert!(
    size_of::<FrontEntry>() == 16
        && offset_of!(FrontEntry, key) == 0
        && offset_of!(FrontEntry, cell) == 8
        && offset_of!(LinkSlot, cell) == 0
        && size_of::<EntryCell>() == size_of::<usize>()
        && FRONT_ENTRIES.is_power_of_two()
);

global_asm!(
    ".pushsection .text.guest_entry,\"ax\",@progbits",
    ".globl guest_enter, guest_fault, guest_unlinked, guest_dead, guest_pending",
    ".hidden guest_enter, guest_fault, guest_unlinked, guest_dead, guest_pending",
    // u64 guest_enter(Hart *hart, code)
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
    "xor esi, esi",
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
    // What entry cells lead to where there is no code to run.
    ".balign 16",
    "guest_unlinked:",
    "mov [rdi + {exit_slot}], rsi",
    "mov eax, {unlinked}",
    "ret",
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
    exit_slot = const offset_of!(Hart, exit_slot),
    unlinked = const ExitReason::Unlinked as u64,
    miss = const ExitReason::Miss as u64,
    fault = const ExitReason::Fault as u64,
);

unsafe extern "sysv64" {
    fn guest_enter(hart: *mut Hart, code: usize) -> u64;
    fn guest_fault();
    fn guest_unlinked();
    fn guest_dead();
    fn guest_pending();
}

/// What entry cells hold that lead to no block: code that goes back to the
/// dispatcher.
pub fn entry_stubs() -> EntryStubs {
    EntryStubs { dead: guest_dead as *const () as usize, pending: guest_pending as *const () as usize }
}

/// The cell that unlinked slots lead to. Its code never changes.
pub(super) fn unlinked_cell() -> *const EntryCell {
    // A cell is one word; only the code cache makes those that lead to blocks.
    static CELL: LazyLock<AtomicUsize> = LazyLock::new(|| AtomicUsize::new(guest_unlinked as *const () as usize));
    ptr::from_ref(&*CELL).cast()
}

/// What the fault hook needs to know of the thread that it runs in.
struct Running<'a> {
    hart: *mut Hart,
    faults: &'a FaultIndex,
}

thread_local! {
    static RUNNING: Cell<*const Running<'static>> = const { Cell::new(ptr::null()) };
}

/// Runs compiled code until it comes back.
///
/// # Safety
///
/// `code` is the entry of a compiled block or one of the stubs, and stays
/// allocated, like everything that it links to, until this returns;
/// `hart.front` points to a vCPU's front, whose cells are as alive, and which no
/// other thread uses.
pub(super) unsafe fn enter(hart: &mut Hart, code: usize, faults: &FaultIndex) -> ExitReason {
    let hart = ptr::from_mut(hart);
    let running = Running { hart, faults };
    let outer = RUNNING.replace(ptr::from_ref(&running).cast());
    // SAFETY: the caller's promise; the trampoline keeps what Rust's calls keep.
    let code = unsafe { guest_enter(hart, code) };
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
        let registers = &mut (*context).uc_mcontext.gregs;
        let Some(pc) = (*running).faults.guest_pc(registers[libc::REG_RIP as usize] as usize) else {
            return false;
        };
        (*(*running).hart).pc = pc;
        registers[libc::REG_RDI as usize] = (*running).hart as i64;
        registers[libc::REG_RIP as usize] = guest_fault as *const () as i64;
    }
    true
}
