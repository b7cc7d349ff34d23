//! The operations of the F, D and Zfhmin extensions, bit for bit, flags included.
//!
//! Narrower formats are NaN-boxed in the registers: a single reads as the canonical NaN if its upper
//! half is not all ones, and likewise a half. NaN results are the canonical one, unless the operation only moves bits.

pub mod format;
#[cfg_attr(not(target_arch = "x86_64"), path = "no_host.rs")]
pub mod host;
pub mod soft;

mod compare;

use self::compare::Relation;
use self::format::{DOUBLE, Format, HALF, Rounded, Rounding, SINGLE};
use self::soft::Int;
use super::inst::{Inst, Op};
use crate::hart::Hart;

const BOX: u64 = 0xffff_ffff_0000_0000;
/// The bits above a half in a register.
pub(super) const HALF_BOX: u64 = 0xffff_ffff_ffff_0000;

/// A single in a register's format.
#[inline]
pub fn boxed(bits: u32) -> u64 {
    BOX | u64::from(bits)
}

#[inline]
fn read(hart: &Hart, format: Format, register: u8) -> u64 {
    let (bits, above) = (hart.f[usize::from(register & 31)], above(format));
    if bits & above == above { bits & !above } else { format.canonical_nan() }
}

/// The bits above a number of the format in a register.
#[inline]
fn above(format: Format) -> u64 {
    match format {
        DOUBLE => 0,
        SINGLE => BOX,
        _ => HALF_BOX,
    }
}

#[inline]
fn write(hart: &mut Hart, format: Format, register: u8, bits: u64) {
    hart.f[usize::from(register & 31)] = above(format) | bits;
}

