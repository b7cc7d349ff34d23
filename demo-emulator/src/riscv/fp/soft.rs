//! Arithmetic in integers alone, for both formats, all rounding modes and all
//! flags.
//!
//! Every operation makes a value in 128 bits and rounds it once. The value is exact, or its lowest
//! bit stands for everything below it (sticky). Only this arithmetic can round ties away from zero,
//! a mode that the host lacks, and the tests compare the host's arithmetic with it. The crate
//! `rustc_apfloat` does not fit: it detects underflow after rounding to the precision of the
//! subnormal, but RISC-V demands the full precision. It also has no square root.

use super::format::{Class, DZ, Format, NV, NX, Number, OF, Rounded, Rounding, UF};

/// A finite number that is not zero: `significand * 2^(exponent - 127)`, the
/// leading one in bit 127.
#[derive(Clone, Copy)]
struct Wide {
    sign: bool,
    exponent: i32,
    significand: u128,
}

impl Wide {
    fn of(number: Number) -> Self {
        Self { sign: number.sign, exponent: number.exponent, significand: u128::from(number.significand) << 64 }
    }

    /// From a significand with its leading one at any bit; bit 127 would count `2^exponent`.
    fn normalized(sign: bool, exponent: i32, significand: u128) -> Self {
        let shift = significand.leading_zeros();
        Self { sign, exponent: exponent - shift as i32, significand: significand << shift }
    }
}

/// Drops the low `shift` bits; says whether they were not zero.
fn round_at(significand: u128, shift: u32, sign: bool, rounding: Rounding) -> (u64, bool) {
    // Beyond 128 bits only a value below half a unit is left.
    let (significand, shift) = if shift > 128 { (u128::from(significand != 0), 128) } else { (significand, shift) };
    let (kept, rest) = match shift {
        128 => (0, significand),
        _ => ((significand >> shift) as u64, significand & ((1 << shift) - 1)),
    };
    let half = 1_u128 << (shift - 1);
    let up = match rounding {
        Rounding::Rne => rest > half || rest == half && kept & 1 == 1,
        Rounding::Rmm => rest >= half,
        Rounding::Rtz => false,
        Rounding::Rdn => sign && rest != 0,
        Rounding::Rup => !sign && rest != 0,
    };
    (kept + u64::from(up), rest != 0)
}

fn round(format: Format, value: Wide, rounding: Rounding) -> Rounded {
    let Wide { sign, exponent, significand } = value;
    let least_exponent = 1 - format.bias();
    let shift = 127 - format.fraction_bits;
    let (kept, inexact) = round_at(significand, shift, sign, rounding);
    if exponent < least_exponent {
        // Tiny unless rounding with the full precision reaches the least
        // normal number.
        let tiny = exponent + 1 < least_exponent || kept >> (format.fraction_bits + 1) == 0;
        let shift = shift.saturating_add((least_exponent - exponent) as u32);
        let (kept, inexact) = round_at(significand, shift, sign, rounding);
        let flags = if !inexact {
            0
        } else if tiny {
            UF | NX
        } else {
            NX
        };
        return Rounded { bits: format.signed(sign, kept), flags };
    }
    // The leading one of `kept` adds 1 to the exponent, a carry another one.
    let magnitude = (((exponent - least_exponent) as u64) << format.fraction_bits) + kept;
    if magnitude >= format.infinity() {
        let to_infinity = match rounding {
            Rounding::Rne | Rounding::Rmm => true,
            Rounding::Rtz => false,
            Rounding::Rdn => sign,
            Rounding::Rup => !sign,
        };
        let magnitude = format.infinity() - u64::from(!to_infinity);
        return Rounded { bits: format.signed(sign, magnitude), flags: OF | NX };
    }
    Rounded { bits: format.signed(sign, magnitude), flags: if inexact { NX } else { 0 } }
}

/// The zero of an exact difference, or of a sum of two zeros with signs `a` and `b`.
fn zero_sum(format: Format, a: bool, b: bool, rounding: Rounding) -> Rounded {
    Rounded::exact(format.signed(if a == b { a } else { rounding == Rounding::Rdn }, 0))
}

