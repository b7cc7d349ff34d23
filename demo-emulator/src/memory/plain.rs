//! Loads and stores that answer a fault, as single instructions in the middle of Rust code.
//!
//! Interpreters run them for about one guest instruction in three, so they are not calls. Each
//! copy of such an instruction enters itself into a table of the program: its address and the
//! address behind it. If a host SIGSEGV or SIGBUS comes from an instruction of the table,
//! [`host_fault`](super::host_fault) resumes behind it, with the signal and the faulting host
//! address in two registers; a finished access leaves 0 in the second one.
//!
//! # Safety
//!
//! The instructions touch no stack. The compiler knows the two registers as outputs, so the handler
//! may write them. The table is read-only data of the program.
#![allow(unsafe_code)]

use std::arch::asm;
use std::ptr;

/// The outcome of an access, in rax and rdx, or x0 and x1.
#[repr(C)]
pub(super) struct Outcome {
    /// The value read; after a fault the signal's number.
    pub(super) value: u64,
    /// 0, or the host address of the fault.
    pub(super) fault: u64,
}

/// An entry of the table: two words, each the distance from itself to its instruction.
type Entry = [i32; 2];

unsafe extern "C" {
    // The linker's names for the ends of the section.
    #[link_name = "__start_guest_accesses"]
    static FIRST: Entry;
    #[link_name = "__stop_guest_accesses"]
    static END: Entry;
}

/// The address behind the access at `pc`, if one is there.
pub(super) fn behind(pc: usize) -> Option<usize> {
    let (first, end) = (&raw const FIRST, &raw const END);
    let count = (end as usize - first as usize) / size_of::<Entry>();
    // SAFETY: the section has so many entries, and no code writes to them.
    let entries = unsafe { std::slice::from_raw_parts(first, count) };
    entries.iter().find_map(|entry| {
        let [access, behind] =
            entry.each_ref().map(|word| ptr::from_ref(word).addr().wrapping_add_signed(*word as isize));
        (access == pc).then_some(behind)
    })
}

/// The table's entry of the access between the labels 2 and 3. R: the linker keeps it, although no
/// code refers to it.
macro_rules! entry {
    () => {
        ".pushsection guest_accesses, \"aR\", @progbits
         .balign 4
         .long 2b - .
         .long 3b - .
         .popsection"
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! access {
    ($x86_64:literal, $aarch64:literal, $($operand:tt)*) => {{
        let (value, fault);
        // SAFETY: by the caller's contract and the module's head.
        unsafe {
            asm!(
                "xor edx, edx",
                concat!("2: ", $x86_64),
                "3:",
                entry!(),
                $($operand)*,
                lateout("rax") value,
                out("rdx") fault,
                options(nostack),
            );
        }
        Outcome { value, fault }
    }};
}

#[cfg(target_arch = "aarch64")]
macro_rules! access {
    ($x86_64:literal, $aarch64:literal, $($operand:tt)*) => {{
        let (value, fault);
        // SAFETY: by the caller's contract and the module's head.
        unsafe {
            asm!(
                "mov x1, xzr",
                concat!("2: ", $aarch64),
                "3:",
                entry!(),
                $($operand)*,
                lateout("x0") value,
                out("x1") fault,
                options(nostack, preserves_flags),
            );
        }
        Outcome { value, fault }
    }};
}

macro_rules! loads {
    ($($name:ident: $x86_64:literal, $aarch64:literal;)*) => {$(
        /// # Safety
        ///
        /// If the host permits the access, so may the guest.
        #[inline(always)]
        pub(super) unsafe fn $name(at: *const u8) -> Outcome {
            access!($x86_64, $aarch64, at = in(reg) at)
        }
    )*};
}

macro_rules! stores {
    ($($name:ident, $type:ty, $class:ident: $x86_64:literal, $aarch64:literal;)*) => {$(
        /// # Safety
        ///
        /// If the host permits the access, so may the guest.
        #[inline(always)]
        pub(super) unsafe fn $name(at: *mut u8, stored: $type) -> Outcome {
            access!($x86_64, $aarch64, at = in(reg) at, stored = in($class) stored)
        }
    )*};
}

loads! {
    load_8: "movzx eax, byte ptr [{at}]", "ldrb w0, [{at}]";
    load_16: "movzx eax, word ptr [{at}]", "ldrh w0, [{at}]";
    load_32: "mov eax, dword ptr [{at}]", "ldr w0, [{at}]";
    load_64: "mov rax, qword ptr [{at}]", "ldr x0, [{at}]";
}

#[cfg(target_arch = "x86_64")]
stores! {
    store_8, u8, reg_byte: "mov byte ptr [{at}], {stored}", "";
    store_16, u16, reg: "mov word ptr [{at}], {stored:x}", "";
    store_32, u32, reg: "mov dword ptr [{at}], {stored:e}", "";
    store_64, u64, reg: "mov qword ptr [{at}], {stored:r}", "";
}

#[cfg(target_arch = "aarch64")]
stores! {
    store_8, u8, reg: "", "strb {stored:w}, [{at}]";
    store_16, u16, reg: "", "strh {stored:w}, [{at}]";
    store_32, u32, reg: "", "str {stored:w}, [{at}]";
    store_64, u64, reg: "", "str {stored:x}, [{at}]";
}
