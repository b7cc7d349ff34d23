//! Floating point.
//!
//! The soft-float helper defines every result and every flag. Fast paths of host instructions avoid
//! the helper. They are taken only if their outcome is known to be the same, flags included. That
//! must be known without the host's own flags, since Cranelift deletes and moves operations
//! together with their flags:
//!
//! - **Arithmetic and rounding conversions**: rounding to nearest even, the host's mode; the
//!   inexact flag is already raised; operands are properly boxed; and the result is *ordinary*:
//!   normal, finite, and its exponent is not the least. An invalid operation gives a NaN, a
//!   division by zero or an overflow an infinity. An underflow gives a subnormal, a zero, or at
//!   most the least normal number, because tininess is detected after rounding. So an ordinary
//!   result has raised no flag, or only inexact, which changes nothing.
//! - **Truncation to an integer**: inexact is already raised, the operand in range.
//! - **Comparison, minimum, maximum**: neither operand a NaN.
//! - **Moves, sign injection, exact conversions from integers**: always.
//!
//! The host's operation precedes the check, so that one branch decides.
//!
//! # Safety
//!
//! [`Emitter::call_helper`] passes the helper's arguments: the running hart, and an instruction
//! that its block keeps.
#![allow(unsafe_code)]

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{BlockArg, InstBuilder, MemFlagsData, Type, Value, types};

use super::emitter::{Emitter, HOST};
use super::field;
use crate::hart::Hart;
use crate::riscv::fp;
use crate::riscv::inst::{Inst, Op};

/// Rounding-mode fields: to nearest even, to zero, as `frm` says.
const RNE: u8 = 0;
const RTZ: u8 = 1;
const DYNAMIC: u8 = 7;
/// The greatest rounding mode that exists.
const LAST_MODE: u8 = 4;
/// The inexact flag.
const NX: i64 = 1;
const BOX: i64 = 0xffff_ffff_0000_0000_u64 as i64;
const HALF_BOX: i64 = 0xffff_ffff_ffff_0000_u64 as i64;
const CANONICAL_NAN: i64 = 0x7fc0_0000;

/// A fast path: its result, and whether that result is the right one.
struct Fast {
    result: Value,
    right: Value,
}

