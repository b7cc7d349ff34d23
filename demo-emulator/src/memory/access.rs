//! Loads, stores and atomics on guest memory that answer a fault with an
//! error.
//!
//! Loads and stores are single instructions (`plain`). Each atomic is one leaf routine in
//! assembly, all of them in one contiguous range of code. If a host SIGSEGV or SIGBUS has its pc in
//! that range, [`host_fault`](super::host_fault) resumes at a landing pad. The landing pad returns
//! to the routine's caller with the faulting host address, in the place of the 0 of a finished
//! access. A routine touches no stack and no callee-saved register, so the landing pad is a bare
//! return.
//!
//! Atomics are sequentially consistent among each other: lock-prefixed instructions on x86-64,
//! exclusive loads and stores with acquire and release on aarch64. They need natural alignment; the
//! caller checks it, because its trap differs.
//!
//! # Safety
//!
//! The routines accept every address: if the host refuses an access, the result is an error. They
//! cannot reach the host's own memory, because [`Window::host`] is the only source of the addresses
//! passed here; its guard catches an access that ends beyond the window.
#![allow(unsafe_code)]

use std::arch::global_asm;

use super::plain::{self, Outcome};
use super::window::{WINDOW_LEN_BYTES, Window};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the guest memory stubs are written for x86-64 and aarch64 hosts only: add them for this one here");

/// An access that the host refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The guest address that could not be accessed. For an access over two pages: the first byte
    /// that it touches of the refusing page.
    pub addr: u64,
    /// The reason.
    pub kind: FaultKind,
}

/// The reason why an access was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// No mapping, or one that forbids it: the guest's SIGSEGV.
    Segv,
    /// A mapping without memory, for instance beyond a file's end: the guest's SIGBUS.
    Bus,
}

/// An atomic memory operation's result from the old and the given value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AmoOp {
    /// The given one.
    Swap,
    /// Their sum.
    Add,
    /// Their exclusive or.
    Xor,
    /// Their and.
    And,
    /// Their or.
    Or,
    /// The lesser, signed.
    Min,
    /// The greater, signed.
    Max,
    /// The lesser, unsigned.
    Minu,
    /// The greater, unsigned.
    Maxu,
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.guest_access,\"ax\",@progbits",
    // Other codegen units of this crate refer to them.
    ".globl guest_access_start, guest_swap_32, guest_swap_64, guest_add_32, guest_add_64",
    ".globl guest_cas_32, guest_cas_64, guest_access_landing, guest_access_end",
    ".hidden guest_access_start, guest_swap_32, guest_swap_64, guest_add_32, guest_add_64",
    ".hidden guest_cas_32, guest_cas_64, guest_access_landing, guest_access_end",
    ".balign 16",
    "guest_access_start:",
    "guest_swap_32: mov eax, esi",
    "               xchg dword ptr [rdi], eax",
    "               xor edx, edx",
    "               ret",
    "guest_swap_64: mov rax, rsi",
    "               xchg qword ptr [rdi], rax",
    "               xor edx, edx",
    "               ret",
    "guest_add_32:  mov eax, esi",
    "               lock xadd dword ptr [rdi], eax",
    "               xor edx, edx",
    "               ret",
    "guest_add_64:  mov rax, rsi",
    "               lock xadd qword ptr [rdi], rax",
    "               xor edx, edx",
    "               ret",
    "guest_cas_32:  mov eax, esi",
    "               lock cmpxchg dword ptr [rdi], edx",
    "               xor edx, edx",
    "               ret",
    "guest_cas_64:  mov rax, rsi",
    "               lock cmpxchg qword ptr [rdi], rdx",
    "               xor edx, edx",
    "               ret",
    // The handler has put the signal into rax and the address into rdx.
    "guest_access_landing: ret",
    "guest_access_end:",
    ".popsection",
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.guest_access,\"ax\",@progbits",
    // Other codegen units of this crate refer to them.
    ".globl guest_access_start, guest_swap_32, guest_swap_64, guest_add_32, guest_add_64",
    ".globl guest_cas_32, guest_cas_64, guest_access_landing, guest_access_end",
    ".hidden guest_access_start, guest_swap_32, guest_swap_64, guest_add_32, guest_add_64",
    ".hidden guest_cas_32, guest_cas_64, guest_access_landing, guest_access_end",
    ".balign 16",
    "guest_access_start:",
    "guest_swap_32: ldaxr w2, [x0]",
    "               stlxr w3, w1, [x0]",
    "               cbnz w3, guest_swap_32",
    "               b 8f",
    "guest_swap_64: ldaxr x2, [x0]",
    "               stlxr w3, x1, [x0]",
    "               cbnz w3, guest_swap_64",
    "               b 8f",
    "guest_add_32:  ldaxr w2, [x0]",
    "               add w4, w2, w1",
    "               stlxr w3, w4, [x0]",
    "               cbnz w3, guest_add_32",
    "               b 8f",
    "guest_add_64:  ldaxr x2, [x0]",
    "               add x4, x2, x1",
    "               stlxr w3, x4, [x0]",
    "               cbnz w3, guest_add_64",
    "               b 8f",
    // A failing exchange stores the value that it has read: as on x86-64, it is a store to the
    // page's protection.
    "guest_cas_32:  ldaxr w3, [x0]",
    "               cmp w3, w1",
    "               csel w4, w2, w3, eq",
    "               stlxr w5, w4, [x0]",
    "               cbnz w5, guest_cas_32",
    "               mov w2, w3",
    "               b 8f",
    "guest_cas_64:  ldaxr x3, [x0]",
    "               cmp x3, x1",
    "               csel x4, x2, x3, eq",
    "               stlxr w5, x4, [x0]",
    "               cbnz w5, guest_cas_64",
    "               mov x2, x3",
    "8:             mov x0, x2",
    "               mov x1, xzr",
    "               ret",
    // The handler has put the signal into x0 and the address into x1.
    "guest_access_landing: ret",
    "guest_access_end:",
    ".popsection",
);