fn add_wide(format: Format, a: Wide, b: Wide, rounding: Rounding) -> Rounded {
    let key = |n: Wide| (n.exponent, n.significand);
    let (large, small) = if key(a) >= key(b) { (a, b) } else { (b, a) };
    // One bit of room for the carry. The significands end far above bit 1.
    let (high, low) = (large.significand >> 1, small.significand >> 1);
    let distance = large.exponent.abs_diff(small.exponent);
    let low = match distance {
        0 => low,
        1..=127 => low >> distance | u128::from(low << (128 - distance) != 0),
        _ => 1,
    };
    let sum = if a.sign == b.sign { high + low } else { high - low };
    if sum == 0 {
        return zero_sum(format, a.sign, b.sign, rounding);
    }
    round(format, Wide::normalized(large.sign, large.exponent + 1, sum), rounding)
}

/// The sum.
pub fn add(format: Format, a: u64, b: u64, rounding: Rounding) -> Rounded {
    let (x, y) = (format.unpack(a), format.unpack(b));
    if x.is_nan() || y.is_nan() {
        return format.nan(format.is_signaling(a) || format.is_signaling(b));
    }
    match (x.class, y.class) {
        (Class::Infinite, Class::Infinite) if x.sign != y.sign => format.nan(true),
        (Class::Infinite, _) | (_, Class::Infinite) => {
            let sign = if x.class == Class::Infinite { x.sign } else { y.sign };
            Rounded::exact(format.signed(sign, format.infinity()))
        }
        (Class::Zero, Class::Zero) => zero_sum(format, x.sign, y.sign, rounding),
        (Class::Zero, _) => Rounded::exact(b),
        (_, Class::Zero) => Rounded::exact(a),
        _ => add_wide(format, Wide::of(x), Wide::of(y), rounding),
    }
}

/// The difference.
pub fn sub(format: Format, a: u64, b: u64, rounding: Rounding) -> Rounded {
    add(format, a, b ^ format.sign(), rounding)
}

fn product(a: Number, b: Number) -> Wide {
    let significand = u128::from(a.significand) * u128::from(b.significand);
    Wide::normalized(a.sign != b.sign, a.exponent + b.exponent + 1, significand)
}

/// The product.
pub fn mul(format: Format, a: u64, b: u64, rounding: Rounding) -> Rounded {
    let (x, y) = (format.unpack(a), format.unpack(b));
    if x.is_nan() || y.is_nan() {
        return format.nan(format.is_signaling(a) || format.is_signaling(b));
    }
    let sign = x.sign != y.sign;
    match (x.class, y.class) {
        (Class::Infinite, Class::Zero) | (Class::Zero, Class::Infinite) => format.nan(true),
        (Class::Infinite, _) | (_, Class::Infinite) => Rounded::exact(format.signed(sign, format.infinity())),
        (Class::Zero, _) | (_, Class::Zero) => Rounded::exact(format.signed(sign, 0)),
        _ => round(format, product(x, y), rounding),
    }
}

/// The quotient.
pub fn div(format: Format, a: u64, b: u64, rounding: Rounding) -> Rounded {
    let (x, y) = (format.unpack(a), format.unpack(b));
    if x.is_nan() || y.is_nan() {
        return format.nan(format.is_signaling(a) || format.is_signaling(b));
    }
    let sign = x.sign != y.sign;
    match (x.class, y.class) {
        (Class::Infinite, Class::Infinite) | (Class::Zero, Class::Zero) => format.nan(true),
        (Class::Infinite, _) => Rounded::exact(format.signed(sign, format.infinity())),
        (_, Class::Zero) => Rounded { bits: format.signed(sign, format.infinity()), flags: DZ },
        (Class::Zero, _) | (_, Class::Infinite) => Rounded::exact(format.signed(sign, 0)),
        _ => {
            let (dividend, divisor) = (u128::from(x.significand) << 63, u128::from(y.significand));
            let quotient = (dividend / divisor) | u128::from(!dividend.is_multiple_of(divisor));
            round(format, Wide::normalized(sign, x.exponent - y.exponent + 64, quotient), rounding)
        }
    }
}

/// The square root.
pub fn sqrt(format: Format, a: u64, rounding: Rounding) -> Rounded {
    let x = format.unpack(a);
    match x.class {
        Class::QuietNan | Class::SignalingNan => format.nan(format.is_signaling(a)),
        Class::Zero => Rounded::exact(a),
        _ if x.sign => format.nan(true),
        Class::Infinite => Rounded::exact(a),
        Class::Subnormal | Class::Normal => {
            // An even exponent; the root then has its leading one in bit 63.
            let square = u128::from(x.significand) << (63 + (x.exponent & 1));
            let root = square.isqrt();
            let significand = root << 64 | u128::from(root * root != square);
            round(format, Wide { sign: false, exponent: x.exponent >> 1, significand }, rounding)
        }
    }
}

