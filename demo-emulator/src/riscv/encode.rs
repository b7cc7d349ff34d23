//! Encoding: the inverse of decoding, always to the 32-bit form.

use super::inst::{Inst, Op};

/// The bits of an instruction in its 32-bit form, for any length; for [`Op::Illegal`] the bits that
/// it holds. Immediate bits that the form cannot hold are dropped.
pub fn encode(inst: &Inst) -> u32 {
    let (form, base) = template(inst.op);
    let imm = inst.imm as u32;
    let rd = u32::from(inst.rd) << 7;
    let rs1 = u32::from(inst.rs1) << 15;
    let rs2 = u32::from(inst.rs2) << 20;
    let rs3 = u32::from(inst.rs3) << 27;
    let rm = u32::from(inst.rm);
    base | match form {
        Form::R => rd | rs1 | rs2,
        Form::Unary => rd | rs1,
        Form::I => rd | rs1 | imm << 20,
        Form::Shift => rd | rs1 | (imm & 63) << 20,
        Form::ShiftWord => rd | rs1 | (imm & 31) << 20,
        Form::S => rs1 | rs2 | (imm & 31) << 7 | (imm >> 5 & 0x7f) << 25,
        Form::B => {
            rs1 | rs2 | (imm >> 11 & 1) << 7 | (imm >> 1 & 15) << 8 | (imm >> 5 & 63) << 25 | (imm >> 12 & 1) << 31
        }
        Form::U => rd | imm & 0xffff_f000,
        Form::J => rd | imm & 0xf_f000 | (imm >> 11 & 1) << 20 | (imm >> 1 & 0x3ff) << 21 | (imm >> 20 & 1) << 31,
        Form::Block => rs1,
        Form::Fixed => 0,
        Form::Fence => imm << 20,
        Form::Atomic => rd | rs1 | rs2 | rm << 25,
        Form::LoadReserved => rd | rs1 | rm << 25,
        Form::RoundedUnary => rd | rs1 | rm << 12,
        Form::Rounded => rd | rs1 | rs2 | rm << 12,
        Form::Fused => rd | rs1 | rs2 | rs3 | rm << 12,
        Form::Illegal => imm,
    }
}

/// The places of an operation's fields.
#[derive(Clone, Copy)]
enum Form {
    R,
    Unary,
    I,
    Shift,
    ShiftWord,
    S,
    B,
    U,
    J,
    Block,
    Fixed,
    Fence,
    Atomic,
    LoadReserved,
    Rounded,
    RoundedUnary,
    Fused,
    Illegal,
}

const fn r(opcode: u32, funct3: u32, funct7: u32) -> (Form, u32) {
    (Form::R, opcode | funct3 << 12 | funct7 << 25)
}

const fn i(opcode: u32, funct3: u32) -> (Form, u32) {
    (Form::I, opcode | funct3 << 12)
}

const fn shift(funct3: u32, funct7: u32) -> (Form, u32) {
    (Form::Shift, 0x13 | funct3 << 12 | funct7 << 25)
}

const fn shift_word(funct3: u32, funct7: u32) -> (Form, u32) {
    (Form::ShiftWord, 0x1b | funct3 << 12 | funct7 << 25)
}

/// An operation on one integer register; 12 bits are in place of an immediate.
const fn bits(opcode: u32, funct3: u32, imm: u32) -> (Form, u32) {
    (Form::Unary, opcode | funct3 << 12 | imm << 20)
}

/// An operation on a cache block.
const fn block(imm: u32) -> (Form, u32) {
    (Form::Block, 0x200f | imm << 20)
}

const fn s(opcode: u32, funct3: u32) -> (Form, u32) {
    (Form::S, opcode | funct3 << 12)
}

const fn b(funct3: u32) -> (Form, u32) {
    (Form::B, 0x63 | funct3 << 12)
}

const fn amo(funct3: u32, funct5: u32) -> (Form, u32) {
    (Form::Atomic, 0x2f | funct3 << 12 | funct5 << 27)
}

const fn fused(opcode: u32, format: u32) -> (Form, u32) {
    (Form::Fused, opcode | format << 25)
}

const fn load_reserved(funct3: u32) -> (Form, u32) {
    (Form::LoadReserved, 0x1000_002f | funct3 << 12)
}

/// An operation of the opcode OP-FP with a rounding mode.
const fn rounded(funct7: u32) -> (Form, u32) {
    (Form::Rounded, 0x53 | funct7 << 25)
}

/// As above, with more bits of the operation in place of the second source.
const fn rounded_unary(funct7: u32, rs2: u32) -> (Form, u32) {
    (Form::RoundedUnary, 0x53 | funct7 << 25 | rs2 << 20)
}

/// Operations without a rounding mode.
const fn unary(funct7: u32, funct3: u32) -> (Form, u32) {
    (Form::Unary, 0x53 | funct3 << 12 | funct7 << 25)
}

const fn fp(funct7: u32, funct3: u32) -> (Form, u32) {
    r(0x53, funct3, funct7)
}

