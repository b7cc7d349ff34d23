//! The blocks of the code cache: their host code or decoded instructions, and their keys.

use codewarden::Key;

use super::tier0::DecodedBlock;
use crate::translate::CompiledBlock;

/// The payload of a cached block.
#[derive(Debug)]
pub enum Payload {
    /// Tier 0's; boxed, since the block's entry is its address.
    Decoded(Box<DecodedBlock>),
    /// The compiler's.
    Compiled(CompiledBlock),
}

impl Payload {
    pub(super) fn compiled(&self) -> Option<&CompiledBlock> {
        match self {
            Self::Compiled(block) => Some(block),
            Self::Decoded(_) => None,
        }
    }

    /// The bytes that it owns.
    pub(super) fn owned_bytes(&self) -> usize {
        match self {
            Self::Decoded(block) => block.owned_bytes(),
            Self::Compiled(block) => block.owned_bytes(),
        }
    }
}

/// The key of the compiled block at `pc`.
pub(super) fn compiled_key(pc: u64) -> Key {
    Key::new(pc)
}

/// The key of the decoded block at `pc`: instructions have even addresses.
pub(super) fn decoded_key(pc: u64) -> Key {
    Key::new(pc | 1)
}