unsafe extern "C" {
    fn guest_swap_32(at: *mut u8, value: u32) -> Outcome;
    fn guest_swap_64(at: *mut u8, value: u64) -> Outcome;
    fn guest_add_32(at: *mut u8, value: u32) -> Outcome;
    fn guest_add_64(at: *mut u8, value: u64) -> Outcome;
    fn guest_cas_32(at: *mut u8, expected: u32, new: u32) -> Outcome;
    fn guest_cas_64(at: *mut u8, expected: u64, new: u64) -> Outcome;
    static guest_access_start: u8;
    static guest_access_landing: u8;
    static guest_access_end: u8;
}

/// The place to resume at after a fault at a host pc, if the pc is an access's.
pub(super) fn landing_pad(pc: usize) -> Option<usize> {
    let start = &raw const guest_access_start as usize;
    let end = &raw const guest_access_end as usize;
    let is_routine = (start..end).contains(&pc);
    is_routine.then_some(&raw const guest_access_landing as usize).or_else(|| plain::behind(pc))
}

impl Outcome {
    #[inline(always)]
    fn check(self, window: &Window, addr: u64) -> Result<u64, Fault> {
        if self.fault == 0 { Ok(self.value) } else { Err(self.refused(window, addr)) }
    }

    #[cold]
    fn refused(self, window: &Window, addr: u64) -> Fault {
        let kind = if self.value == libc::SIGBUS as u64 { FaultKind::Bus } else { FaultKind::Segv };
        // An access that ends beyond the window met its guard: the fault is at the window's end.
        Fault { addr: window.guest(self.fault as usize).unwrap_or(WINDOW_LEN_BYTES.max(addr)), kind }
    }
}

const fn outside(addr: u64) -> Fault {
    Fault { addr, kind: FaultKind::Segv }
}

