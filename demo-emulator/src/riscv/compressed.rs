//! Decoding of the compressed instructions (C with D, on RV64) to their expansions.

use super::inst::{Inst, Op};

/// The stack pointer and the link register, which some encodings imply.
const SP: u8 = 2;
const RA: u8 = 1;

/// Collects immediate bits: each pair moves one bit from its place in the
/// instruction to its place in the immediate.
fn gather<const N: usize>(bits: u32, places: [(u32, u32); N]) -> i32 {
    places.iter().map(|&(from, to)| (bits >> from & 1) << to).sum::<u32>() as i32
}

/// A register of the five-bit fields.
fn reg(bits: u32, at: u32) -> u8 {
    (bits >> at & 31) as u8
}

/// One of x8 to x15 or f8 to f15, of the three-bit fields.
fn short_reg(bits: u32, at: u32) -> u8 {
    (bits >> at & 7) as u8 + 8
}

fn with(op: Op) -> Inst {
    Inst { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 2, imm: 0 }
}

fn i(op: Op, rd: u8, rs1: u8, imm: i32) -> Inst {
    Inst { rd, rs1, imm, ..with(op) }
}

fn s(op: Op, rs1: u8, rs2: u8, imm: i32) -> Inst {
    Inst { rs1, rs2, imm, ..with(op) }
}

fn r(op: Op, rd: u8, rs1: u8, rs2: u8) -> Inst {
    Inst { rd, rs1, rs2, ..with(op) }
}

/// The six-bit signed immediate of bits 12 and 6 to 2.
fn imm6(bits: u32) -> i32 {
    shamt(bits) << 26 >> 26
}

fn shamt(bits: u32) -> i32 {
    (bits >> 7 & 0x20 | bits >> 2 & 0x1f) as i32
}

fn branch_imm(bits: u32) -> i32 {
    gather(bits, [(12, 8), (11, 4), (10, 3), (6, 7), (5, 6), (4, 2), (3, 1), (2, 5)]) << 23 >> 23
}

fn jump_imm(bits: u32) -> i32 {
    let places = [(12, 11), (11, 4), (10, 9), (9, 8), (8, 10), (7, 6), (6, 7), (5, 3), (4, 2), (3, 1), (2, 5)];
    gather(bits, places) << 20 >> 20
}

/// Decodes a 16-bit instruction; `None` for a reserved one.
pub(super) fn decode_16(bits: u32) -> Option<Inst> {
    match bits & 3 {
        0 => quadrant_0(bits),
        1 => quadrant_1(bits),
        _ => quadrant_2(bits),
    }
}

fn quadrant_0(bits: u32) -> Option<Inst> {
    use Op::*;
    let (rd, rs1) = (short_reg(bits, 2), short_reg(bits, 7));
    let word = gather(bits, [(12, 5), (11, 4), (10, 3), (6, 2), (5, 6)]);
    let double = gather(bits, [(12, 5), (11, 4), (10, 3), (6, 7), (5, 6)]);
    Some(match bits >> 13 {
        0 => {
            let imm = gather(bits, [(12, 5), (11, 4), (10, 9), (9, 8), (8, 7), (7, 6), (6, 2), (5, 3)]);
            // This includes the instruction of all zeros.
            if imm == 0 {
                return None;
            }
            i(Addi, rd, SP, imm)
        }
        1 => i(Fld, rd, rs1, double),
        2 => i(Lw, rd, rs1, word),
        3 => i(Ld, rd, rs1, double),
        5 => s(Fsd, rs1, rd, double),
        6 => s(Sw, rs1, rd, word),
        7 => s(Sd, rs1, rd, double),
        _ => return None,
    })
}

fn quadrant_1(bits: u32) -> Option<Inst> {
    use Op::*;
    let rd = reg(bits, 7);
    Some(match bits >> 13 {
        0 => i(Addi, rd, rd, imm6(bits)),
        1 if rd != 0 => i(Addiw, rd, rd, imm6(bits)),
        2 => i(Addi, rd, 0, imm6(bits)),
        3 if shamt(bits) == 0 => return None,
        3 if rd == SP => {
            let imm = gather(bits, [(12, 9), (6, 4), (5, 6), (4, 8), (3, 7), (2, 5)]);
            i(Addi, SP, SP, imm << 22 >> 22)
        }
        3 => i(Lui, rd, 0, imm6(bits) << 12),
        4 => arithmetic(bits)?,
        5 => i(Jal, 0, 0, jump_imm(bits)),
        6 => s(Beq, short_reg(bits, 7), 0, branch_imm(bits)),
        7 => s(Bne, short_reg(bits, 7), 0, branch_imm(bits)),
        _ => return None,
    })
}

fn arithmetic(bits: u32) -> Option<Inst> {
    use Op::*;
    let (rd, rs2) = (short_reg(bits, 7), short_reg(bits, 2));
    Some(match (bits >> 10 & 3, bits >> 12 & 1, bits >> 5 & 3) {
        (0, ..) => i(Srli, rd, rd, shamt(bits)),
        (1, ..) => i(Srai, rd, rd, shamt(bits)),
        (2, ..) => i(Andi, rd, rd, imm6(bits)),
        (_, 0, 0) => r(Sub, rd, rd, rs2),
        (_, 0, 1) => r(Xor, rd, rd, rs2),
        (_, 0, 2) => r(Or, rd, rd, rs2),
        (_, 0, _) => r(And, rd, rd, rs2),
        (_, _, 0) => r(Subw, rd, rd, rs2),
        (_, _, 1) => r(Addw, rd, rd, rs2),
        _ => return None,
    })
}

fn quadrant_2(bits: u32) -> Option<Inst> {
    use Op::*;
    let (rd, rs2) = (reg(bits, 7), reg(bits, 2));
    let load_word = gather(bits, [(12, 5), (6, 4), (5, 3), (4, 2), (3, 7), (2, 6)]);
    let load_double = gather(bits, [(12, 5), (6, 4), (5, 3), (4, 8), (3, 7), (2, 6)]);
    let store_word = gather(bits, [(12, 5), (11, 4), (10, 3), (9, 2), (8, 7), (7, 6)]);
    let store_double = gather(bits, [(12, 5), (11, 4), (10, 3), (9, 8), (8, 7), (7, 6)]);
    Some(match bits >> 13 {
        0 => i(Slli, rd, rd, shamt(bits)),
        1 => i(Fld, rd, SP, load_double),
        2 if rd != 0 => i(Lw, rd, SP, load_word),
        3 if rd != 0 => i(Ld, rd, SP, load_double),
        4 => match (bits >> 12 & 1, rd, rs2) {
            (0, 0, 0) => return None,
            (0, _, 0) => i(Jalr, 0, rd, 0),
            (0, ..) => r(Add, rd, 0, rs2),
            (_, 0, 0) => with(Ebreak),
            (_, _, 0) => i(Jalr, RA, rd, 0),
            _ => r(Add, rd, rd, rs2),
        },
        5 => s(Fsd, SP, rs2, store_double),
        6 => s(Sw, SP, rs2, store_word),
        7 => s(Sd, SP, rs2, store_double),
        _ => return None,
    })
}
