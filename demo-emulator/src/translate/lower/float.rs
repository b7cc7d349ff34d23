//! Floating point.
//!
//! The soft-float helper defines every result and every flag. Fast paths of host instructions avoid
//! the helper. They are taken only if their outcome is known to be the same, flags included. That
//! must be known without the host's own flags, since Cranelift deletes and moves operations
//! together with their flags:
//!
//! - **Arithmetic and rounding conversions**: rounding to nearest even, the host's mode; operands
//!   are properly boxed; and the result is *ordinary*: normal, finite, and its exponent is not the
//!   least. An invalid operation gives a NaN, a division by zero or an overflow an infinity. An
//!   underflow gives a subnormal, a zero, or at most the least normal number, because tininess is
//!   detected after rounding. So an ordinary result has raised no flag, or only inexact. That
//!   changes nothing if inexact is raised already; if not, the result must be *exact*: its error,
//!   which the host can compute, is 0 ([`Error`]). A product with 0 is exact too, and a sum need
//!   only be finite: it cannot underflow.
//! - **Truncation to an integer**: the operand in range; exact, or inexact is already raised.
//! - **Comparison, minimum, maximum**: neither operand a NaN.
//! - **Moves, sign injection, exact conversions from integers**: always.
//!
//! The host's operation precedes the checks.
//!
//! # Safety
//!
//! [`Emitter::call_helper`] passes the helper's arguments: the running hart, and an instruction
//! that its block keeps.
#![allow(unsafe_code)]

use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::{Block, BlockArg, InstBuilder, MemFlagsData, Type, Value, types};

use super::emitter::{Emitter, HOST};
use super::field;
use super::rounding_error::Error;
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

/// A fast path.
struct Fast {
    /// The result: a double, or an integer register's value.
    result: Value,
    /// The result is the right one only if all of these are not 0.
    conditions: Vec<Value>,
    /// Whether the result is ordinary, if it must be.
    ordinary: Option<Value>,
    /// A result that is not ordinary is exact if one of these is 0, and the result is no NaN.
    factors: Vec<Value>,
    /// The operation's value in its own format.
    value: Value,
    error: Error,
    /// The rounding mode field, if the result depends on it.
    rounding: u8,
}