macro_rules! loads_and_stores {
    ($($type:ty: $load:ident $plain_load:ident, $store:ident $plain_store:ident;)*) => {$(
        #[doc = concat!("Loads a `", stringify!($type), "`, aligned or not.")]
        #[inline]
        pub fn $load(&self, addr: u64) -> Result<$type, Fault> {
            let at = self.host(addr).ok_or(outside(addr))?;
            // SAFETY: an address of the window, as the module's head demands.
            let outcome = unsafe { plain::$plain_load(at) };
            Ok(outcome.check(self, addr)? as $type)
        }

        #[doc = concat!("Stores a `", stringify!($type), "`, aligned or not.")]
        #[inline]
        pub fn $store(&self, addr: u64, value: $type) -> Result<(), Fault> {
            let at = self.host(addr).ok_or(outside(addr))?;
            // SAFETY: an address of the window, as the module's head demands.
            let outcome = unsafe { plain::$plain_store(at, value) };
            outcome.check(self, addr).map(drop)
        }
    )*};
}

macro_rules! atomics {
    ($($type:ty, $signed:ty: $cas:ident $guest_cas:ident, $amo:ident $load:ident $guest_swap:ident $guest_add:ident;)*) => {$(
        /// Replaces `expected` by `new`; returns the value before, which is `expected` if and only
        /// if it was replaced.
        #[inline]
        pub fn $cas(&self, addr: u64, expected: $type, new: $type) -> Result<$type, Fault> {
            let at = self.host(addr).ok_or(outside(addr))?;
            // SAFETY: an address of the window, as the module's head demands.
            let outcome = unsafe { $guest_cas(at, expected, new) };
            Ok(outcome.check(self, addr)? as $type)
        }

        /// Does an atomic memory operation and returns the old value.
        #[inline]
        pub fn $amo(&self, addr: u64, op: AmoOp, value: $type) -> Result<$type, Fault> {
            let at = self.host(addr).ok_or(outside(addr))?;
            if op == AmoOp::Swap {
                // SAFETY: an address of the window, as the module's head demands.
                return Ok(unsafe { $guest_swap(at, value) }.check(self, addr)? as $type);
            }
            if op == AmoOp::Add {
                // SAFETY: as above.
                return Ok(unsafe { $guest_add(at, value) }.check(self, addr)? as $type);
            }
            let mut old = self.$load(addr)?;
            loop {
                let new = match op {
                    AmoOp::Swap => value,
                    AmoOp::Add => old.wrapping_add(value),
                    AmoOp::Xor => old ^ value,
                    AmoOp::And => old & value,
                    AmoOp::Or => old | value,
                    AmoOp::Min => (old as $signed).min(value as $signed) as $type,
                    AmoOp::Max => (old as $signed).max(value as $signed) as $type,
                    AmoOp::Minu => old.min(value),
                    AmoOp::Maxu => old.max(value),
                };
                let seen = self.$cas(addr, old, new)?;
                if seen == old {
                    return Ok(old);
                }
                old = seen;
            }
        }
    )*};
}

impl Window {
    loads_and_stores! {
        u8: load_u8 load_8, store_u8 store_8;
        u16: load_u16 load_16, store_u16 store_16;
        u32: load_u32 load_32, store_u32 store_32;
        u64: load_u64 load_64, store_u64 store_64;
    }

    atomics! {
        u32, i32: compare_exchange_u32 guest_cas_32, amo_u32 load_u32 guest_swap_32 guest_add_32;
        u64, i64: compare_exchange_u64 guest_cas_64, amo_u64 load_u64 guest_swap_64 guest_add_64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::host_fault;
    use super::super::window::{EXEC, PAGE_LEN_BYTES, READ, WRITE};
    use super::*;

    const PAGE: u64 = PAGE_LEN_BYTES;

    /// A window with one writable page at `PAGE`, a read-only one after it, and no other mapping.
    fn window() -> Window {
        host_fault::install().unwrap();
        let window = Window::reserve().unwrap();
        let host = window.host(PAGE).unwrap();
        // SAFETY: inside the window just reserved, which no other code uses.
        unsafe {
            let both = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(host.cast(), PAGE as usize, both), 0);
            assert_eq!(libc::mprotect(host.add(PAGE as usize).cast(), PAGE as usize, libc::PROT_READ), 0);
        }
        window.set_permissions(PAGE..2 * PAGE, READ | WRITE);
        window.set_permissions(2 * PAGE..3 * PAGE, READ | EXEC);
        window
    }

