//! The text of the instructions that the disassembler of the listings does not know.

use super::inst::{Inst, Op};

/// The assembler's name of an operation.
pub fn mnemonic(op: Op) -> String {
    format!("{op:?}").to_lowercase().replace('_', ".")
}

const X: [&str; 32] = [
    "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "s2",
    "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];
const F: [&str; 32] = [
    "ft0", "ft1", "ft2", "ft3", "ft4", "ft5", "ft6", "ft7", "fs0", "fs1", "fa0", "fa1", "fa2", "fa3", "fa4", "fa5",
    "fa6", "fa7", "fs2", "fs3", "fs4", "fs5", "fs6", "fs7", "fs8", "fs9", "fs10", "fs11", "ft8", "ft9", "ft10", "ft11",
];
const MODES: [&str; 5] = [", rne", ", rtz", ", rdn", ", rup", ", rmm"];

/// Mnemonic and operands of an instruction of Zba, Zbb, Zbc, Zbs, Zfhmin, Zicbom or Zicboz; `None`
/// for any other.
pub fn text(inst: &Inst) -> Option<String> {
    use Op::*;
    let (x, f) = (|register: u8| X[usize::from(register & 31)], |register: u8| F[usize::from(register & 31)]);
    let Inst { rd, rs1, rs2, imm, .. } = *inst;
    let operands = match inst.op {
        Flh => format!("{}, {imm}({})", f(rd), x(rs1)),
        Fsh => format!("{}, {imm}({})", f(rs2), x(rs1)),
        Fcvt_s_h | Fcvt_d_h => format!("{}, {}", f(rd), f(rs1)),
        Fcvt_h_s | Fcvt_h_d => {
            format!("{}, {}{}", f(rd), f(rs1), MODES.get(usize::from(inst.rm)).unwrap_or(&""))
        }
        Fmv_x_h => format!("{}, {}", x(rd), f(rs1)),
        Fmv_h_x => format!("{}, {}", f(rd), x(rs1)),
        Add_uw | Sh1add | Sh2add | Sh3add | Sh1add_uw | Sh2add_uw | Sh3add_uw | Andn | Orn | Xnor | Max | Maxu
        | Min | Minu | Rol | Rolw | Ror | Rorw | Clmul | Clmulh | Clmulr | Bclr | Bext | Binv | Bset => {
            format!("{}, {}, {}", x(rd), x(rs1), x(rs2))
        }
        Clz | Clzw | Ctz | Ctzw | Cpop | Cpopw | Sext_b | Sext_h | Zext_h | Orc_b | Rev8 => {
            format!("{}, {}", x(rd), x(rs1))
        }
        Slli_uw | Rori | Roriw | Bclri | Bexti | Binvi | Bseti => format!("{}, {}, {imm}", x(rd), x(rs1)),
        Cbo_clean | Cbo_flush | Cbo_zero => format!("({})", x(rs1)),
        _ => return None,
    };
    Some(format!("{} {operands}", mnemonic(inst.op)))
}

#[cfg(test)]
mod tests {
    use super::super::decode::decode;
    use super::*;

    /// Words and their text from another disassembler.
    #[test]
    fn known_texts() {
        let cases = [
            (0x2072_a333, "sh1add t1, t0, t2"),
            (0x6002_9313, "clz t1, t0"),
            (0x0005_1007, "flh ft0, 0(a0)"),
            (0xfea5_9f27, "fsh fa0, -2(a1)"),
            (0x0045_200f, "cbo.zero (a0)"),
            (0x0bf2_931b, "slli.uw t1, t0, 63"),
            (0x4405_75d3, "fcvt.h.s fa1, fa0"),
            (0x4415_15d3, "fcvt.h.d fa1, fa0, rtz"),
            (0xe405_0553, "fmv.x.h a0, fa0"),
        ];
        for (bits, expected) in cases {
            assert_eq!(text(&decode(bits)).as_deref(), Some(expected), "{bits:#x}");
        }
        assert_eq!(text(&decode(0x13)), None);
    }
}