/// Executes an operation on floating-point registers, all but the loads and stores. It changes
/// `f[rd]` or `x[rd]` and `fflags`, never `pc`. `false`: the rounding mode is invalid, and nothing
/// has changed. Compiled code may call it too.
pub extern "C" fn exec(inst: &Inst, hart: &mut Hart) -> bool {
    let Some(rounding) = Rounding::resolve(inst.rm, hart.frm) else {
        return false;
    };
    use Op::*;
    match inst.op {
        Fadd_s => arithmetic(inst, hart, SINGLE, |a, b| add(SINGLE, a, b, rounding)),
        Fadd_d => arithmetic(inst, hart, DOUBLE, |a, b| add(DOUBLE, a, b, rounding)),
        Fsub_s => arithmetic(inst, hart, SINGLE, |a, b| sub(SINGLE, a, b, rounding)),
        Fsub_d => arithmetic(inst, hart, DOUBLE, |a, b| sub(DOUBLE, a, b, rounding)),
        Fmul_s => arithmetic(inst, hart, SINGLE, |a, b| mul(SINGLE, a, b, rounding)),
        Fmul_d => arithmetic(inst, hart, DOUBLE, |a, b| mul(DOUBLE, a, b, rounding)),
        Fdiv_s => arithmetic(inst, hart, SINGLE, |a, b| div(SINGLE, a, b, rounding)),
        Fdiv_d => arithmetic(inst, hart, DOUBLE, |a, b| div(DOUBLE, a, b, rounding)),
        Fsqrt_s => arithmetic(inst, hart, SINGLE, |a, _| sqrt(SINGLE, a, rounding)),
        Fsqrt_d => arithmetic(inst, hart, DOUBLE, |a, _| sqrt(DOUBLE, a, rounding)),
        Fmadd_s => multiply_add(inst, hart, SINGLE, rounding, false, false),
        Fmadd_d => multiply_add(inst, hart, DOUBLE, rounding, false, false),
        Fmsub_s => multiply_add(inst, hart, SINGLE, rounding, false, true),
        Fmsub_d => multiply_add(inst, hart, DOUBLE, rounding, false, true),
        Fnmsub_s => multiply_add(inst, hart, SINGLE, rounding, true, false),
        Fnmsub_d => multiply_add(inst, hart, DOUBLE, rounding, true, false),
        Fnmadd_s => multiply_add(inst, hart, SINGLE, rounding, true, true),
        Fnmadd_d => multiply_add(inst, hart, DOUBLE, rounding, true, true),

        Fsgnj_s => arithmetic(inst, hart, SINGLE, |a, b| sign_inject(SINGLE, a, b)),
        Fsgnj_d => arithmetic(inst, hart, DOUBLE, |a, b| sign_inject(DOUBLE, a, b)),
        Fsgnjn_s => arithmetic(inst, hart, SINGLE, |a, b| sign_inject(SINGLE, a, !b)),
        Fsgnjn_d => arithmetic(inst, hart, DOUBLE, |a, b| sign_inject(DOUBLE, a, !b)),
        Fsgnjx_s => arithmetic(inst, hart, SINGLE, |a, b| sign_inject(SINGLE, a, a ^ b)),
        Fsgnjx_d => arithmetic(inst, hart, DOUBLE, |a, b| sign_inject(DOUBLE, a, a ^ b)),
        Fmin_s => arithmetic(inst, hart, SINGLE, |a, b| compare::min_max(SINGLE, false, a, b)),
        Fmin_d => arithmetic(inst, hart, DOUBLE, |a, b| compare::min_max(DOUBLE, false, a, b)),
        Fmax_s => arithmetic(inst, hart, SINGLE, |a, b| compare::min_max(SINGLE, true, a, b)),
        Fmax_d => arithmetic(inst, hart, DOUBLE, |a, b| compare::min_max(DOUBLE, true, a, b)),

        Fcvt_s_d => convert(inst, hart, DOUBLE, SINGLE, rounding),
        Fcvt_d_s => convert(inst, hart, SINGLE, DOUBLE, rounding),
        Fcvt_s_h => convert(inst, hart, HALF, SINGLE, rounding),
        Fcvt_h_s => convert(inst, hart, SINGLE, HALF, rounding),
        Fcvt_d_h => convert(inst, hart, HALF, DOUBLE, rounding),
        Fcvt_h_d => convert(inst, hart, DOUBLE, HALF, rounding),
        Fcvt_w_s => to_int(inst, hart, SINGLE, Int::W, rounding),
        Fcvt_wu_s => to_int(inst, hart, SINGLE, Int::Wu, rounding),
        Fcvt_l_s => to_int(inst, hart, SINGLE, Int::L, rounding),
        Fcvt_lu_s => to_int(inst, hart, SINGLE, Int::Lu, rounding),
        Fcvt_w_d => to_int(inst, hart, DOUBLE, Int::W, rounding),
        Fcvt_wu_d => to_int(inst, hart, DOUBLE, Int::Wu, rounding),
        Fcvt_l_d => to_int(inst, hart, DOUBLE, Int::L, rounding),
        Fcvt_lu_d => to_int(inst, hart, DOUBLE, Int::Lu, rounding),
        Fcvt_s_w => from_int(inst, hart, SINGLE, Int::W, rounding),
        Fcvt_s_wu => from_int(inst, hart, SINGLE, Int::Wu, rounding),
        Fcvt_s_l => from_int(inst, hart, SINGLE, Int::L, rounding),
        Fcvt_s_lu => from_int(inst, hart, SINGLE, Int::Lu, rounding),
        Fcvt_d_w => from_int(inst, hart, DOUBLE, Int::W, rounding),
        Fcvt_d_wu => from_int(inst, hart, DOUBLE, Int::Wu, rounding),
        Fcvt_d_l => from_int(inst, hart, DOUBLE, Int::L, rounding),
        Fcvt_d_lu => from_int(inst, hart, DOUBLE, Int::Lu, rounding),

        Feq_s => relation(inst, hart, SINGLE, Relation::Equal),
        Feq_d => relation(inst, hart, DOUBLE, Relation::Equal),
        Flt_s => relation(inst, hart, SINGLE, Relation::Less),
        Flt_d => relation(inst, hart, DOUBLE, Relation::Less),
        Fle_s => relation(inst, hart, SINGLE, Relation::LessOrEqual),
        Fle_d => relation(inst, hart, DOUBLE, Relation::LessOrEqual),
        Fclass_s => hart.set_x(inst.rd, compare::classify(SINGLE, read(hart, SINGLE, inst.rs1))),
        Fclass_d => hart.set_x(inst.rd, compare::classify(DOUBLE, read(hart, DOUBLE, inst.rs1))),

        // Moves ignore the boxing.
        Fmv_x_h => hart.set_x(inst.rd, hart.f[usize::from(inst.rs1 & 31)] as i16 as u64),
        Fmv_h_x => write(hart, HALF, inst.rd, hart.x[usize::from(inst.rs1 & 31)] & !HALF_BOX),
        Fmv_x_w => hart.set_x(inst.rd, hart.f[usize::from(inst.rs1 & 31)] as i32 as u64),
        Fmv_x_d => hart.set_x(inst.rd, hart.f[usize::from(inst.rs1 & 31)]),
        Fmv_w_x => write(hart, SINGLE, inst.rd, hart.x[usize::from(inst.rs1 & 31)] & !BOX),
        Fmv_d_x => write(hart, DOUBLE, inst.rd, hart.x[usize::from(inst.rs1 & 31)]),
        _ => return false,
    }
    true
}

