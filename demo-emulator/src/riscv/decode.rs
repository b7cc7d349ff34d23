//! Decoding: from the bits of memory to an [`Inst`].
//!
//! Reserved encodings are illegal. HINTs decode to the operation of their encoding, which then has
//! no visible effect: PAUSE is a FENCE, and the prefetches are ORIs to x0. FENCE and FENCE.I ignore their reserved fields, as the specification demands.

use super::compressed;
use super::inst::{Inst, Op};

/// Decodes the instruction in the low 16 or 32 bits, as its length bits say.
pub fn decode(bits: u32) -> Inst {
    if bits & 3 == 3 {
        decode_32(bits).unwrap_or(illegal(bits, 4))
    } else {
        compressed::decode_16(bits & 0xffff).unwrap_or(illegal(bits & 0xffff, 2))
    }
}

fn illegal(bits: u32, len: u8) -> Inst {
    Inst { op: Op::Illegal, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len, imm: bits as i32 }
}

/// The fields at their usual places; an operation's missing fields are never read.
#[derive(Clone, Copy)]
struct Fields(u32);

impl Fields {
    fn rd(self) -> u8 {
        (self.0 >> 7 & 31) as u8
    }
    fn funct3(self) -> u32 {
        self.0 >> 12 & 7
    }
    fn rs1(self) -> u8 {
        (self.0 >> 15 & 31) as u8
    }
    fn rs2(self) -> u8 {
        (self.0 >> 20 & 31) as u8
    }
    fn funct7(self) -> u32 {
        self.0 >> 25
    }

    fn with(self, op: Op) -> Inst {
        Inst { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 }
    }
    fn r(self, op: Op) -> Inst {
        Inst { rd: self.rd(), rs1: self.rs1(), rs2: self.rs2(), ..self.with(op) }
    }
    fn i(self, op: Op) -> Inst {
        Inst { rd: self.rd(), rs1: self.rs1(), imm: self.0 as i32 >> 20, ..self.with(op) }
    }
    fn shift(self, op: Op, mask: i32) -> Inst {
        let inst = self.i(op);
        Inst { imm: inst.imm & mask, ..inst }
    }
    /// One source; its other fields are part of the operation.
    fn unary(self, op: Op) -> Inst {
        Inst { rd: self.rd(), rs1: self.rs1(), ..self.with(op) }
    }
    fn s(self, op: Op) -> Inst {
        let imm = (self.0 as i32 >> 25) << 5 | i32::from(self.rd());
        Inst { rs1: self.rs1(), rs2: self.rs2(), imm, ..self.with(op) }
    }
    fn b(self, op: Op) -> Inst {
        let bits = self.0 as i32;
        let imm = bits >> 31 << 12 | (bits << 4 & 0x800) | (bits >> 20 & 0x7e0) | (bits >> 7 & 0x1e);
        Inst { rs1: self.rs1(), rs2: self.rs2(), imm, ..self.with(op) }
    }
    fn u(self, op: Op) -> Inst {
        Inst { rd: self.rd(), imm: (self.0 & 0xffff_f000) as i32, ..self.with(op) }
    }
    fn j(self, op: Op) -> Inst {
        let bits = self.0 as i32;
        let imm = bits >> 31 << 20 | (bits & 0xf_f000) | (bits >> 9 & 0x800) | (bits >> 20 & 0x7fe);
        Inst { rd: self.rd(), imm, ..self.with(op) }
    }
}

