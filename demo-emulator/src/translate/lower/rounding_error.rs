//! The rounding error of a floating-point result, which the host computes without rounding.
//!
//! If the error is 0, the operation was exact and raises no flag. The error of a sum is a sum of
//! doubles of the same precision (Knuth), that of a product comes from a fused multiplication. A
//! quotient and a square root are exact if their remainder is 0. All of this holds only if the error
//! does not underflow.

use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::emitter::Emitter;

/// The error of a result, without rounding: 0 if the result is exact.
pub(super) enum Error {
    /// There is never one.
    None,
    /// Of a sum of two.
    Sum([Value; 2]),
    /// Of a product.
    Product([Value; 2]),
    /// Of a quotient.
    Quotient([Value; 2]),
    /// Of a square root.
    Root(Value),
    /// Of a product and a sum with one rounding.
    Fused([Value; 3]),
    /// There is none if this is not 0.
    NoneIf(Value),
}

impl Emitter<'_> {
    /// Whether one of the values is 0.
    pub(super) fn is_zero(&mut self, values: &[Value]) -> Value {
        let zeros: Vec<Value> = values
            .iter()
            .map(|&value| {
                let zero = self.float_constant(self.builder.func.dfg.value_type(value), 0.0);
                self.builder.ins().fcmp(FloatCC::Equal, value, zero)
            })
            .collect();
        zeros[1..].iter().fold(zeros[0], |any, &zero| self.builder.ins().bor(any, zero))
    }

    /// Whether `value`, an ordinary result, is exact; `None` if the host cannot say.
    pub(super) fn is_exact(&mut self, value: Value, error: &Error) -> Option<Value> {
        if !self.environment.has_fma && !matches!(error, Error::None | Error::NoneIf(_) | Error::Sum(_)) {
            return None;
        }
        let (error, large) = match *error {
            Error::None => return None,
            Error::NoneIf(exact) => return Some(exact),
            Error::Sum([a, b]) => (self.sum_error(a, b, value), None),
            Error::Product([a, b]) => (self.product_error(a, b, value), Some(value)),
            // The remainder is as exact as the product.
            Error::Quotient([a, b]) => {
                let remainder = self.builder.ins().fneg(value);
                (self.builder.ins().fma(remainder, b, a), Some(a))
            }
            Error::Root(a) => {
                let remainder = self.builder.ins().fneg(value);
                (self.builder.ins().fma(remainder, value, a), Some(a))
            }
            Error::Fused([a, b, c]) => {
                let product = self.builder.ins().fmul(a, b);
                let product_error = self.product_error(a, b, product);
                let sum_error = self.sum_error(product, c, value);
                let zero = self.is_zero(&[product_error]);
                // Anything but 0 if the product is not exact.
                let one = self.float_constant(self.builder.func.dfg.value_type(value), 1.0);
                (self.builder.ins().select(zero, sum_error, one), Some(product))
            }
        };
        let none = self.is_zero(&[error]);
        let Some(large) = large else { return Some(none) };
        // The error itself must not underflow.
        let format = self.builder.func.dfg.value_type(value);
        let least = self.float_constant(format, if format == types::F64 { 2f64.powi(-900) } else { 2f64.powi(-98) });
        let magnitude = self.builder.ins().fabs(large);
        let no_underflow = self.builder.ins().fcmp(FloatCC::GreaterThan, magnitude, least);
        Some(self.builder.ins().band(none, no_underflow))
    }

    /// The error of `sum`, as by Knuth; a NaN if an intermediate result overflows.
    fn sum_error(&mut self, a: Value, b: Value, sum: Value) -> Value {
        let b_part = self.builder.ins().fsub(sum, a);
        let a_part = self.builder.ins().fsub(sum, b_part);
        let (a_error, b_error) = (self.builder.ins().fsub(a, a_part), self.builder.ins().fsub(b, b_part));
        self.builder.ins().fadd(a_error, b_error)
    }

    fn product_error(&mut self, a: Value, b: Value, product: Value) -> Value {
        let negative = self.builder.ins().fneg(product);
        self.builder.ins().fma(a, b, negative)
    }
}
