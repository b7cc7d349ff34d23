//! Arithmetic by the host's SSE and FMA instructions, several times faster than in integers.
//!
//! Each operation is one block of assembly: it puts the rounding mode into MXCSR and clears its
//! flags, operates, reads the flags and restores MXCSR. So no compiler can move, fold or drop a
//! step. x86 detects tininess after rounding, as RISC-V does, and with exceptions masked raises
//! underflow only for inexact results. Two differences are corrected here: the bits of a NaN
//! result, and the invalid flag for infinity times zero plus a quiet NaN. No host mode rounds ties
//! away from zero; the functions then return `None`.
//!
//! # Safety
//!
//! The blocks write MXCSR and two words on the stack, and restore MXCSR. The fused ones need the
//! FMA extension, which is checked first.
#![allow(unsafe_code)]

use std::arch::asm;

use super::format::{DOUBLE, DZ, Format, NV, NX, OF, Rounded, Rounding, UF};
use super::soft;

/// All exceptions masked, no flag set, no flushing to zero.
const MXCSR_DEFAULT: u32 = 0x1f80;

/// The MXCSR of the computation.
fn control(rounding: Rounding) -> Option<u32> {
    let mode = match rounding {
        Rounding::Rne => 0,
        Rounding::Rdn => 1,
        Rounding::Rup => 2,
        Rounding::Rtz => 3,
        Rounding::Rmm => return None,
    };
    Some(MXCSR_DEFAULT | mode << 13)
}

fn rounded(format: Format, bits: u64, mxcsr: u32) -> Rounded {
    const FLAGS: [(u32, u8); 5] = [(1, NV), (1 << 2, DZ), (1 << 3, OF), (1 << 4, UF), (1 << 5, NX)];
    let flags = FLAGS.iter().map(|&(host, guest)| if mxcsr & host != 0 { guest } else { 0 }).sum();
    let bits = bits & (format.sign() | (format.sign() - 1));
    Rounded { bits: if format.is_nan(bits) { format.canonical_nan() } else { bits }, flags }
}

/// One instruction on registers `{a}`, `{b}` and `{c}`, with its result in
/// `{a}`.
macro_rules! compute {
    ($instruction:literal, $control:expr, $a:expr, $b:expr, $c:expr) => {{
        // The word to restore, and the word of the computation, which then holds the flags.
        let mut mxcsr = [0_u32, $control];
        let mut value = f64::from_bits($a);
        // SAFETY: touches the registers named, two words and MXCSR, which it restores; the caller
        // has checked the extension.
        unsafe {
            asm!(
                "stmxcsr dword ptr [{mxcsr}]",
                "ldmxcsr dword ptr [{mxcsr} + 4]",
                $instruction,
                "stmxcsr dword ptr [{mxcsr} + 4]",
                "ldmxcsr dword ptr [{mxcsr}]",
                "/* {b} {c} */",
                mxcsr = in(reg) &raw mut mxcsr,
                a = inout(xmm_reg) value,
                b = in(xmm_reg) f64::from_bits($b),
                c = in(xmm_reg) f64::from_bits($c),
                options(nostack),
            );
        }
        (value.to_bits(), mxcsr[1])
    }};
}

macro_rules! binary {
    ($name:ident, $single:literal, $double:literal, $doc:literal) => {
        #[doc = $doc]
        pub fn $name(format: Format, a: u64, b: u64, rounding: Rounding) -> Option<Rounded> {
            let control = control(rounding)?;
            let (bits, mxcsr) = if format == DOUBLE {
                compute!($double, control, a, b, 0)
            } else {
                compute!($single, control, a, b, 0)
            };
            Some(rounded(format, bits, mxcsr))
        }
    };
}

binary!(add, "addss {a}, {b}", "addsd {a}, {b}", "The sum.");
binary!(sub, "subss {a}, {b}", "subsd {a}, {b}", "The difference.");
binary!(mul, "mulss {a}, {b}", "mulsd {a}, {b}", "The product.");
binary!(div, "divss {a}, {b}", "divsd {a}, {b}", "The quotient.");

/// The square root.
pub fn sqrt(format: Format, a: u64, rounding: Rounding) -> Option<Rounded> {
    let control = control(rounding)?;
    let (bits, mxcsr) = if format == DOUBLE {
        compute!("sqrtsd {a}, {a}", control, a, 0, 0)
    } else {
        compute!("sqrtss {a}, {a}", control, a, 0, 0)
    };
    Some(rounded(format, bits, mxcsr))
}

/// `a * b + c`, rounded once.
pub fn fused(format: Format, a: u64, b: u64, c: u64, rounding: Rounding) -> Option<Rounded> {
    let control = control(rounding)?;
    if !std::arch::is_x86_feature_detected!("fma") {
        return None;
    }
    let (bits, mxcsr) = if format == DOUBLE {
        compute!("vfmadd213sd {a}, {b}, {c}", control, a, b, c)
    } else {
        compute!("vfmadd213ss {a}, {b}, {c}", control, a, b, c)
    };
    let outcome = rounded(format, bits, mxcsr);
    Some(if format.is_nan(outcome.bits) { soft::fused(format, a, b, c, rounding) } else { outcome })
}