fn decode_32(bits: u32) -> Option<Inst> {
    use Op::*;
    let f = Fields(bits);
    let funct3 = f.funct3() as usize;
    Some(match bits & 0x7f {
        0x37 => f.u(Lui),
        0x17 => f.u(Auipc),
        0x6f => f.j(Jal),
        0x67 if funct3 == 0 => f.i(Jalr),
        0x63 => f.b(pick([Beq, Bne, Illegal, Illegal, Blt, Bge, Bltu, Bgeu], funct3)?),
        0x03 => f.i(pick([Lb, Lh, Lw, Ld, Lbu, Lhu, Lwu, Illegal], funct3)?),
        0x23 => f.s(pick([Sb, Sh, Sw, Sd], funct3)?),
        0x13 => op_imm(f)?,
        0x1b => match (funct3, f.funct7()) {
            (0, _) => f.i(Addiw),
            (1, 0) => f.shift(Slliw, 31),
            (5, 0) => f.shift(Srliw, 31),
            (5, 0x20) => f.shift(Sraiw, 31),
            (1, 0x04 | 0x05) => f.shift(Slli_uw, 63),
            (1, 0x30) => f.unary(pick([Clzw, Ctzw, Cpopw], f.rs2().into())?),
            (5, 0x30) => f.shift(Roriw, 31),
            _ => return None,
        },
        0x33 => f.r(match f.funct7() {
            0 => pick([Add, Sll, Slt, Sltu, Xor, Srl, Or, And], funct3)?,
            1 => pick([Mul, Mulh, Mulhsu, Mulhu, Div, Divu, Rem, Remu], funct3)?,
            0x05 => pick([Illegal, Clmul, Clmulr, Clmulh, Min, Minu, Max, Maxu], funct3)?,
            0x10 => pick([Illegal, Illegal, Sh1add, Illegal, Sh2add, Illegal, Sh3add], funct3)?,
            0x14 => pick([Illegal, Bset], funct3)?,
            0x20 => pick([Sub, Illegal, Illegal, Illegal, Xnor, Sra, Orn, Andn], funct3)?,
            0x24 => pick([Illegal, Bclr, Illegal, Illegal, Illegal, Bext], funct3)?,
            0x30 => pick([Illegal, Rol, Illegal, Illegal, Illegal, Ror], funct3)?,
            0x34 => pick([Illegal, Binv], funct3)?,
            _ => return None,
        }),
        0x3b => f.r(match f.funct7() {
            0 => pick([Addw, Sllw, Illegal, Illegal, Illegal, Srlw], funct3)?,
            1 => pick([Mulw, Illegal, Illegal, Illegal, Divw, Divuw, Remw, Remuw], funct3)?,
            0x04 if funct3 == 0 => Add_uw,
            0x04 if funct3 == 4 && f.rs2() == 0 => return Some(f.unary(Zext_h)),
            0x10 => pick([Illegal, Illegal, Sh1add_uw, Illegal, Sh2add_uw, Illegal, Sh3add_uw], funct3)?,
            0x20 => pick([Subw, Illegal, Illegal, Illegal, Illegal, Sraw], funct3)?,
            0x30 => pick([Illegal, Rolw, Illegal, Illegal, Illegal, Rorw], funct3)?,
            _ => return None,
        }),
        0x0f => match funct3 {
            0 => Inst { imm: (bits >> 20) as i32, ..f.with(Fence) },
            1 => f.with(Fence_i),
            // Linux does not enable CBO.INVAL, which is 0, for programs.
            2 if f.rd() == 0 => {
                let op = pick([Illegal, Cbo_clean, Cbo_flush, Illegal, Cbo_zero], (bits >> 20) as usize)?;
                Inst { rs1: f.rs1(), ..f.with(op) }
            }
            _ => return None,
        },
        0x73 => match funct3 {
            0 => match bits {
                0x0000_0073 => f.with(Ecall),
                0x0010_0073 => f.with(Ebreak),
                _ => return None,
            },
            _ => {
                let op = pick([Illegal, Csrrw, Csrrs, Csrrc, Illegal, Csrrwi, Csrrsi, Csrrci], funct3)?;
                Inst { imm: (bits >> 20) as i32, ..f.i(op) }
            }
        },
        0x2f => atomic(f)?,
        0x07 => f.i(pick([Illegal, Flh, Flw, Fld], funct3)?),
        0x27 => f.s(pick([Illegal, Fsh, Fsw, Fsd], funct3)?),
        0x43 => fused(f, [Fmadd_s, Fmadd_d])?,
        0x47 => fused(f, [Fmsub_s, Fmsub_d])?,
        0x4b => fused(f, [Fnmsub_s, Fnmsub_d])?,
        0x4f => fused(f, [Fnmadd_s, Fnmadd_d])?,
        0x53 => op_fp(f)?,
        _ => return None,
    })
}

/// The operation at `index`, if there is one.
fn pick<const N: usize>(ops: [Op; N], index: usize) -> Option<Op> {
    ops.get(index).copied().filter(|&op| op != Op::Illegal)
}

fn op_imm(f: Fields) -> Option<Inst> {
    use Op::*;
    Some(match (f.funct3(), f.funct7() >> 1) {
        (0, _) => f.i(Addi),
        (1, 0) => f.shift(Slli, 63),
        (2, _) => f.i(Slti),
        (3, _) => f.i(Sltiu),
        (4, _) => f.i(Xori),
        (5, 0) => f.shift(Srli, 63),
        (5, 0x10) => f.shift(Srai, 63),
        (1, 0x0a) => f.shift(Bseti, 63),
        (1, 0x12) => f.shift(Bclri, 63),
        (1, 0x1a) => f.shift(Binvi, 63),
        (1, 0x18) => f.unary(pick([Clz, Ctz, Cpop, Illegal, Sext_b, Sext_h], f.shift(Slli, 63).imm as usize)?),
        (5, 0x12) => f.shift(Bexti, 63),
        (5, 0x18) => f.shift(Rori, 63),
        (5, 0x0a) if f.shift(Srli, 63).imm == 7 => f.unary(Orc_b),
        (5, 0x1a) if f.shift(Srli, 63).imm == 56 => f.unary(Rev8),
        (6, _) => f.i(Ori),
        (7, _) => f.i(Andi),
        _ => return None,
    })
}

