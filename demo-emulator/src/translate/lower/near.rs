//! Which registers hold addresses near the guest's window.
//!
//! A guard lies before and behind the window. So one test of a register serves for every access at
//! a small distance from it, and for every register that was made from it by adding constants. If
//! the address of such an access is outside the window, the access meets a guard and faults.

use crate::memory::window::GUARD_LEN_BYTES;
use crate::riscv::inst::{Inst, Op};

/// The longest guest access in bytes.
const ACCESS_BYTES: i64 = 8;

/// The distances of registers from addresses in the window; `None` if nothing is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Near([Option<i64>; 32]);

impl Near {
    /// Nothing is known but that register 0 holds the window's first address.
    pub(super) fn new() -> Self {
        let mut distances = [None; 32];
        distances[0] = Some(0);
        Self(distances)
    }

    /// A register changes.
    pub(super) fn forget(&mut self, register: u8) {
        self.0[usize::from(register)] = None;
    }

    /// A register was found to hold an address in the window.
    pub(super) fn found(&mut self, register: u8) {
        self.0[usize::from(register)] = Some(0);
    }

    /// Whether an access at so many bytes from the register stays within the window and its guards.
    pub(super) fn reaches(&self, register: u8, offset: i32) -> bool {
        let reach = GUARD_LEN_BYTES as i64 - ACCESS_BYTES;
        self.0[usize::from(register)].is_some_and(|distance| (distance + i64::from(offset)).abs() <= reach)
    }

    /// The distance of the result of `inst`, if it adds a constant.
    pub(super) fn after(&self, inst: &Inst) -> Option<i64> {
        let distance = self.0[usize::from(inst.rs1)].filter(|_| inst.op == Op::Addi)? + i64::from(inst.imm);
        (distance.abs() <= GUARD_LEN_BYTES as i64).then_some(distance)
    }

    /// Sets the distance of a register that holds such a result.
    pub(super) fn set(&mut self, register: u8, distance: i64) {
        if register != 0 {
            self.0[usize::from(register)] = Some(distance);
        }
    }
}
