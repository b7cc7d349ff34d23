//! The registers that hold addresses near the guest's window.
//!
//! A guard lies before and behind the window. So one test of a register serves for every access at
//! a small distance from it, and for every register that was made from it by adding constants. If
//! the address of such an access is outside the window, the access meets a guard and faults.

use super::effects::Effects;
use crate::memory::window::GUARD_LEN_BYTES;
use crate::riscv::inst::{BLOCK_BYTES, Inst, Op};

/// The longest guest access in bytes: that of a cache block.
const ACCESS_BYTES: i64 = BLOCK_BYTES as i64;

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

    /// The knowledge that both have.
    pub(super) fn and(&self, other: &Self) -> Self {
        let both = |register: usize| self.0[register].filter(|_| self.0[register] == other.0[register]);
        Self(std::array::from_fn(both))
    }

    /// The address register of `inst` was tested, if that was necessary.
    pub(super) fn test(&mut self, inst: &Inst) {
        if !self.reaches(inst) {
            self.0[usize::from(inst.rs1)] = Some(0);
        }
    }

    /// Whether the access of `inst` stays within the window and its guards.
    pub(super) fn reaches(&self, inst: &Inst) -> bool {
        let reach = GUARD_LEN_BYTES as i64 - ACCESS_BYTES;
        self.0[usize::from(inst.rs1)].is_some_and(|distance| (distance + i64::from(inst.imm)).abs() <= reach)
    }

    /// The register that `inst` writes has changed.
    fn write(&mut self, inst: &Inst) {
        let moved = self.0[usize::from(inst.rs1)].filter(|_| inst.op == Op::Addi);
        let distance = moved.map(|distance| distance + i64::from(inst.imm));
        if Effects::of(inst).writes.x & 1 << inst.rd != 0 {
            self.0[usize::from(inst.rd)] = distance.filter(|distance| distance.abs() <= GUARD_LEN_BYTES as i64);
        }
    }

    /// `inst` was executed, and went on to the next.
    pub(super) fn pass(&mut self, inst: &Inst) {
        // An SC without a reservation makes no access.
        if Effects::of(inst).accesses && !matches!(inst.op, Op::Sc_w | Op::Sc_d) {
            self.test(inst);
        }
        self.write(inst);
    }
}
