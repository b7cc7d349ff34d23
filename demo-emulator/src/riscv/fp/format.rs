//! The formats, the parts of their numbers, and the rounding modes and exception flags of
//! RISC-V.

/// Invalid operation.
pub const NV: u8 = 16;
/// Division by zero.
pub const DZ: u8 = 8;
/// Overflow.
pub const OF: u8 = 4;
/// Underflow.
pub const UF: u8 = 2;
/// Inexact.
pub const NX: u8 = 1;

/// A rounding mode; the values are those of `frm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Rounding {
    /// To nearest, ties to even.
    Rne = 0,
    /// Towards zero.
    Rtz = 1,
    /// Down.
    Rdn = 2,
    /// Up.
    Rup = 3,
    /// To nearest, ties away from zero.
    Rmm = 4,
}

impl Rounding {
    /// Every mode.
    pub const ALL: [Self; 5] = [Self::Rne, Self::Rtz, Self::Rdn, Self::Rup, Self::Rmm];

    /// The mode of an instruction's field (7: that of `frm`), if there is one.
    pub fn resolve(rm: u8, frm: u8) -> Option<Self> {
        Self::ALL.get(usize::from(if rm == 7 { frm } else { rm })).copied()
    }
}

/// A result and the exceptions that it raised.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rounded {
    /// The bits of the result, in its own format.
    pub bits: u64,
    /// Exception flags.
    pub flags: u8,
}

impl Rounded {
    pub(super) fn exact(bits: u64) -> Self {
        Self { bits, flags: 0 }
    }
}

/// A binary interchange format. Numbers are passed as the low bits of a `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Format {
    pub(super) fraction_bits: u32,
    pub(super) exponent_bits: u32,
}

/// Binary16: only converted and moved.
pub const HALF: Format = Format { fraction_bits: 10, exponent_bits: 5 };
/// Binary32.
pub const SINGLE: Format = Format { fraction_bits: 23, exponent_bits: 8 };
/// Binary64.
pub const DOUBLE: Format = Format { fraction_bits: 52, exponent_bits: 11 };

/// The kind of number in the bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Zero,
    Subnormal,
    Normal,
    Infinite,
    QuietNan,
    SignalingNan,
}

/// A number taken apart. If it is finite and not zero, its value is
/// `significand * 2^(exponent - 63)`, with the leading one in bit 63.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    pub(super) class: Class,
    pub(super) sign: bool,
    pub(super) exponent: i32,
    pub(super) significand: u64,
}

impl Number {
    pub(super) fn is_nan(self) -> bool {
        matches!(self.class, Class::QuietNan | Class::SignalingNan)
    }
}

impl Format {
    pub(super) const fn bias(self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    /// The sign bit.
    pub const fn sign(self) -> u64 {
        1 << (self.fraction_bits + self.exponent_bits)
    }

    /// Positive infinity.
    pub const fn infinity(self) -> u64 {
        ((1 << self.exponent_bits) - 1) << self.fraction_bits
    }

    /// The NaN that every operation gives.
    pub const fn canonical_nan(self) -> u64 {
        self.infinity() | 1 << (self.fraction_bits - 1)
    }

    /// Positive or negative, by `sign`.
    pub(super) const fn signed(self, sign: bool, magnitude: u64) -> u64 {
        if sign { magnitude | self.sign() } else { magnitude }
    }

    /// Whether the bits are a NaN.
    pub const fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    pub(super) const fn is_signaling(self, bits: u64) -> bool {
        self.is_nan(bits) && bits >> (self.fraction_bits - 1) & 1 == 0
    }

    /// The answer to NaN operands: the canonical NaN, invalid if `signaling`.
    pub(super) const fn nan(self, signaling: bool) -> Rounded {
        Rounded { bits: self.canonical_nan(), flags: if signaling { NV } else { 0 } }
    }

    pub(super) fn unpack(self, bits: u64) -> Number {
        let sign = bits & self.sign() != 0;
        let fraction = bits & ((1 << self.fraction_bits) - 1);
        let biased = (bits & self.infinity()) >> self.fraction_bits;
        let special = |class| Number { class, sign, exponent: 0, significand: 0 };
        if bits & self.infinity() == self.infinity() {
            return special(match fraction {
                0 => Class::Infinite,
                _ if self.is_signaling(bits) => Class::SignalingNan,
                _ => Class::QuietNan,
            });
        }
        if biased == 0 {
            if fraction == 0 {
                return special(Class::Zero);
            }
            let shift = fraction.leading_zeros();
            let exponent = 1 - self.bias() - self.fraction_bits as i32 + 63 - shift as i32;
            return Number { class: Class::Subnormal, sign, exponent, significand: fraction << shift };
        }
        let significand = (fraction | 1 << self.fraction_bits) << (63 - self.fraction_bits);
        Number { class: Class::Normal, sign, exponent: biased as i32 - self.bias(), significand }
    }
}
