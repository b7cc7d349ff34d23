//! The bit-manipulation extensions Zba, Zbb, Zbc and Zbs.

use super::inst::Op;

/// The value for `rd`; `b` is the second register or the immediate.
#[inline]
pub(super) fn exec(op: Op, a: u64, b: u64) -> u64 {
    use Op::*;
    let (a32, b32) = (a as u32, b as u32);
    let low = u64::from(a32);
    let word = |value: u32| value as i32 as u64;
    let bit = 1_u64.wrapping_shl(b32);
    match op {
        Add_uw => low.wrapping_add(b),
        Sh1add => (a << 1).wrapping_add(b),
        Sh2add => (a << 2).wrapping_add(b),
        Sh3add => (a << 3).wrapping_add(b),
        Sh1add_uw => (low << 1).wrapping_add(b),
        Sh2add_uw => (low << 2).wrapping_add(b),
        Sh3add_uw => (low << 3).wrapping_add(b),
        Slli_uw => low.wrapping_shl(b32),

        Andn => a & !b,
        Orn => a | !b,
        Xnor => !(a ^ b),
        Clz => a.leading_zeros().into(),
        Clzw => a32.leading_zeros().into(),
        Ctz => a.trailing_zeros().into(),
        Ctzw => a32.trailing_zeros().into(),
        Cpop => a.count_ones().into(),
        Cpopw => a32.count_ones().into(),
        Max => (a as i64).max(b as i64) as u64,
        Maxu => a.max(b),
        Min => (a as i64).min(b as i64) as u64,
        Minu => a.min(b),
        Sext_b => a as i8 as u64,
        Sext_h => a as i16 as u64,
        Zext_h => u64::from(a as u16),
        Rol => a.rotate_left(b32 & 63),
        Rolw => word(a32.rotate_left(b32 & 31)),
        Ror | Rori => a.rotate_right(b32 & 63),
        Rorw | Roriw => word(a32.rotate_right(b32 & 31)),
        Orc_b => u64::from_le_bytes(a.to_le_bytes().map(|byte| if byte == 0 { 0 } else { 0xff })),
        Rev8 => a.swap_bytes(),

        Clmul => product(a, b) as u64,
        Clmulh => (product(a, b) >> 64) as u64,
        Clmulr => (product(a, b) >> 63) as u64,

        Bclr | Bclri => a & !bit,
        Bext | Bexti => a.wrapping_shr(b32) & 1,
        Binv | Binvi => a ^ bit,
        _ => a | bit,
    }
}

/// The product without carries.
fn product(a: u64, b: u64) -> u128 {
    // All ones if the bit is set: the time does not depend on the factors.
    let chosen = |bit: u32| (b >> bit & 1).wrapping_neg();
    (0..64).fold(0, |sum, bit| sum ^ u128::from(a & chosen(bit)) << bit)
}