impl Emitter<'_> {
    pub(super) fn float(&mut self, index: u32, inst: &Inst) {
        if self.float_move(inst) || self.exact_from_integer(inst) {
            return;
        }
        let Some(fast) = self.fast_path(inst) else {
            let result = self.help(index, inst);
            self.set_float_result(inst, result);
            return;
        };
        let (slow, done) = (self.builder.create_block(), self.builder.create_block());
        self.builder.set_cold_block(slow);
        let result = self.builder.append_block_param(done, self.builder.func.dfg.value_type(fast.result));
        let right = [BlockArg::Value(fast.result)];
        for &condition in &fast.conditions {
            self.unless(condition, slow);
        }
        if let Some(ordinary) = fast.ordinary {
            if fast.factors.is_empty() {
                self.unless(ordinary, slow);
            } else {
                let unusual = self.builder.create_block();
                self.builder.set_cold_block(unusual);
                let on = self.unless(ordinary, unusual);
                self.builder.switch_to_block(unusual);
                let zero = self.is_zero(&fast.factors);
                self.unless(zero, slow);
                self.unless_rounding(fast.rounding, slow);
                let number = self.builder.ins().fcmp(FloatCC::Ordered, fast.value, fast.value);
                self.builder.ins().brif(number, done, &right, slow, &[]);
                self.builder.switch_to_block(on);
            }
        }
        if let Error::None = fast.error {
            self.builder.ins().jump(done, &right);
        } else {
            // `frm` is the byte after `fflags`.
            let both = self.builder.ins().load(types::I16, HOST, self.hart, field::FFLAGS);
            let raised = if fast.rounding == DYNAMIC {
                let both = self.builder.ins().band_imm_u(both, 0xff00 | NX);
                self.builder.ins().icmp_imm_u(IntCC::Equal, both, i64::from(RNE) << 8 | NX)
            } else {
                self.builder.ins().band_imm_u(both, NX)
            };
            let unraised = self.builder.create_block();
            self.builder.ins().brif(raised, done, &right, unraised, &[]);
            self.builder.switch_to_block(unraised);
            self.unless_rounding(fast.rounding, slow);
            match self.is_exact(fast.value, &fast.error) {
                Some(exact) => self.builder.ins().brif(exact, done, &right, slow, &[]),
                None => self.builder.ins().jump(slow, &[]),
            };
        }
        self.builder.switch_to_block(slow);
        let helped = self.help(index, inst);
        self.builder.ins().jump(done, &[BlockArg::Value(helped)]);
        self.builder.switch_to_block(done);
        self.set_float_result(inst, result);
    }

    /// Goes to `otherwise` if `condition` is 0; returns the block that it goes on in.
    fn unless(&mut self, condition: Value, otherwise: Block) -> Block {
        let on = self.builder.create_block();
        self.builder.ins().brif(condition, on, &[], otherwise, &[]);
        self.builder.switch_to_block(on);
        on
    }

    /// Goes to `otherwise` if a dynamic mode is not to nearest even.
    fn unless_rounding(&mut self, rounding: u8, otherwise: Block) {
        if rounding == DYNAMIC {
            let mode = self.builder.ins().load(types::I8, HOST, self.hart, field::FRM);
            let nearest = self.builder.ins().icmp_imm_u(IntCC::Equal, mode, i64::from(RNE));
            self.unless(nearest, otherwise);
        }
    }

    /// Calls the helper; returns the value that it put into the destination. The registers that are
    /// dirty stay so: another way may lead past the call.
    fn help(&mut self, index: u32, inst: &Inst) -> Value {
        self.store_dirty();
        self.faults_to(index, index, |this| this.call_helper(float_helper as *const () as usize, inst, &[]));
        let (file, format) = if writes_integer(inst.op) { (&self.x, types::I64) } else { (&self.f, types::F64) };
        let offset = file.offset_of(inst.rd);
        self.builder.ins().load(format, HOST, self.hart, offset)
    }

    fn set_float_result(&mut self, inst: &Inst, value: Value) {
        if writes_integer(inst.op) { self.set_x(inst.rd, value) } else { self.set_f(inst.rd, value) }
    }

    /// A floating-point register's 64 bits.
    pub(super) fn f_bits(&mut self, register: u8) -> Value {
        let value = self.f(register);
        self.bitcast(types::I64, value)
    }

    pub(super) fn set_f_bits(&mut self, register: u8, bits: Value) {
        let value = self.bitcast(types::F64, bits);
        self.set_f(register, value);
    }

    /// Operations that only move bits.
    fn float_move(&mut self, inst: &Inst) -> bool {
        use Op::*;
        match inst.op {
            Fmv_x_d => {
                let bits = self.f_bits(inst.rs1);
                self.set_x(inst.rd, bits);
            }
            Fmv_x_w => {
                let bits = self.f_bits(inst.rs1);
                let word = self.builder.ins().ireduce(types::I32, bits);
                let value = self.builder.ins().sextend(types::I64, word);
                self.set_x(inst.rd, value);
            }
            Fmv_d_x => {
                let bits = self.x(inst.rs1);
                self.set_f_bits(inst.rd, bits);
            }
            Fmv_x_h => {
                let bits = self.f_bits(inst.rs1);
                let half = self.builder.ins().ireduce(types::I16, bits);
                let value = self.builder.ins().sextend(types::I64, half);
                self.set_x(inst.rd, value);
            }
            Fmv_h_x => {
                let bits = self.x(inst.rs1);
                let boxed = self.builder.ins().bor_imm_s(bits, HALF_BOX);
                self.set_f_bits(inst.rd, boxed);
            }
            Fmv_w_x => {
                let bits = self.x(inst.rs1);
                let boxed = self.builder.ins().bor_imm_s(bits, BOX);
                self.set_f_bits(inst.rd, boxed);
            }
            Fsgnj_d if inst.rs1 == inst.rs2 => {
                let value = self.f(inst.rs1);
                self.set_f(inst.rd, value);
            }
            Fsgnjn_d if inst.rs1 == inst.rs2 => {
                let value = self.f(inst.rs1);
                let value = self.builder.ins().fneg(value);
                self.set_f(inst.rd, value);
            }
            Fsgnjx_d if inst.rs1 == inst.rs2 => {
                let value = self.f(inst.rs1);
                let value = self.builder.ins().fabs(value);
                self.set_f(inst.rd, value);
            }
            Fsgnj_d | Fsgnjn_d | Fsgnjx_d => {
                let (a, b) = (self.f_bits(inst.rs1), self.f_bits(inst.rs2));
                let bits = self.sign_injected(inst.op, a, b, 63);
                self.set_f_bits(inst.rd, bits);
            }
            Fsgnj_s | Fsgnjn_s | Fsgnjx_s => {
                let (a, b) = (self.single(inst.rs1), self.single(inst.rs2));
                let bits = self.sign_injected(inst.op, a, b, 31);
                let boxed = self.builder.ins().bor_imm_s(bits, BOX);
                self.set_f_bits(inst.rd, boxed);
            }
            _ => return false,
        }
        true
    }

    /// A single's bits, with garbage above them; the canonical NaN if it is not boxed.
    fn single(&mut self, register: u8) -> Value {
        let bits = self.f_bits(register);
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
        self.set_f(inst.rd, value);
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
        is_nearest(inst.rm)?;
        let unary = matches!(inst.op, Fsqrt_s | Fsqrt_d);
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2][..if unary { 1 } else { 2 }], format);
        let a = values[0];
        let mut b = *values.last()?;
        if matches!(inst.op, Fsub_s | Fsub_d) {
            b = self.builder.ins().fneg(b);
        }
        let ins = self.builder.ins();
        let (value, error) = match inst.op {
            Fadd_s | Fadd_d => (ins.fadd(a, b), Error::Sum([a, b])),
            // The sum with the negative operand would differ if that is a NaN.
            Fsub_s | Fsub_d => (ins.fsub(a, values[1]), Error::Sum([a, b])),
            Fmul_s | Fmul_d => (ins.fmul(a, b), Error::Product([a, b])),
            Fdiv_s | Fdiv_d => (ins.fdiv(a, b), Error::Quotient([a, b])),
            _ => (ins.sqrt(a), Error::Root(a)),
        };
        let factors = match error {
            Error::Product([a, b]) => vec![a, b],
            Error::Sum(_) => Vec::new(),
            _ => vec![a],
        };
        Some(self.rounded(inst, value, factors, error, boxed))
    }

    fn fused(&mut self, inst: &Inst, format: Type) -> Option<Fast> {
        use Op::*;
        if !self.environment.has_fma {
            return None;
        }
        is_nearest(inst.rm)?;
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2, inst.rs3], format);
        let (mut a, b, mut c) = (values[0], values[1], values[2]);
        if matches!(inst.op, Fnmsub_s | Fnmsub_d | Fnmadd_s | Fnmadd_d) {
            a = self.builder.ins().fneg(a);
        }
        if matches!(inst.op, Fmsub_s | Fmsub_d | Fnmadd_s | Fnmadd_d) {
            c = self.builder.ins().fneg(c);
        }
        let value = self.builder.ins().fma(a, b, c);
        Some(self.rounded(inst, value, vec![a, b], Error::Fused([a, b, c]), boxed))
    }

    fn rounded_from_integer(&mut self, inst: &Inst) -> Option<Fast> {
        use Op::*;
        is_nearest(inst.rm)?;
        let wide = match inst.op {
            Fcvt_s_w => {
                let word = self.word(inst.rs1);
                self.builder.ins().sextend(types::I64, word)
            }
            Fcvt_s_wu => {
                let word = self.word(inst.rs1);
                self.builder.ins().uextend(types::I64, word)
            }
            _ => self.x(inst.rs1),
        };
        let (format, digits) = if inst.op == Fcvt_d_l { (types::F64, 53) } else { (types::F32, 24) };
        let value = self.builder.ins().fcvt_from_sint(format, wide);
        let limit = self.constant(1 << digits);
        let shifted = self.builder.ins().iadd(wide, limit);
        let twice = self.constant(2 << digits);
        let exact = self.builder.ins().icmp(IntCC::UnsignedLessThanOrEqual, shifted, twice);
        let result = self.in_register(value);
        Some(Fast {
            result,
            conditions: Vec::new(),
            ordinary: None,
            factors: Vec::new(),
            value,
            error: Error::NoneIf(exact),
            rounding: inst.rm,
        })
    }

    fn between_formats(&mut self, inst: &Inst) -> Option<Fast> {
        let narrows = inst.op == Op::Fcvt_s_d;
        if narrows {
            is_nearest(inst.rm)?;
            let (values, boxed) = self.operands(&[inst.rs1], types::F64);
            let value = self.builder.ins().fdemote(types::F32, values[0]);
            let back = self.builder.ins().fpromote(types::F64, value);
            let exact = self.builder.ins().fcmp(FloatCC::Equal, back, values[0]);
            return Some(self.rounded(inst, value, vec![values[0]], Error::NoneIf(exact), boxed));
        }
        // Widening is exact, so any valid mode will do; a dynamic one may be invalid.
        let (values, boxed) = self.operands(&[inst.rs1], types::F32);
        let value = self.builder.ins().fpromote(types::F64, values[0]);
        let number = self.builder.ins().fcmp(FloatCC::Ordered, value, value);
        let mut conditions = vec![number];
        conditions.extend(boxed);
        if inst.rm == DYNAMIC {
            let mode = self.builder.ins().load(types::I8, HOST, self.hart, field::FRM);
            let last = i64::from(LAST_MODE);
            conditions.push(self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThanOrEqual, mode, last));
        } else if inst.rm > LAST_MODE {
            return None;
        }
        Some(self.unrounded(value, conditions))
    }

    fn truncated(&mut self, inst: &Inst, format: Type) -> Option<Fast> {
        use Op::*;
        if inst.rm != RTZ {
            return None;
        }
        let (values, boxed) = self.operands(&[inst.rs1], format);
        let value = values[0];
        let (signed, limit) = match inst.op {
            Fcvt_w_s | Fcvt_w_d => (true, 2f64.powi(31)),
            Fcvt_wu_s | Fcvt_wu_d => (false, 2f64.powi(32)),
            _ => (!matches!(inst.op, Fcvt_lu_s | Fcvt_lu_d), 2f64.powi(63)),
        };
        let limit = self.float_constant(format, limit);
        let below = if signed { self.builder.ins().fabs(value) } else { value };
        let mut conditions = vec![self.builder.ins().fcmp(FloatCC::LessThan, below, limit)];
        if !signed {
            let zero = self.float_constant(format, 0.0);
            conditions.push(self.builder.ins().fcmp(FloatCC::GreaterThanOrEqual, value, zero));
        }
        conditions.extend(boxed);
        let wide = self.builder.ins().fcvt_to_sint_sat(types::I64, value);
        let back = self.builder.ins().fcvt_from_sint(format, wide);
        let exact = self.builder.ins().fcmp(FloatCC::Equal, back, value);
        let result = if matches!(inst.op, Fcvt_wu_s | Fcvt_wu_d) {
            let word = self.builder.ins().ireduce(types::I32, wide);
            self.builder.ins().sextend(types::I64, word)
        } else {
            wide
        };
        let error = Error::NoneIf(exact);
        Some(Fast { result, conditions, ordinary: None, factors: Vec::new(), value, error, rounding: RTZ })
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
        let conditions = [Some(ordered), boxed].into_iter().flatten().collect();
        Fast { result, ..self.unrounded(values[0], conditions) }
    }

    /// Equal operands differ at most in the sign of zero. So the minimum is the union of their
    /// bits, the maximum their intersection.
    fn extremum(&mut self, inst: &Inst, format: Type) -> Fast {
        let (values, boxed) = self.operands(&[inst.rs1, inst.rs2], format);
        let (a, b) = (self.f_bits(inst.rs1), self.f_bits(inst.rs2));
        let minimum = matches!(inst.op, Op::Fmin_s | Op::Fmin_d);
        let first = if minimum { FloatCC::LessThan } else { FloatCC::GreaterThan };
        let ins = self.builder.ins();
        let if_equal = if minimum { ins.bor(a, b) } else { ins.band(a, b) };
        let equal = self.builder.ins().fcmp(FloatCC::Equal, values[0], values[1]);
        let first = self.builder.ins().fcmp(first, values[0], values[1]);
        let unequal = self.builder.ins().select(first, a, b);
        let bits = self.builder.ins().select(equal, if_equal, unequal);
        let result = self.bitcast(types::F64, bits);
        let ordered = self.builder.ins().fcmp(FloatCC::Ordered, values[0], values[1]);
        let conditions = [Some(ordered), boxed].into_iter().flatten().collect();
        Fast { result, ..self.unrounded(values[0], conditions) }
    }

    /// Operands in the host's format; for singles also whether all are boxed.
    fn operands(&mut self, registers: &[u8], format: Type) -> (Vec<Value>, Option<Value>) {
        if format == types::F64 {
            return (registers.iter().map(|&register| self.f(register)).collect(), None);
        }
        let bits: Vec<Value> = registers.iter().map(|&register| self.f_bits(register)).collect();
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

    /// A fast path for a value that was rounded to nearest even.
    fn rounded(&mut self, inst: &Inst, value: Value, factors: Vec<Value>, error: Error, boxed: Option<Value>) -> Fast {
        let double = self.builder.func.dfg.value_type(value) == types::F64;
        let bits = self.bitcast(if double { types::I64 } else { types::I32 }, value);
        let (shift, greatest) = if double { (52, 0x7ff) } else { (23, 0xff) };
        let exponent = self.builder.ins().ushr_imm_u(bits, shift);
        let exponent = self.builder.ins().band_imm_u(exponent, greatest);
        let ordinary = if matches!(error, Error::Sum(_)) {
            self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, exponent, greatest)
        } else {
            // 2 to greatest - 1.
            let from_two = self.builder.ins().iadd_imm_s(exponent, -2);
            self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, from_two, greatest - 2)
        };
        let result = self.in_register(value);
        let (conditions, ordinary) = (boxed.into_iter().collect(), Some(ordinary));
        Fast { result, conditions, ordinary, factors, value, error, rounding: inst.rm }
    }

    /// A fast path for a value that no rounding has touched.
    fn unrounded(&mut self, value: Value, conditions: Vec<Value>) -> Fast {
        let result = self.in_register(value);
        Fast { result, conditions, ordinary: None, factors: Vec::new(), value, error: Error::None, rounding: RNE }
    }

    /// A value in a register's format.
    fn in_register(&mut self, value: Value) -> Value {
        if self.builder.func.dfg.value_type(value) == types::F64 {
            return value;
        }
        let bits = self.bitcast(types::I32, value);
        let wide = self.builder.ins().uextend(types::I64, bits);
        let boxed = self.builder.ins().bor_imm_s(wide, BOX);
        self.bitcast(types::F64, boxed)
    }

    fn bitcast(&mut self, to: Type, value: Value) -> Value {
        self.builder.ins().bitcast(to, MemFlagsData::new(), value)
    }

    pub(super) fn float_constant(&mut self, format: Type, value: f64) -> Value {
        if format == types::F64 {
            self.builder.ins().f64const(value)
        } else {
            self.builder.ins().f32const(value as f32)
        }
    }
}

/// `None` if the mode cannot be to nearest even.
fn is_nearest(rm: u8) -> Option<()> {
    matches!(rm, RNE | DYNAMIC).then_some(())
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
