//! A decoded instruction. A compressed one is decoded to its expansion, with its own length.

/// Bytes of a cache block: the aligned memory that one of the `cbo` operations acts on.
pub const BLOCK_BYTES: u64 = 64;

/// Expands `$callback` with the names of all operations.
macro_rules! each_op {
    ($callback:ident) => {
        $callback! {
        // RV64I
        Lui, Auipc, Jal, Jalr,
        Beq, Bne, Blt, Bge, Bltu, Bgeu,
        Lb, Lh, Lw, Ld, Lbu, Lhu, Lwu,
        Sb, Sh, Sw, Sd,
        Addi, Slti, Sltiu, Xori, Ori, Andi, Slli, Srli, Srai,
        Add, Sub, Sll, Slt, Sltu, Xor, Srl, Sra, Or, And,
        Addiw, Slliw, Srliw, Sraiw,
        Addw, Subw, Sllw, Srlw, Sraw,
        Fence, Fence_i, Ecall, Ebreak,
        // Zicsr
        Csrrw, Csrrs, Csrrc, Csrrwi, Csrrsi, Csrrci,
        // M
        Mul, Mulh, Mulhsu, Mulhu, Div, Divu, Rem, Remu,
        Mulw, Divw, Divuw, Remw, Remuw,
        // A
        Lr_w, Sc_w, Amoswap_w, Amoadd_w, Amoxor_w, Amoand_w, Amoor_w,
        Amomin_w, Amomax_w, Amominu_w, Amomaxu_w,
        Lr_d, Sc_d, Amoswap_d, Amoadd_d, Amoxor_d, Amoand_d, Amoor_d,
        Amomin_d, Amomax_d, Amominu_d, Amomaxu_d,
        // F
        Flw, Fsw, Fmadd_s, Fmsub_s, Fnmsub_s, Fnmadd_s,
        Fadd_s, Fsub_s, Fmul_s, Fdiv_s, Fsqrt_s,
        Fsgnj_s, Fsgnjn_s, Fsgnjx_s, Fmin_s, Fmax_s,
        Fcvt_w_s, Fcvt_wu_s, Fcvt_l_s, Fcvt_lu_s,
        Fcvt_s_w, Fcvt_s_wu, Fcvt_s_l, Fcvt_s_lu,
        Fmv_x_w, Fmv_w_x, Feq_s, Flt_s, Fle_s, Fclass_s,
        // D
        Fld, Fsd, Fmadd_d, Fmsub_d, Fnmsub_d, Fnmadd_d,
        Fadd_d, Fsub_d, Fmul_d, Fdiv_d, Fsqrt_d,
        Fsgnj_d, Fsgnjn_d, Fsgnjx_d, Fmin_d, Fmax_d,
        Fcvt_s_d, Fcvt_d_s,
        Fcvt_w_d, Fcvt_wu_d, Fcvt_l_d, Fcvt_lu_d,
        Fcvt_d_w, Fcvt_d_wu, Fcvt_d_l, Fcvt_d_lu,
        Fmv_x_d, Fmv_d_x, Feq_d, Flt_d, Fle_d, Fclass_d,
        // Zfhmin
        Flh, Fsh, Fcvt_s_h, Fcvt_h_s, Fcvt_d_h, Fcvt_h_d, Fmv_x_h, Fmv_h_x,
        // Zba
        Add_uw, Sh1add, Sh2add, Sh3add, Sh1add_uw, Sh2add_uw, Sh3add_uw, Slli_uw,
        // Zbb
        Andn, Orn, Xnor, Clz, Clzw, Ctz, Ctzw, Cpop, Cpopw, Max, Maxu, Min, Minu,
        Sext_b, Sext_h, Zext_h, Rol, Rolw, Ror, Rori, Roriw, Rorw, Orc_b, Rev8,
        // Zbc
        Clmul, Clmulh, Clmulr,
        // Zbs
        Bclr, Bclri, Bext, Bexti, Binv, Binvi, Bset, Bseti,
        // Zicbom and Zicboz, as far as Linux lets programs use them
        Cbo_clean, Cbo_flush, Cbo_zero,
        // No instruction of these; its bits are in `imm`.
        Illegal,
            }
    };
}
pub(crate) use each_op;

macro_rules! define_op {
    ($($op:ident,)*) => {
        /// An instruction's operation. Names are the assembler's with `_` for `.`. `Illegal` is no
        /// instruction of RV64GC; its bits are in `imm`.
        #[allow(non_camel_case_types, missing_docs)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Op {
            $($op,)*
        }
    };
}
each_op!(define_op);

impl Op {
    /// Whether it may write memory.
    pub fn stores(self) -> bool {
        self.stored_bytes() != 0
    }

    /// Whether it has a third source, a rounding mode or `aq`/`rl` bits; it has no immediate then.
    pub fn has_rs3_or_rm(self) -> bool {
        let is_in = |first: Op, last: Op| (first as u8..=last as u8).contains(&(self as u8));
        is_in(Op::Lr_w, Op::Amomaxu_d)
            || is_in(Op::Fmadd_s, Op::Fclass_s)
            || is_in(Op::Fmadd_d, Op::Fclass_d)
            || is_in(Op::Fcvt_s_h, Op::Fmv_h_x)
    }

    /// Whether it may read the count of instructions.
    pub fn reads_counters(self) -> bool {
        use Op::*;
        matches!(self, Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci)
    }

    /// How many bytes of memory it writes at most; 0 if it writes none.
    #[rustfmt::skip]
    pub fn stored_bytes(self) -> u64 {
        use Op::*;
        match self {
            Sb => 1,
            Sh | Fsh => 2,
            Sw | Fsw | Sc_w | Amoswap_w | Amoadd_w | Amoxor_w | Amoand_w | Amoor_w
                | Amomin_w | Amomax_w | Amominu_w | Amomaxu_w => 4,
            Sd | Fsd | Sc_d | Amoswap_d | Amoadd_d | Amoxor_d | Amoand_d | Amoor_d
                | Amomin_d | Amomax_d | Amominu_d | Amomaxu_d => 8,
            Cbo_zero => BLOCK_BYTES,
            _ => 0,
        }
    }
}

/// One instruction. Fields that an operation does not have are 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Inst {
    /// The operation.
    pub op: Op,
    /// Destination register, integer or floating-point as the operation says.
    pub rd: u8,
    /// First source; the 5-bit immediate of `csrr?i`.
    pub rs1: u8,
    /// Second source.
    pub rs2: u8,
    /// Third source of the fused operations.
    pub rs3: u8,
    /// Rounding mode field (7: dynamic); `aq`/`rl` bits of the atomics.
    pub rm: u8,
    /// Length in bytes: 2 or 4.
    pub len: u8,
    /// Immediate, sign-extended: the displacement of a jump, branch, load or
    /// store; the shifted value of `lui` and `auipc`; the CSR number.
    pub imm: i32,
}

impl Inst {
    /// The address of the first byte that it loads or stores, if `base` is the value of `rs1`.
    #[inline]
    pub fn address(&self, base: u64) -> u64 {
        match self.op {
            Op::Cbo_clean | Op::Cbo_flush | Op::Cbo_zero => base & !(BLOCK_BYTES - 1),
            _ => base.wrapping_add(self.imm as i64 as u64),
        }
    }
}