impl Emitter<'_> {
    pub(super) fn float(&mut self, index: u32, inst: &Inst) {
        if self.float_move(inst) || self.exact_from_integer(inst) {
            return;
        }
        // An instruction that can trap or call needs the hart up to date. The fast path's operands
        // are loaded before the paths part.
        self.flush();
        match self.fast_path(inst) {
            Some(fast) => {
                let (slow, done) = (self.builder.create_block(), self.builder.create_block());
                self.builder.set_cold_block(slow);
                let result = self.builder.append_block_param(done, types::I64);
                self.builder.ins().brif(fast.right, done, &[BlockArg::Value(fast.result)], slow, &[]);
                self.builder.switch_to_block(slow);
                let helped = self.help(index, inst);
                self.builder.ins().jump(done, &[BlockArg::Value(helped)]);
                self.builder.switch_to_block(done);
                self.set_float_result(inst, result);
            }
            None => {
                let result = self.help(index, inst);
                self.set_float_result(inst, result);
            }
        }
    }

    /// Calls the helper; returns the value that it put into the destination.
    fn help(&mut self, index: u32, inst: &Inst) -> Value {
        self.may_fault(index, |this| this.call_helper(float_helper as *const () as usize, inst, &[]));
        let file = if writes_integer(inst.op) { &self.x } else { &self.f };
        let offset = file.offset_of(inst.rd);
        self.builder.ins().load(types::I64, HOST, self.hart, offset)
    }

    fn set_float_result(&mut self, inst: &Inst, bits: Value) {
        if writes_integer(inst.op) { self.set_x(inst.rd, bits) } else { self.set_f(inst.rd, bits) }
    }

    /// Operations that only move bits.
    fn float_move(&mut self, inst: &Inst) -> bool {
        use Op::*;
        match inst.op {
            Fmv_x_d => {
                let bits = self.f(inst.rs1);
                self.set_x(inst.rd, bits);
            }
            Fmv_x_w => {
                let bits = self.f(inst.rs1);
                let word = self.builder.ins().ireduce(types::I32, bits);
                let value = self.builder.ins().sextend(types::I64, word);
                self.set_x(inst.rd, value);
            }
            Fmv_d_x => {
                let bits = self.x(inst.rs1);
                self.set_f(inst.rd, bits);
            }
            Fmv_x_h => {
                let bits = self.f(inst.rs1);
                let half = self.builder.ins().ireduce(types::I16, bits);
                let value = self.builder.ins().sextend(types::I64, half);
                self.set_x(inst.rd, value);
            }
            Fmv_h_x => {
                let bits = self.x(inst.rs1);
                let boxed = self.builder.ins().bor_imm_s(bits, HALF_BOX);
                self.set_f(inst.rd, boxed);
            }
            Fmv_w_x => {
                let bits = self.x(inst.rs1);
                let boxed = self.builder.ins().bor_imm_s(bits, BOX);
                self.set_f(inst.rd, boxed);
            }
            Fsgnj_d | Fsgnjn_d | Fsgnjx_d => {
                let (a, b) = (self.f(inst.rs1), self.f(inst.rs2));
                let bits = self.sign_injected(inst.op, a, b, 63);
                self.set_f(inst.rd, bits);
            }
            Fsgnj_s | Fsgnjn_s | Fsgnjx_s => {
                let (a, b) = (self.single(inst.rs1), self.single(inst.rs2));
                let bits = self.sign_injected(inst.op, a, b, 31);
                let boxed = self.builder.ins().bor_imm_s(bits, BOX);
                self.set_f(inst.rd, boxed);
            }
            _ => return false,
        }
        true
    }

    /// A single's bits, with garbage above them; the canonical NaN if it is not boxed.
    fn single(&mut self, register: u8) -> Value {
        let bits = self.f(register);
        let boxed = self.is_boxed(bits);
        let nan = self.constant(CANONICAL_NAN as u64);
        self.builder.ins().select(boxed, bits, nan)
    }

    fn is_boxed(&mut self, bits: Value) -> Value {
        let high = self.builder.ins().ushr_imm_u(bits, 32);
        self.builder.ins().icmp_imm_u(IntCC::Equal, high, 0xffff_ffff)
    }

    fn sign_injected(&mut self, op: Op, a: Value, b: Value, sign_bit: u32) -> Value {
        use Op::*;
        let sign = 1i64 << sign_bit;
        let b = self.builder.ins().band_imm_s(b, sign);
        match op {
            Fsgnjx_s | Fsgnjx_d => self.builder.ins().bxor(a, b),
            _ => {
                let magnitude = self.builder.ins().band_imm_s(a, !sign);
                let b = if matches!(op, Fsgnjn_s | Fsgnjn_d) { self.builder.ins().bxor_imm_s(b, sign) } else { b };
                self.builder.ins().bor(magnitude, b)
            }
        }
    }

    /// A word as a double: no rounding, no flag. An invalid mode still traps.
    fn exact_from_integer(&mut self, inst: &Inst) -> bool {
        if inst.rm > LAST_MODE || !matches!(inst.op, Op::Fcvt_d_w | Op::Fcvt_d_wu) {
            return false;
        }
        let word = self.word(inst.rs1);
        let signed = inst.op == Op::Fcvt_d_w;
        let ins = self.builder.ins();
        let wide = if signed { ins.sextend(types::I64, word) } else { ins.uextend(types::I64, word) };
        let value = self.builder.ins().fcvt_from_sint(types::F64, wide);
        let bits = self.bits_of(value);
        self.set_f(inst.rd, bits);
        true
    }

    fn fast_path(&mut self, inst: &Inst) -> Option<Fast> {
        use Op::*;
        match inst.op {
            Fadd_s | Fsub_s | Fmul_s | Fdiv_s | Fsqrt_s => self.arithmetic(inst, types::F32),
            Fadd_d | Fsub_d | Fmul_d | Fdiv_d | Fsqrt_d => self.arithmetic(inst, types::F64),
            Fmadd_s | Fmsub_s | Fnmsub_s | Fnmadd_s => self.fused(inst, types::F32),
            Fmadd_d | Fmsub_d | Fnmsub_d | Fnmadd_d => self.fused(inst, types::F64),
            Fcvt_s_l | Fcvt_s_w | Fcvt_s_wu | Fcvt_d_l => self.rounded_from_integer(inst),
            Fcvt_s_d | Fcvt_d_s => self.between_formats(inst),
            Fcvt_w_s | Fcvt_wu_s | Fcvt_l_s | Fcvt_lu_s => self.truncated(inst, types::F32),
            Fcvt_w_d | Fcvt_wu_d | Fcvt_l_d | Fcvt_lu_d => self.truncated(inst, types::F64),
            Feq_s | Flt_s | Fle_s => Some(self.comparison(inst, types::F32)),
            Feq_d | Flt_d | Fle_d => Some(self.comparison(inst, types::F64)),
            Fmin_s | Fmax_s => Some(self.extremum(inst, types::F32)),
            Fmin_d | Fmax_d => Some(self.extremum(inst, types::F64)),
            _ => None,
        }
    }

    fn arithmetic(&mut self, inst: &Inst, format: Type) -> Option<Fast> {
        use Op::*;
        let guard = self.nearest_and_inexact(inst.rm)?;
        let unary = matches!(inst.op, Fsqrt_s | Fsqrt_d);
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2][..if unary { 1 } else { 2 }], format);
        let ins = self.builder.ins();
        let value = match inst.op {
            Fadd_s | Fadd_d => ins.fadd(values[0], values[1]),
            Fsub_s | Fsub_d => ins.fsub(values[0], values[1]),
            Fmul_s | Fmul_d => ins.fmul(values[0], values[1]),
            Fdiv_s | Fdiv_d => ins.fdiv(values[0], values[1]),
            _ => ins.sqrt(values[0]),
        };
        Some(self.if_ordinary(value, guard, boxed))
    }

    fn fused(&mut self, inst: &Inst, format: Type) -> Option<Fast> {
        use Op::*;
        if !self.environment.has_fma {
            return None;
        }
        let guard = self.nearest_and_inexact(inst.rm)?;
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2, inst.rs3], format);
        let (mut a, b, mut c) = (values[0], values[1], values[2]);
        if matches!(inst.op, Fnmsub_s | Fnmsub_d | Fnmadd_s | Fnmadd_d) {
            a = self.builder.ins().fneg(a);
        }
        if matches!(inst.op, Fmsub_s | Fmsub_d | Fnmadd_s | Fnmadd_d) {
            c = self.builder.ins().fneg(c);
        }
        let value = self.builder.ins().fma(a, b, c);
        Some(self.if_ordinary(value, guard, boxed))
    }

    fn rounded_from_integer(&mut self, inst: &Inst) -> Option<Fast> {
        use Op::*;
        let right = self.nearest_and_inexact(inst.rm)?;
        let x = self.x(inst.rs1);
        let wide = match inst.op {
            Fcvt_s_w => {
                let word = self.word(inst.rs1);
                self.builder.ins().sextend(types::I64, word)
            }
            Fcvt_s_wu => {
                let word = self.word(inst.rs1);
                self.builder.ins().uextend(types::I64, word)
            }
            _ => x,
        };
        let format = if inst.op == Fcvt_d_l { types::F64 } else { types::F32 };
        let value = self.builder.ins().fcvt_from_sint(format, wide);
        Some(Fast { result: self.bits_of(value), right })
    }

    fn between_formats(&mut self, inst: &Inst) -> Option<Fast> {
        let narrows = inst.op == Op::Fcvt_s_d;
        // Widening is exact, so any valid mode will do.
        let guard = match inst.rm {
            0..=LAST_MODE if !narrows => self.builder.ins().iconst(types::I8, 1),
            rm => self.nearest_and_inexact(rm)?,
        };
        let (values, boxed) = self.operands(&[inst.rs1], if narrows { types::F64 } else { types::F32 });
        let ins = self.builder.ins();
        let value = if narrows { ins.fdemote(types::F32, values[0]) } else { ins.fpromote(types::F64, values[0]) };
        Some(self.if_ordinary(value, guard, boxed))
    }

    fn truncated(&mut self, inst: &Inst, format: Type) -> Option<Fast> {
        use Op::*;
        if inst.rm != RTZ {
            return None;
        }
        let flags = self.builder.ins().load(types::I8, HOST, self.hart, field::FFLAGS);
        let guard = self.builder.ins().band_imm_u(flags, NX);
        let (values, boxed) = self.operands(&[inst.rs1], format);
        let value = values[0];
        let (signed, limit) = match inst.op {
            Fcvt_w_s | Fcvt_w_d => (true, 1u64 << 31),
            Fcvt_wu_s | Fcvt_wu_d => (false, 1 << 32),
            Fcvt_l_s | Fcvt_l_d => (true, 1 << 63),
            _ => (false, 1 << 63),
        };
        let limit = self.float_constant(format, limit);
        let below = if signed { self.builder.ins().fabs(value) } else { value };
        let mut right = self.builder.ins().fcmp(FloatCC::LessThan, below, limit);
        if !signed {
            let zero = self.float_constant(format, 0);
            let positive = self.builder.ins().fcmp(FloatCC::GreaterThanOrEqual, value, zero);
            right = self.builder.ins().band(right, positive);
        }
        right = self.builder.ins().band(right, guard);
        let right = self.both(right, boxed);
        let wide = self.builder.ins().fcvt_to_sint_sat(types::I64, value);
        let result = if matches!(inst.op, Fcvt_wu_s | Fcvt_wu_d) {
            let word = self.builder.ins().ireduce(types::I32, wide);
            self.builder.ins().sextend(types::I64, word)
        } else {
            wide
        };
        Some(Fast { result, right })
    }

    fn comparison(&mut self, inst: &Inst, format: Type) -> Fast {
        use Op::*;
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2], format);
        let relation = match inst.op {
            Feq_s | Feq_d => FloatCC::Equal,
            Flt_s | Flt_d => FloatCC::LessThan,
            _ => FloatCC::LessThanOrEqual,
        };
        let holds = self.builder.ins().fcmp(relation, values[0], values[1]);
        let result = self.builder.ins().uextend(types::I64, holds);
        let ordered = self.builder.ins().fcmp(FloatCC::Ordered, values[0], values[1]);
        Fast { result, right: self.both(ordered, boxed) }
    }

    /// Equal operands differ at most in the sign of zero. So the minimum is the union of their
    /// bits, the maximum their intersection.
    fn extremum(&mut self, inst: &Inst, format: Type) -> Fast {
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2], format);
        let (a, b) = (self.f(inst.rs1), self.f(inst.rs2));
        let minimum = matches!(inst.op, Op::Fmin_s | Op::Fmin_d);
        let first = if minimum { FloatCC::LessThan } else { FloatCC::GreaterThan };
        let ins = self.builder.ins();
        let if_equal = if minimum { ins.bor(a, b) } else { ins.band(a, b) };
        let equal = self.builder.ins().fcmp(FloatCC::Equal, values[0], values[1]);
        let first = self.builder.ins().fcmp(first, values[0], values[1]);
        let unequal = self.builder.ins().select(first, a, b);
        let result = self.builder.ins().select(equal, if_equal, unequal);
        let ordered = self.builder.ins().fcmp(FloatCC::Ordered, values[0], values[1]);
        Fast { result, right: self.both(ordered, boxed) }
    }

    /// Whether the mode is to nearest even and inexact is raised, as 0 or not 0; `None` if the mode
    /// cannot be to nearest even.
    fn nearest_and_inexact(&mut self, rm: u8) -> Option<Value> {
        match rm {
            RNE => {
                let flags = self.builder.ins().load(types::I8, HOST, self.hart, field::FFLAGS);
                Some(self.builder.ins().band_imm_u(flags, NX))
            }
            DYNAMIC => {
                // `frm` is the byte after `fflags`.
                let both = self.builder.ins().load(types::I16, HOST, self.hart, field::FFLAGS);
                let both = self.builder.ins().band_imm_u(both, 0xff00 | NX);
                Some(self.builder.ins().icmp_imm_u(IntCC::Equal, both, i64::from(RNE) << 8 | NX))
            }
            _ => None,
        }
    }

    /// Operands in the host's format; for singles also whether all are boxed.
    fn operands(&mut self, registers: &[u8], format: Type) -> (Vec<Value>, Option<Value>) {
        let bits: Vec<Value> = registers.iter().map(|&register| self.f(register)).collect();
        if format == types::F64 {
            let values = bits.iter().map(|&bits| self.bitcast(types::F64, bits)).collect();
            return (values, None);
        }
        let all = bits[1..].iter().fold(bits[0], |all, &bits| self.builder.ins().band(all, bits));
        let boxed = self.is_boxed(all);
        let values = bits
            .iter()
            .map(|&bits| {
                let low = self.builder.ins().ireduce(types::I32, bits);
                self.bitcast(types::F32, low)
            })
            .collect();
        (values, Some(boxed))
    }

    /// A fast path that is right if the value is ordinary and the other conditions hold.
    fn if_ordinary(&mut self, value: Value, guard: Value, boxed: Option<Value>) -> Fast {
        let double = self.builder.func.dfg.value_type(value) == types::F64;
        let result = self.bits_of(value);
        let (shift, greatest) = if double { (52, 0x7ff) } else { (23, 0xff) };
        let exponent = self.builder.ins().ushr_imm_u(result, shift);
        let exponent = self.builder.ins().band_imm_u(exponent, greatest);
        // 2 to greatest - 1.
        let from_two = self.builder.ins().iadd_imm_s(exponent, -2);
        let ordinary = self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, from_two, greatest - 2);
        let right = self.builder.ins().band(ordinary, guard);
        Fast { result, right: self.both(right, boxed) }
    }

    fn both(&mut self, right: Value, boxed: Option<Value>) -> Value {
        match boxed {
            Some(boxed) => self.builder.ins().band(right, boxed),
            None => right,
        }
    }

    /// A value in a register's format.
    fn bits_of(&mut self, value: Value) -> Value {
        if self.builder.func.dfg.value_type(value) == types::F64 {
            return self.bitcast(types::I64, value);
        }
        let bits = self.bitcast(types::I32, value);
        let wide = self.builder.ins().uextend(types::I64, bits);
        self.builder.ins().bor_imm_s(wide, BOX)
    }

    fn bitcast(&mut self, to: Type, value: Value) -> Value {
        self.builder.ins().bitcast(to, MemFlagsData::new(), value)
    }

    fn float_constant(&mut self, format: Type, value: u64) -> Value {
        if format == types::F64 {
            self.builder.ins().f64const(value as f64)
        } else {
            self.builder.ins().f32const(value as f32)
        }
    }
}

/// Whether the destination is an integer register.
fn writes_integer(op: Op) -> bool {
    use Op::*;
    matches!(
        op,
        Fcvt_w_s
            | Fcvt_wu_s
            | Fcvt_l_s
            | Fcvt_lu_s
            | Fcvt_w_d
            | Fcvt_wu_d
            | Fcvt_l_d
            | Fcvt_lu_d
            | Fmv_x_w
            | Fmv_x_d
            | Feq_s
            | Flt_s
            | Fle_s
            | Feq_d
            | Flt_d
            | Fle_d
            | Fclass_s
            | Fclass_d
    )
}

/// Executes an operation of F, D or Zfhmin; 0 if its rounding mode is invalid.
unsafe extern "C" fn float_helper(hart: *mut Hart, inst: *const Inst) -> u64 {
    // SAFETY: see the module's head; compiled code holds no reference to the
    // hart while it waits.
    let (hart, inst) = unsafe { (&mut *hart, &*inst) };
    u64::from(fp::exec(inst, hart))
}