/// `a * b + c`, rounded once.
pub fn fused(format: Format, a: u64, b: u64, c: u64, rounding: Rounding) -> Rounded {
    let (x, y, z) = (format.unpack(a), format.unpack(b), format.unpack(c));
    let inf_times_zero = matches!((x.class, y.class), (Class::Infinite, Class::Zero) | (Class::Zero, Class::Infinite));
    // Infinity times zero is invalid even if the addend is a quiet NaN.
    if inf_times_zero || x.is_nan() || y.is_nan() || z.is_nan() {
        return format.nan(inf_times_zero || [a, b, c].iter().any(|&bits| format.is_signaling(bits)));
    }
    let sign = x.sign != y.sign;
    if x.class == Class::Infinite || y.class == Class::Infinite {
        if z.class == Class::Infinite && z.sign != sign {
            return format.nan(true);
        }
        return Rounded::exact(format.signed(sign, format.infinity()));
    }
    if z.class == Class::Infinite {
        return Rounded::exact(c);
    }
    match (x.class == Class::Zero || y.class == Class::Zero, z.class == Class::Zero) {
        (true, true) => zero_sum(format, sign, z.sign, rounding),
        (true, false) => Rounded::exact(c),
        (false, true) => round(format, product(x, y), rounding),
        (false, false) => add_wide(format, product(x, y), Wide::of(z), rounding),
    }
}

/// A number of one format in the other.
pub fn convert(from: Format, to: Format, a: u64, rounding: Rounding) -> Rounded {
    let x = from.unpack(a);
    match x.class {
        Class::QuietNan | Class::SignalingNan => to.nan(from.is_signaling(a)),
        Class::Infinite => Rounded::exact(to.signed(x.sign, to.infinity())),
        Class::Zero => Rounded::exact(to.signed(x.sign, 0)),
        Class::Subnormal | Class::Normal => round(to, Wide::of(x), rounding),
    }
}

/// An integer type of the conversions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Int {
    /// 32 bits, signed.
    W,
    /// 32 bits, unsigned.
    Wu,
    /// 64 bits, signed.
    L,
    /// 64 bits, unsigned.
    Lu,
}

impl Int {
    /// The least and the greatest value.
    fn range(self) -> (i128, i128) {
        match self {
            Self::W => (i32::MIN.into(), i32::MAX.into()),
            Self::Wu => (0, u32::MAX.into()),
            Self::L => (i64::MIN.into(), i64::MAX.into()),
            Self::Lu => (0, u64::MAX.into()),
        }
    }

    /// The value in an integer register: words are sign-extended, `wu` too.
    fn register(self, value: i128) -> u64 {
        match self {
            Self::W | Self::Wu => value as i32 as u64,
            Self::L | Self::Lu => value as u64,
        }
    }

    fn value(self, register: u64) -> i128 {
        match self {
            Self::W => i128::from(register as i32),
            Self::Wu => i128::from(register as u32),
            Self::L => i128::from(register as i64),
            Self::Lu => i128::from(register),
        }
    }
}

/// Converts to an integer, as an integer register holds it. A number out of range is invalid and
/// gives the nearest end of the range, a NaN the upper end.
pub fn to_int(format: Format, a: u64, int: Int, rounding: Rounding) -> Rounded {
    let x = format.unpack(a);
    let (least, greatest) = int.range();
    let invalid = |end| Rounded { bits: int.register(end), flags: NV };
    let (value, inexact) = match x.class {
        Class::QuietNan | Class::SignalingNan => return invalid(greatest),
        Class::Zero => return Rounded::exact(0),
        Class::Subnormal | Class::Normal if x.exponent < 64 => {
            let significand = u128::from(x.significand) << 64;
            let (magnitude, inexact) = round_at(significand, (127 - x.exponent) as u32, x.sign, rounding);
            (if x.sign { -i128::from(magnitude) } else { i128::from(magnitude) }, inexact)
        }
        _ => return invalid(if x.sign { least } else { greatest }),
    };
    if value < least {
        invalid(least)
    } else if value > greatest {
        invalid(greatest)
    } else {
        Rounded { bits: int.register(value), flags: if inexact { NX } else { 0 } }
    }
}

/// The number nearest to an integer.
pub fn from_int(format: Format, register: u64, int: Int, rounding: Rounding) -> Rounded {
    let value = int.value(register);
    if value == 0 {
        return Rounded::exact(0);
    }
    round(format, Wide::normalized(value < 0, 127, value.unsigned_abs()), rounding)
}