/// The form of an operation and its constant bits.
#[rustfmt::skip]
const fn template(op: Op) -> (Form, u32) {
    use Op::*;
    match op {
        Lui => (Form::U, 0x37), Auipc => (Form::U, 0x17), Jal => (Form::J, 0x6f), Jalr => i(0x67, 0),
        Beq => b(0), Bne => b(1), Blt => b(4), Bge => b(5), Bltu => b(6), Bgeu => b(7),
        Lb => i(0x03, 0), Lh => i(0x03, 1), Lw => i(0x03, 2), Ld => i(0x03, 3),
        Lbu => i(0x03, 4), Lhu => i(0x03, 5), Lwu => i(0x03, 6),
        Sb => s(0x23, 0), Sh => s(0x23, 1), Sw => s(0x23, 2), Sd => s(0x23, 3),
        Addi => i(0x13, 0), Slti => i(0x13, 2), Sltiu => i(0x13, 3),
        Xori => i(0x13, 4), Ori => i(0x13, 6), Andi => i(0x13, 7),
        Slli => shift(1, 0), Srli => shift(5, 0), Srai => shift(5, 0x20),
        Add => r(0x33, 0, 0), Sub => r(0x33, 0, 0x20), Sll => r(0x33, 1, 0), Slt => r(0x33, 2, 0),
        Sltu => r(0x33, 3, 0), Xor => r(0x33, 4, 0), Srl => r(0x33, 5, 0), Sra => r(0x33, 5, 0x20),
        Or => r(0x33, 6, 0), And => r(0x33, 7, 0),
        Addiw => i(0x1b, 0), Slliw => shift_word(1, 0), Srliw => shift_word(5, 0), Sraiw => shift_word(5, 0x20),
        Addw => r(0x3b, 0, 0), Subw => r(0x3b, 0, 0x20), Sllw => r(0x3b, 1, 0),
        Srlw => r(0x3b, 5, 0), Sraw => r(0x3b, 5, 0x20),
        Fence => (Form::Fence, 0x0f), Fence_i => (Form::Fixed, 0x100f),
        Ecall => (Form::Fixed, 0x73), Ebreak => (Form::Fixed, 0x10_0073),
        Csrrw => i(0x73, 1), Csrrs => i(0x73, 2), Csrrc => i(0x73, 3),
        Csrrwi => i(0x73, 5), Csrrsi => i(0x73, 6), Csrrci => i(0x73, 7),
        Mul => r(0x33, 0, 1), Mulh => r(0x33, 1, 1), Mulhsu => r(0x33, 2, 1), Mulhu => r(0x33, 3, 1),
        Div => r(0x33, 4, 1), Divu => r(0x33, 5, 1), Rem => r(0x33, 6, 1), Remu => r(0x33, 7, 1),
        Mulw => r(0x3b, 0, 1), Divw => r(0x3b, 4, 1), Divuw => r(0x3b, 5, 1),
        Remw => r(0x3b, 6, 1), Remuw => r(0x3b, 7, 1),
        Lr_w => load_reserved(2), Sc_w => amo(2, 0x03), Amoswap_w => amo(2, 0x01), Amoadd_w => amo(2, 0x00),
        Amoxor_w => amo(2, 0x04), Amoand_w => amo(2, 0x0c), Amoor_w => amo(2, 0x08), Amomin_w => amo(2, 0x10),
        Amomax_w => amo(2, 0x14), Amominu_w => amo(2, 0x18), Amomaxu_w => amo(2, 0x1c),
        Lr_d => load_reserved(3), Sc_d => amo(3, 0x03), Amoswap_d => amo(3, 0x01), Amoadd_d => amo(3, 0x00),
        Amoxor_d => amo(3, 0x04), Amoand_d => amo(3, 0x0c), Amoor_d => amo(3, 0x08), Amomin_d => amo(3, 0x10),
        Amomax_d => amo(3, 0x14), Amominu_d => amo(3, 0x18), Amomaxu_d => amo(3, 0x1c),
        Flw => i(0x07, 2), Fsw => s(0x27, 2), Fld => i(0x07, 3), Fsd => s(0x27, 3),
        Fmadd_s => fused(0x43, 0), Fmsub_s => fused(0x47, 0), Fnmsub_s => fused(0x4b, 0), Fnmadd_s => fused(0x4f, 0),
        Fmadd_d => fused(0x43, 1), Fmsub_d => fused(0x47, 1), Fnmsub_d => fused(0x4b, 1), Fnmadd_d => fused(0x4f, 1),
        Fadd_s => rounded(0x00), Fsub_s => rounded(0x04), Fmul_s => rounded(0x08),
        Fdiv_s => rounded(0x0c), Fsqrt_s => rounded_unary(0x2c, 0),
        Fadd_d => rounded(0x01), Fsub_d => rounded(0x05), Fmul_d => rounded(0x09),
        Fdiv_d => rounded(0x0d), Fsqrt_d => rounded_unary(0x2d, 0),
        Fsgnj_s => fp(0x10, 0), Fsgnjn_s => fp(0x10, 1), Fsgnjx_s => fp(0x10, 2), Fmin_s => fp(0x14, 0), Fmax_s => fp(0x14, 1),
        Fsgnj_d => fp(0x11, 0), Fsgnjn_d => fp(0x11, 1), Fsgnjx_d => fp(0x11, 2), Fmin_d => fp(0x15, 0), Fmax_d => fp(0x15, 1),
        Fcvt_s_d => rounded_unary(0x20, 1), Fcvt_d_s => rounded_unary(0x21, 0),
        Fcvt_w_s => rounded_unary(0x60, 0), Fcvt_wu_s => rounded_unary(0x60, 1), Fcvt_l_s => rounded_unary(0x60, 2), Fcvt_lu_s => rounded_unary(0x60, 3),
        Fcvt_s_w => rounded_unary(0x68, 0), Fcvt_s_wu => rounded_unary(0x68, 1), Fcvt_s_l => rounded_unary(0x68, 2), Fcvt_s_lu => rounded_unary(0x68, 3),
        Fcvt_w_d => rounded_unary(0x61, 0), Fcvt_wu_d => rounded_unary(0x61, 1), Fcvt_l_d => rounded_unary(0x61, 2), Fcvt_lu_d => rounded_unary(0x61, 3),
        Fcvt_d_w => rounded_unary(0x69, 0), Fcvt_d_wu => rounded_unary(0x69, 1), Fcvt_d_l => rounded_unary(0x69, 2), Fcvt_d_lu => rounded_unary(0x69, 3),
        Fmv_x_w => unary(0x70, 0), Fclass_s => unary(0x70, 1), Fmv_w_x => unary(0x78, 0),
        Fmv_x_d => unary(0x71, 0), Fclass_d => unary(0x71, 1), Fmv_d_x => unary(0x79, 0),
        Feq_s => fp(0x50, 2), Flt_s => fp(0x50, 1), Fle_s => fp(0x50, 0),
        Feq_d => fp(0x51, 2), Flt_d => fp(0x51, 1), Fle_d => fp(0x51, 0),
        Flh => i(0x07, 1), Fsh => s(0x27, 1), Fmv_x_h => unary(0x72, 0), Fmv_h_x => unary(0x7a, 0),
        Fcvt_s_h => rounded_unary(0x20, 2), Fcvt_h_s => rounded_unary(0x22, 0),
        Fcvt_d_h => rounded_unary(0x21, 2), Fcvt_h_d => rounded_unary(0x22, 1),
        Add_uw => r(0x3b, 0, 0x04), Slli_uw => (Form::Shift, 0x1b | 1 << 12 | 0x04 << 25),
        Sh1add => r(0x33, 2, 0x10), Sh2add => r(0x33, 4, 0x10), Sh3add => r(0x33, 6, 0x10),
        Sh1add_uw => r(0x3b, 2, 0x10), Sh2add_uw => r(0x3b, 4, 0x10), Sh3add_uw => r(0x3b, 6, 0x10),
        Andn => r(0x33, 7, 0x20), Orn => r(0x33, 6, 0x20), Xnor => r(0x33, 4, 0x20),
        Clz => bits(0x13, 1, 0x600), Ctz => bits(0x13, 1, 0x601), Cpop => bits(0x13, 1, 0x602),
        Clzw => bits(0x1b, 1, 0x600), Ctzw => bits(0x1b, 1, 0x601), Cpopw => bits(0x1b, 1, 0x602),
        Sext_b => bits(0x13, 1, 0x604), Sext_h => bits(0x13, 1, 0x605), Zext_h => bits(0x3b, 4, 0x080),
        Min => r(0x33, 4, 0x05), Minu => r(0x33, 5, 0x05), Max => r(0x33, 6, 0x05), Maxu => r(0x33, 7, 0x05),
        Rol => r(0x33, 1, 0x30), Ror => r(0x33, 5, 0x30), Rolw => r(0x3b, 1, 0x30), Rorw => r(0x3b, 5, 0x30),
        Rori => shift(5, 0x30), Roriw => shift_word(5, 0x30),
        Orc_b => bits(0x13, 5, 0x287), Rev8 => bits(0x13, 5, 0x6b8),
        Clmul => r(0x33, 1, 0x05), Clmulr => r(0x33, 2, 0x05), Clmulh => r(0x33, 3, 0x05),
        Bclr => r(0x33, 1, 0x24), Bext => r(0x33, 5, 0x24), Binv => r(0x33, 1, 0x34), Bset => r(0x33, 1, 0x14),
        Bclri => shift(1, 0x24), Bexti => shift(5, 0x24), Binvi => shift(1, 0x34), Bseti => shift(1, 0x14),
        Cbo_clean => block(1), Cbo_flush => block(2), Cbo_zero => block(4),
        Illegal => (Form::Illegal, 0),
    }
}