    fn segv(addr: u64) -> Fault {
        Fault { addr, kind: FaultKind::Segv }
    }

    #[test]
    fn every_width_round_trips_aligned_or_not() {
        let window = window();
        for offset in 0..16 {
            let addr = PAGE + offset;
            window.store_u64(addr, 0x8877_6655_4433_2211).unwrap();
            assert_eq!(window.load_u8(addr), Ok(0x11));
            assert_eq!(window.load_u16(addr + 1), Ok(0x3322));
            assert_eq!(window.load_u32(addr + 2), Ok(0x6655_4433));
            assert_eq!(window.load_u64(addr), Ok(0x8877_6655_4433_2211));
            window.store_u8(addr, 0xa1).unwrap();
            window.store_u16(addr + 1, 0xb3b2).unwrap();
            window.store_u32(addr + 3, 0xc7c6_c5c4).unwrap();
            assert_eq!(window.load_u64(addr), Ok(0x88c7_c6c5_c4b3_b2a1));
        }
    }

    #[test]
    fn an_access_over_two_pages_works_and_reports_the_refusing_byte() {
        let window = window();
        assert_eq!(window.load_u64(2 * PAGE - 3), Ok(0));
        assert_eq!(window.store_u64(2 * PAGE - 3, 1), Err(segv(2 * PAGE)));
        assert_eq!(window.load_u64(3 * PAGE - 3), Err(segv(3 * PAGE)));
        assert_eq!(window.load_u64(PAGE - 3), Err(segv(PAGE - 3)));
    }

    #[test]
    fn refused_accesses_are_errors() {
        let window = window();
        for addr in [0, 8, 3 * PAGE, WINDOW_LEN_BYTES - 8] {
            assert_eq!(window.load_u8(addr), Err(segv(addr)));
            assert_eq!(window.load_u16(addr), Err(segv(addr)));
            assert_eq!(window.load_u32(addr), Err(segv(addr)));
            assert_eq!(window.load_u64(addr), Err(segv(addr)));
            assert_eq!(window.store_u8(addr, 1), Err(segv(addr)));
            assert_eq!(window.store_u16(addr, 1), Err(segv(addr)));
            assert_eq!(window.store_u32(addr, 1), Err(segv(addr)));
            assert_eq!(window.store_u64(addr, 1), Err(segv(addr)));
            for op in [AmoOp::Swap, AmoOp::Add, AmoOp::Min] {
                assert_eq!(window.amo_u32(addr, op, 1), Err(segv(addr)));
                assert_eq!(window.amo_u64(addr, op, 1), Err(segv(addr)));
            }
            assert_eq!(window.compare_exchange_u32(addr, 0, 1), Err(segv(addr)));
            assert_eq!(window.compare_exchange_u64(addr, 0, 1), Err(segv(addr)));
        }
        assert_eq!(window.amo_u32(2 * PAGE, AmoOp::Or, 0), Err(segv(2 * PAGE)));
    }

    #[test]
    fn outside_the_window_nothing_is_touched() {
        let window = window();
        for addr in [WINDOW_LEN_BYTES, WINDOW_LEN_BYTES + PAGE, u64::MAX, u64::MAX - 7] {
            assert_eq!(window.load_u64(addr), Err(segv(addr)));
            assert_eq!(window.store_u8(addr, 1), Err(segv(addr)));
            assert_eq!(window.fetch(addr), Err(segv(addr)));
        }
        // Begins inside and ends in the guard.
        let last = WINDOW_LEN_BYTES - PAGE;
        // SAFETY: the window's last page, which no other code uses.
        let protected = unsafe { libc::mprotect(window.host(last).unwrap().cast(), PAGE as usize, libc::PROT_READ) };
        assert_eq!(protected, 0);
        assert_eq!(window.load_u64(WINDOW_LEN_BYTES - 4), Err(segv(WINDOW_LEN_BYTES)));
    }

