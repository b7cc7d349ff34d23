//! The operations of random code, and the generator's knowledge of each.

use crate::riscv::decode::decode;
use crate::riscv::encode::encode;
use crate::riscv::inst::{Inst, Op};

/// All operations; each occurs in programs as often as it stands here.
#[rustfmt::skip]
pub const OPS: &[Op] = {
    use Op::*;
    &[
        Lui, Auipc, Jal, Jalr, Beq, Bne, Blt, Bge, Bltu, Bgeu,
        Lb, Lh, Lw, Ld, Lbu, Lhu, Lwu, Sb, Sh, Sw, Sd,
        Addi, Slti, Sltiu, Xori, Ori, Andi, Slli, Srli, Srai,
        Add, Sub, Sll, Slt, Sltu, Xor, Srl, Sra, Or, And,
        Addiw, Slliw, Srliw, Sraiw, Addw, Subw, Sllw, Srlw, Sraw,
        Fence, Fence_i, Csrrw, Csrrs, Csrrc, Csrrwi, Csrrsi, Csrrci,
        Mul, Mulh, Mulhsu, Mulhu, Div, Divu, Rem, Remu, Mulw, Divw, Divuw, Remw, Remuw,
        Lr_w, Sc_w, Amoswap_w, Amoadd_w, Amoxor_w, Amoand_w, Amoor_w, Amomin_w, Amomax_w, Amominu_w, Amomaxu_w,
        Lr_d, Sc_d, Amoswap_d, Amoadd_d, Amoxor_d, Amoand_d, Amoor_d, Amomin_d, Amomax_d, Amominu_d, Amomaxu_d,
        Flw, Fsw, Fmadd_s, Fmsub_s, Fnmsub_s, Fnmadd_s, Fadd_s, Fsub_s, Fmul_s, Fdiv_s, Fsqrt_s,
        Fsgnj_s, Fsgnjn_s, Fsgnjx_s, Fmin_s, Fmax_s,
        Fcvt_w_s, Fcvt_wu_s, Fcvt_l_s, Fcvt_lu_s, Fcvt_s_w, Fcvt_s_wu, Fcvt_s_l, Fcvt_s_lu,
        Fmv_x_w, Fmv_w_x, Feq_s, Flt_s, Fle_s, Fclass_s,
        Fld, Fsd, Fmadd_d, Fmsub_d, Fnmsub_d, Fnmadd_d, Fadd_d, Fsub_d, Fmul_d, Fdiv_d, Fsqrt_d,
        Fsgnj_d, Fsgnjn_d, Fsgnjx_d, Fmin_d, Fmax_d, Fcvt_s_d, Fcvt_d_s,
        Fcvt_w_d, Fcvt_wu_d, Fcvt_l_d, Fcvt_lu_d, Fcvt_d_w, Fcvt_d_wu, Fcvt_d_l, Fcvt_d_lu,
        Fmv_x_d, Fmv_d_x, Feq_d, Flt_d, Fle_d, Fclass_d,
        Flh, Fsh, Fcvt_s_h, Fcvt_h_s, Fcvt_d_h, Fcvt_h_d, Fmv_x_h, Fmv_h_x,
        Add_uw, Sh1add, Sh2add, Sh3add, Sh1add_uw, Sh2add_uw, Sh3add_uw, Slli_uw,
        Andn, Orn, Xnor, Clz, Clzw, Ctz, Ctzw, Cpop, Cpopw, Max, Maxu, Min, Minu,
        Sext_b, Sext_h, Zext_h, Rol, Rolw, Ror, Rori, Roriw, Rorw, Orc_b, Rev8,
        Clmul, Clmulh, Clmulr, Bclr, Bclri, Bext, Bexti, Binv, Binvi, Bset, Bseti,
        Cbo_clean, Cbo_flush, Cbo_zero,
    ]
};

/// The operands of an operation, as far as a generator must know them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Plain,
    Access,
    Atomic,
    Branch,
    Jal,
    Jalr,
    Csr,
}

pub(super) fn kind(op: Op) -> Kind {
    use Op::*;
    match op {
        Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Sb | Sh | Sw | Sd | Flh | Flw | Fld | Fsh | Fsw | Fsd | Cbo_clean
        | Cbo_flush | Cbo_zero => Kind::Access,
        Beq | Bne | Blt | Bge | Bltu | Bgeu => Kind::Branch,
        Jal => Kind::Jal,
        Jalr => Kind::Jalr,
        Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci => Kind::Csr,
        _ if encode(&blank(op)) & 0x7f == 0x2f => Kind::Atomic,
        _ => Kind::Plain,
    }
}

/// Whether it loads or stores.
pub fn accesses_memory(op: Op) -> bool {
    matches!(kind(op), Kind::Access | Kind::Atomic)
}

/// Whether it is LR, SC or an AMO.
pub fn is_atomic(op: Op) -> bool {
    kind(op) == Kind::Atomic
}

/// Whether the operation has a rounding-mode field, and is illegal with a reserved mode.
pub fn is_rounded(op: Op) -> bool {
    let bits = encode(&Inst { rm: 5, ..blank(op) });
    matches!(bits & 0x7f, 0x43 | 0x47 | 0x4b | 0x4f | 0x53) && decode(bits).op == Op::Illegal
}

/// Whether `rd` is a floating-point register.
pub(super) fn writes_fp(op: Op) -> bool {
    use Op::*;
    let bits = encode(&blank(op));
    let to_integer = bits & 0x7f == 0x53 && matches!(bits >> 27, 0x14 | 0x18 | 0x1c);
    matches!(op, Flh | Flw | Fld) || matches!(bits & 0x7f, 0x43 | 0x47 | 0x4b | 0x4f | 0x53) && !to_integer
}

pub(super) fn blank(op: Op) -> Inst {
    Inst { op, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 4, imm: 0 }
}
