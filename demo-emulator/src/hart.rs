//! The state of one guest hart for the interpreters and the compiled code. Compiled code uses the
//! offsets of the fields: `repr(C)`.

use std::sync::atomic::AtomicU8;

/// Rounding to nearest, ties to even: the reset value of `frm`.
pub const RNE: u8 = 0;

/// Registers and execution state of one hart.
#[repr(C)]
#[derive(Debug)]
pub struct Hart {
    /// Integer registers; `x[0]` stays 0.
    pub x: [u64; 32],
    /// Floating-point registers, singles NaN-boxed.
    pub f: [u64; 32],
    /// Address of the next instruction; even.
    pub pc: u64,
    /// Accrued exception flags: NV 16, DZ 8, OF 4, UF 2, NX 1.
    pub fflags: u8,
    /// Rounding mode: 0 to 4, or an invalid value that traps when used.
    pub frm: u8,
    /// Whether a reservation of LR is held.
    pub reserved: u8,
    /// Set to make the hart leave translated code; polled at every back edge.
    pub exit_request: AtomicU8,
    /// The reservation's guest address.
    pub reservation_addr: u64,
    /// The value that LR loaded: SC compares and exchanges with it.
    pub reservation_value: u64,
    /// Instructions retired, for `instret`; only the interpreter and tier 0 count them.
    pub instret: u64,
    /// Stack pointer of the entry trampoline; a guest fault unwinds to it.
    pub host_sp: u64,
    /// The direct-mapped front of the code cache, probed by compiled code.
    pub front: u64,
    /// After a fault that went [far back](crate::translate): the start of its region. Otherwise 0.
    pub far_region: u64,
}

impl Hart {
    /// A hart about to run at `pc`, all registers 0. Instructions have even
    /// addresses: the lowest bit is dropped, as a jump drops it.
    pub fn new(pc: u64) -> Self {
        Self {
            x: [0; 32],
            f: [0; 32],
            pc: pc & !1,
            fflags: 0,
            frm: RNE,
            reserved: 0,
            exit_request: AtomicU8::new(0),
            reservation_addr: 0,
            reservation_value: 0,
            instret: 0,
            host_sp: 0,
            front: 0,
            far_region: 0,
        }
    }

    /// Writes an integer register; `x[0]` stays 0.
    #[inline(always)]
    pub fn set_x(&mut self, register: u8, value: u64) {
        self.x[usize::from(register & 31)] = value;
        self.x[0] = 0;
    }
}
