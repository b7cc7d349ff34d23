//! The blocks of the code cache: their host code or decoded instructions, and their keys.

use std::fmt;
use std::sync::Arc;

use codewarden::Key;

use super::tier0::DecodedBlock;
use crate::translate::CompiledBlock;

/// The payload of a cached block.
#[derive(Debug)]
pub enum Payload {
    /// Tier 0's; boxed, since the block's entry is its address.
    Decoded(Box<DecodedBlock>),
    /// The compiler's; boxed for the same reason: links are found through it.
    Compiled(Box<Compiled>),
}

/// A compiled block.
#[derive(Debug)]
pub struct Compiled {
    /// Its host code.
    pub block: CompiledBlock,
    pub(super) recorder: Option<Arc<dyn ReportWrites>>,
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // Afterwards the writing instruction can no longer be found.
        if let Some(recorder) = &self.recorder {
            recorder.report_writes();
        }
    }
}

impl Payload {
    pub(super) fn compiled(&self) -> Option<&CompiledBlock> {
        match self {
            Self::Compiled(compiled) => Some(&compiled.block),
            Self::Decoded(_) => None,
        }
    }

    /// The bytes that it owns.
    pub(super) fn owned_bytes(&self) -> usize {
        match self {
            Self::Decoded(block) => block.owned_bytes(),
            Self::Compiled(compiled) => size_of::<Compiled>() + compiled.block.owned_bytes(),
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

/// Reports new writes. A trait, since blocks hold the recorder and the recorder holds the blocks
/// through its cache.
pub(super) trait ReportWrites: fmt::Debug + Send + Sync {
    /// A compiled block is about to go, and its known stores with it.
    fn report_writes(&self);
}
