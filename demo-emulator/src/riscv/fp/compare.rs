//! Comparison, minimum and maximum, and classification: the operations that never round.

use super::format::{Class, Format, NV, Rounded};

/// A relation that holds or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Relation {
    Equal,
    Less,
    LessOrEqual,
}

/// A number of the same order as the value, -0 below +0.
fn order(format: Format, bits: u64) -> i64 {
    let magnitude = (bits & (format.sign() - 1)) as i64;
    if bits & format.sign() == 0 { magnitude } else { -1 - magnitude }
}

/// Whether the relation holds. With a NaN it never does; a signaling NaN is invalid, and for the
/// relations of order a quiet one too.
pub(super) fn holds(format: Format, relation: Relation, a: u64, b: u64) -> Rounded {
    if format.is_nan(a) || format.is_nan(b) {
        let signaling = format.is_signaling(a) || format.is_signaling(b);
        let invalid = signaling || relation != Relation::Equal;
        return Rounded { bits: 0, flags: if invalid { NV } else { 0 } };
    }
    let both_zero = (a | b) & (format.sign() - 1) == 0;
    let (less, equal) = (!both_zero && order(format, a) < order(format, b), both_zero || a == b);
    Rounded::exact(u64::from(match relation {
        Relation::Equal => equal,
        Relation::Less => less,
        Relation::LessOrEqual => less || equal,
    }))
}

/// The lesser or the greater number, -0 below +0; of a NaN and a number the
/// number (minimumNumber and maximumNumber of IEEE 754-2019).
pub(super) fn min_max(format: Format, maximum: bool, a: u64, b: u64) -> Rounded {
    let flags = if format.is_signaling(a) || format.is_signaling(b) { NV } else { 0 };
    let bits = match (format.is_nan(a), format.is_nan(b)) {
        (true, true) => format.canonical_nan(),
        (true, false) => b,
        (false, true) => a,
        (false, false) if (order(format, a) < order(format, b)) != maximum => a,
        (false, false) => b,
    };
    Rounded { bits, flags }
}

/// The mask of FCLASS.
pub(super) fn classify(format: Format, bits: u64) -> u64 {
    let number = format.unpack(bits);
    let (negative, positive) = match number.class {
        Class::Infinite => (0, 7),
        Class::Normal => (1, 6),
        Class::Subnormal => (2, 5),
        Class::Zero => (3, 4),
        Class::SignalingNan => (8, 8),
        Class::QuietNan => (9, 9),
    };
    1 << if number.sign { negative } else { positive }
}