    #[test]
    fn beyond_the_end_of_a_file_is_a_bus_fault() {
        let window = window();
        let file = empty_file();
        let host = window.host(8 * PAGE).unwrap();
        // SAFETY: replaces a page of the window that no code uses.
        let mapped = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            libc::mmap(host.cast(), PAGE as usize, libc::PROT_READ, flags, file, 0)
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        assert_eq!(window.load_u32(8 * PAGE + 4), Err(Fault { addr: 8 * PAGE + 4, kind: FaultKind::Bus }));
    }

    /// An empty file.
    fn empty_file() -> libc::c_int {
        // SAFETY: a call with a literal name.
        let fd = unsafe { libc::memfd_create(c"empty".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0);
        fd
    }

    #[test]
    fn atomics_give_the_old_value_and_store_the_new() {
        let window = window();
        let cases = [
            (AmoOp::Swap, 5, 9, 9),
            (AmoOp::Add, u64::MAX, 2, 1),
            (AmoOp::Xor, 0b1100, 0b1010, 0b0110),
            (AmoOp::And, 0b1100, 0b1010, 0b1000),
            (AmoOp::Or, 0b1100, 0b1010, 0b1110),
            (AmoOp::Min, 1, u64::MAX, u64::MAX),
            (AmoOp::Max, 1, u64::MAX, 1),
            (AmoOp::Minu, 1, u64::MAX, 1),
            (AmoOp::Maxu, 1, u64::MAX, u64::MAX),
        ];
        for (op, old, operand, new) in cases {
            window.store_u64(PAGE, old).unwrap();
            assert_eq!(window.amo_u64(PAGE, op, operand), Ok(old), "{op:?}");
            assert_eq!(window.load_u64(PAGE), Ok(new), "{op:?}");
            window.store_u64(PAGE, 0x7777_0000_0000 | u64::from(old as u32)).unwrap();
            assert_eq!(window.amo_u32(PAGE, op, operand as u32), Ok(old as u32), "{op:?}");
            assert_eq!(window.load_u64(PAGE), Ok(0x7777_0000_0000 & !0xffff_ffff | u64::from(new as u32)), "{op:?}");
        }
        window.store_u64(PAGE, 7).unwrap();
        assert_eq!(window.compare_exchange_u64(PAGE, 8, 9), Ok(7));
        assert_eq!(window.compare_exchange_u64(PAGE, 7, 9), Ok(7));
        assert_eq!(window.load_u64(PAGE), Ok(9));
    }

    #[test]
    fn atomics_of_several_threads_lose_nothing() {
        let window = window();
        let rounds = 20_000;
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(move || {
                    for _ in 0..rounds {
                        window.amo_u32(PAGE, AmoOp::Add, 1).unwrap();
                        let old = window.load_u64(PAGE + 8).unwrap();
                        if window.compare_exchange_u64(PAGE + 8, old, old + 1).unwrap() == old {
                            window.amo_u64(PAGE + 16, AmoOp::Add, 1).unwrap();
                        }
                        // No routine of its own: a compare-exchange loop.
                        window.amo_u64(PAGE + 24, AmoOp::Xor, 1).unwrap();
                    }
                });
            }
        });
        assert_eq!(window.load_u32(PAGE), Ok(3 * rounds));
        assert_eq!(window.load_u64(PAGE + 8), window.load_u64(PAGE + 16));
        assert_eq!(window.load_u64(PAGE + 24), Ok(0));
    }

    #[test]
    fn fetch_wants_the_execute_permission() {
        let window = window();
        assert_eq!(window.fetch(PAGE), Err(segv(PAGE)));
        assert_eq!(window.fetch(2 * PAGE), Ok(0));
        // The chunk begins before the requested byte.
        assert_eq!(window.fetch(2 * PAGE + 6), Ok(0));
        assert_eq!(window.fetch(PAGE + 6), Err(segv(PAGE + 6)));
        window.set_permissions(3 * PAGE..4 * PAGE, EXEC);
        assert_eq!(window.fetch(3 * PAGE + 6), Err(segv(3 * PAGE + 6)));
    }
}
