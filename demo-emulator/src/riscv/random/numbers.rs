//! A source of choices, and operands that change an operation's behaviour.

use crate::riscv::fp;

/// A source of choices. The same seed gives the same numbers everywhere (SplitMix64). If it is made
/// from bytes, they are the first choices, so changing one byte changes one of them; later choices
/// depend on all bytes.
#[derive(Clone, Debug)]
pub struct Random {
    given: Vec<u8>,
    /// How many bytes were used.
    used: usize,
    state: u64,
}

impl Random {
    /// Begins with a seed.
    pub fn new(seed: u64) -> Self {
        Self { given: Vec::new(), used: 0, state: seed }
    }

    /// Begins with choices.
    pub fn of(choices: &[u8]) -> Self {
        // FNV-1a.
        let mix = |state: u64, &byte: &u8| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        Self { given: choices.to_vec(), used: 0, state: choices.iter().fold(0xcbf2_9ce4_8422_2325, mix) }
    }

    /// Any 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.given(8).unwrap_or_else(|| self.mixed())
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        let bits = u64::BITS - (bound - 1).leading_zeros();
        self.given(bits.div_ceil(8) as usize).unwrap_or_else(|| self.mixed()) % bound
    }

    /// A number from the next `len_bytes` of the given bytes.
    fn given(&mut self, len_bytes: usize) -> Option<u64> {
        let end = self.used + len_bytes;
        let bytes = self.given.get(self.used..end).filter(|bytes| !bytes.is_empty())?;
        let number = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
        self.used = end;
        Some(number)
    }

    fn mixed(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// True once in `n` on average.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer operand: often at an edge of some width.
    pub fn integer(&mut self) -> u64 {
        match self.below(4) {
            0 => self.bits(),
            1 => self.bits() as i32 as u64,
            2 => self.below(33).wrapping_sub(16),
            _ => {
                let edge = 1_u64 << self.below(64);
                edge.wrapping_add(self.below(3)).wrapping_sub(1)
            }
        }
    }

    /// A floating-point operand of a format with the given widths: often one that changes an
    /// operation's behaviour.
    fn float(&mut self, exponent_bits: u32, fraction_bits: u32) -> u64 {
        let greatest = (1 << exponent_bits) - 1;
        let bias: u64 = greatest >> 1;
        let near = bias.min(65);
        let exponent = match self.below(8) {
            0 => 0,
            1 => greatest,
            2 => 1 + self.below(3),
            3 => greatest - 1 - self.below(3),
            4..=6 => bias + self.below(2 * near) - near,
            _ => self.below(greatest),
        };
        let all = (1 << fraction_bits) - 1;
        let fraction = match self.below(6) {
            0 => 0,
            1 => all,
            2 => self.below(4),
            3 => all - self.below(4),
            4 => 1 << self.below(fraction_bits.into()),
            _ => self.bits() & all,
        };
        self.below(2) << (exponent_bits + fraction_bits) | exponent << fraction_bits | fraction
    }

    /// A single-precision operand.
    pub fn single(&mut self) -> u32 {
        self.float(8, 23) as u32
    }

    /// A double-precision operand.
    pub fn double(&mut self) -> u64 {
        self.float(11, 52)
    }

    /// The contents of a floating-point register: a double, a boxed single, seldom a boxed half, or
    /// one of these that is not boxed.
    pub fn register(&mut self) -> u64 {
        match self.below(32) {
            0 => self.single().into(),
            1 => 0xffff_ffff_0000_0000 | self.float(5, 10),
            2..4 => 0xffff_ffff_ffff_0000 | self.float(5, 10),
            4..17 => fp::boxed(self.single()),
            _ => self.double(),
        }
    }
}