/// By the host's arithmetic if the host has the operation, else in integers.
macro_rules! host_or_soft {
    ($($name:ident($($operand:ident),*);)*) => {$(
        #[inline]
        fn $name(format: Format, $($operand: u64,)* rounding: Rounding) -> Rounded {
            host::$name(format, $($operand,)* rounding).unwrap_or_else(|| soft::$name(format, $($operand,)* rounding))
        }
    )*};
}

host_or_soft! {
    add(a, b);
    sub(a, b);
    mul(a, b);
    div(a, b);
    sqrt(a);
    fused(a, b, c);
}

#[inline]
fn finish(inst: &Inst, hart: &mut Hart, format: Format, outcome: Rounded) {
    write(hart, format, inst.rd, outcome.bits);
    hart.fflags |= outcome.flags;
}

#[inline]
fn arithmetic(inst: &Inst, hart: &mut Hart, format: Format, operation: impl FnOnce(u64, u64) -> Rounded) {
    let outcome = operation(read(hart, format, inst.rs1), read(hart, format, inst.rs2));
    finish(inst, hart, format, outcome);
}

fn multiply_add(
    inst: &Inst,
    hart: &mut Hart,
    format: Format,
    rounding: Rounding,
    negate_product: bool,
    negate_addend: bool,
) {
    let a = read(hart, format, inst.rs1) ^ if negate_product { format.sign() } else { 0 };
    let b = read(hart, format, inst.rs2);
    let c = read(hart, format, inst.rs3) ^ if negate_addend { format.sign() } else { 0 };
    finish(inst, hart, format, fused(format, a, b, c, rounding));
}

fn sign_inject(format: Format, magnitude: u64, sign: u64) -> Rounded {
    Rounded::exact(magnitude & (format.sign() - 1) | sign & format.sign())
}

fn convert(inst: &Inst, hart: &mut Hart, from: Format, to: Format, rounding: Rounding) {
    let outcome = soft::convert(from, to, read(hart, from, inst.rs1), rounding);
    finish(inst, hart, to, outcome);
}

fn to_int(inst: &Inst, hart: &mut Hart, format: Format, int: Int, rounding: Rounding) {
    let outcome = soft::to_int(format, read(hart, format, inst.rs1), int, rounding);
    hart.set_x(inst.rd, outcome.bits);
    hart.fflags |= outcome.flags;
}

fn from_int(inst: &Inst, hart: &mut Hart, format: Format, int: Int, rounding: Rounding) {
    let outcome = soft::from_int(format, hart.x[usize::from(inst.rs1 & 31)], int, rounding);
    finish(inst, hart, format, outcome);
}

fn relation(inst: &Inst, hart: &mut Hart, format: Format, relation: Relation) {
    let outcome = compare::holds(format, relation, read(hart, format, inst.rs1), read(hart, format, inst.rs2));
    hart.set_x(inst.rd, outcome.bits);
    hart.fflags |= outcome.flags;
}
