//! The fields of the hart: their offsets, and the flags of accesses to them.

use std::mem::offset_of;

use cranelift_codegen::ir::MemFlagsData;

use crate::hart::Hart;

/// The emulator's own memory: aligned, never faults.
pub(crate) const HOST: MemFlagsData = MemFlagsData::trusted();

const fn of(offset: usize) -> i32 {
    offset as i32
}

pub(crate) const PC: i32 = of(offset_of!(Hart, pc));
pub(crate) const EXIT_REQUEST: i32 = of(offset_of!(Hart, exit_request));
pub(crate) const FRONT: i32 = of(offset_of!(Hart, front));
pub(crate) const X: i32 = of(offset_of!(Hart, x));
pub(crate) const F: i32 = of(offset_of!(Hart, f));
pub(crate) const FFLAGS: i32 = of(offset_of!(Hart, fflags));
pub(crate) const FRM: i32 = of(offset_of!(Hart, frm));
pub(crate) const RESERVED: i32 = of(offset_of!(Hart, reserved));
pub(crate) const RESERVATION_ADDR: i32 = of(offset_of!(Hart, reservation_addr));
pub(crate) const RESERVATION_VALUE: i32 = of(offset_of!(Hart, reservation_value));
pub(crate) const REGISTER_BYTES: i32 = 8;

// The floating-point guard reads both bytes at once.
const _: () = assert!(FRM == FFLAGS + 1 && FFLAGS % 2 == 0);
