//! The registers that an instruction reads and writes, for the analyses of a region.

use crate::riscv::encode::encode;
use crate::riscv::inst::{Inst, Op};

/// A set of registers: one bit for each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Masks {
    /// Integer registers; never register 0.
    pub(super) x: u32,
    /// Floating-point registers.
    pub(super) f: u32,
}

impl Masks {
    pub(super) const NONE: Self = Self { x: 0, f: 0 };

    fn x(registers: &[u8]) -> Self {
        Self { x: registers.iter().fold(0, |mask, register| mask | 1 << (register & 31)) & !1, f: 0 }
    }

    fn f(registers: &[u8]) -> Self {
        Self { x: 0, f: registers.iter().fold(0, |mask, register| mask | 1 << (register & 31)) }
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self { x: self.x | other.x, f: self.f | other.f }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self { x: self.x & other.x, f: self.f & other.f }
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self { x: self.x & !other.x, f: self.f & !other.f }
    }
}

/// An instruction's effects on registers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effects {
    pub(super) reads: Masks,
    /// Each of them is written in any case, unless the instruction faults.
    pub(super) writes: Masks,
    /// It may access memory, but for the cache-block operations.
    pub(super) accesses: bool,
}

/// Major opcodes.
const LOAD: u32 = 0x03;
const LOAD_FP: u32 = 0x07;
const STORE: u32 = 0x23;
const STORE_FP: u32 = 0x27;
const BRANCH: u32 = 0x63;
const FENCE: u32 = 0x0f;
const AMO: u32 = 0x2f;
const FUSED: [u32; 4] = [0x43, 0x47, 0x4b, 0x4f];
const OP_FP: u32 = 0x53;

impl Effects {
    pub(super) fn of(inst: &Inst) -> Self {
        if inst.op == Op::Illegal {
            return Self { reads: Masks::NONE, writes: Masks::NONE, accesses: false };
        }
        let blank = Inst { op: inst.op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 };
        let bits = encode(&blank);
        let opcode = bits & 0x7f;
        let Inst { rd, rs1, rs2, rs3, .. } = *inst;
        let (reads, writes) = match opcode {
            LOAD_FP => (Masks::x(&[rs1]), Masks::f(&[rd])),
            STORE_FP => (Masks::x(&[rs1]).or(Masks::f(&[rs2])), Masks::NONE),
            STORE | BRANCH | FENCE => (Masks::x(&[rs1, rs2]), Masks::NONE),
            OP_FP => {
                // By the upper bits of funct7.
                let (reads, to_integer) = match bits >> 27 {
                    // From an integer register.
                    0x1a | 0x1e => (Masks::x(&[rs1]), false),
                    // To one: comparisons, conversions, moves and classes.
                    0x14 => (Masks::f(&[rs1, rs2]), true),
                    0x18 | 0x1c => (Masks::f(&[rs1]), true),
                    // Square roots and conversions between formats.
                    0x0b | 0x08 => (Masks::f(&[rs1]), false),
                    _ => (Masks::f(&[rs1, rs2]), false),
                };
                (reads, if to_integer { Masks::x(&[rd]) } else { Masks::f(&[rd]) })
            }
            _ if FUSED.contains(&opcode) => (Masks::f(&[rs1, rs2, rs3]), Masks::f(&[rd])),
            _ => (Masks::x(&[rs1, rs2]), Masks::x(&[rd])),
        };
        let accesses = matches!(opcode, LOAD | LOAD_FP | STORE | STORE_FP | AMO);
        Self { reads, writes, accesses }
    }
}