fn atomic(f: Fields) -> Option<Inst> {
    use Op::*;
    let [word, double] = match f.funct7() >> 2 {
        0x02 if f.rs2() == 0 => [Lr_w, Lr_d],
        0x03 => [Sc_w, Sc_d],
        0x01 => [Amoswap_w, Amoswap_d],
        0x00 => [Amoadd_w, Amoadd_d],
        0x04 => [Amoxor_w, Amoxor_d],
        0x0c => [Amoand_w, Amoand_d],
        0x08 => [Amoor_w, Amoor_d],
        0x10 => [Amomin_w, Amomin_d],
        0x14 => [Amomax_w, Amomax_d],
        0x18 => [Amominu_w, Amominu_d],
        0x1c => [Amomaxu_w, Amomaxu_d],
        _ => return None,
    };
    let op = match f.funct3() {
        2 => word,
        3 => double,
        _ => return None,
    };
    Some(Inst { rm: (f.funct7() & 3) as u8, ..f.r(op) })
}

/// The rounding mode field, if it is not one of the reserved values.
fn rounding_mode(f: Fields) -> Option<u8> {
    let rm = f.funct3();
    (rm != 5 && rm != 6).then_some(rm as u8)
}

fn fused(f: Fields, [single, double]: [Op; 2]) -> Option<Inst> {
    let op = match f.funct7() & 3 {
        0 => single,
        1 => double,
        _ => return None,
    };
    Some(Inst { rs3: (f.funct7() >> 2) as u8, rm: rounding_mode(f)?, ..f.r(op) })
}

fn op_fp(f: Fields) -> Option<Inst> {
    use Op::*;
    let (single, double, half) = (0, 1, 2);
    let format = f.funct7() & 3;
    let funct3 = f.funct3() as usize;
    let source = f.rs2() as usize;
    // Operations with two sources, or with one: the rest of the encoding is then in place of the
    // second source. They have a rounding mode, or more bits of the operation in its place.
    let by_format = |s: Op, d: Op| if format == single { s } else { d };
    let rounded = |op: Op| Some(Inst { rm: rounding_mode(f)?, ..f.r(op) });
    let rounded_unary = |op: Op| Some(Inst { rs2: 0, ..rounded(op)? });
    if format == half {
        // Conversions to halves and moves alone.
        return match (f.funct7() >> 2, source) {
            (0x08, 0) => rounded_unary(Fcvt_h_s),
            (0x08, 1) => rounded_unary(Fcvt_h_d),
            (0x1c, 0) if funct3 == 0 => Some(f.unary(Fmv_x_h)),
            (0x1e, 0) if funct3 == 0 => Some(f.unary(Fmv_h_x)),
            _ => None,
        };
    }
    if format > double {
        return None;
    }
    Some(match f.funct7() >> 2 {
        0x00 => rounded(by_format(Fadd_s, Fadd_d))?,
        0x01 => rounded(by_format(Fsub_s, Fsub_d))?,
        0x02 => rounded(by_format(Fmul_s, Fmul_d))?,
        0x03 => rounded(by_format(Fdiv_s, Fdiv_d))?,
        0x0b if source == 0 => rounded_unary(by_format(Fsqrt_s, Fsqrt_d))?,
        0x04 if format == single => f.r(pick([Fsgnj_s, Fsgnjn_s, Fsgnjx_s], funct3)?),
        0x04 => f.r(pick([Fsgnj_d, Fsgnjn_d, Fsgnjx_d], funct3)?),
        0x05 if format == single => f.r(pick([Fmin_s, Fmax_s], funct3)?),
        0x05 => f.r(pick([Fmin_d, Fmax_d], funct3)?),
        0x08 if format == single && source == 1 => rounded_unary(Fcvt_s_d)?,
        0x08 if format == double && source == 0 => rounded_unary(Fcvt_d_s)?,
        0x08 if source == half as usize => rounded_unary(by_format(Fcvt_s_h, Fcvt_d_h))?,
        0x14 if format == single => f.r(pick([Fle_s, Flt_s, Feq_s], funct3)?),
        0x14 => f.r(pick([Fle_d, Flt_d, Feq_d], funct3)?),
        0x18 if format == single => rounded_unary(pick([Fcvt_w_s, Fcvt_wu_s, Fcvt_l_s, Fcvt_lu_s], source)?)?,
        0x18 => rounded_unary(pick([Fcvt_w_d, Fcvt_wu_d, Fcvt_l_d, Fcvt_lu_d], source)?)?,
        0x1a if format == single => rounded_unary(pick([Fcvt_s_w, Fcvt_s_wu, Fcvt_s_l, Fcvt_s_lu], source)?)?,
        0x1a => rounded_unary(pick([Fcvt_d_w, Fcvt_d_wu, Fcvt_d_l, Fcvt_d_lu], source)?)?,
        0x1c if source == 0 && funct3 == 0 => f.unary(by_format(Fmv_x_w, Fmv_x_d)),
        0x1c if source == 0 && funct3 == 1 => f.unary(by_format(Fclass_s, Fclass_d)),
        0x1e if source == 0 && funct3 == 0 => f.unary(by_format(Fmv_w_x, Fmv_d_x)),
        _ => return None,
    })
}
