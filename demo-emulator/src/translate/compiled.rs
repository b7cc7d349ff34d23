//! The host code of one block, and its memory.
//!
//! # Safety
//!
//! The unsafe block reads the compiled block's own allocation, which nothing writes to any more.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use codewarden::code_buffer::Allocation;

use super::code_space::CodeSpace;
use super::error::TranslateError;
use super::fault_index::FaultTable;
use crate::riscv::inst::Inst;

/// Host code of one block. Dropping it frees the code: by then no hart may be in it or find it.
#[derive(Debug)]
pub struct CompiledBlock {
    pub(super) space: Arc<CodeSpace>,
    pub(super) code: Allocation,
    /// The entry's address.
    pub(super) entry: usize,
    /// The length of the compiler's part.
    pub(super) function_bytes: usize,
    /// The instructions of the self-checking entry.
    pub(super) check: Option<Range<usize>>,
    /// Boxed: the index holds its address.
    pub(super) faults: Box<FaultTable>,
    /// Compiled code holds their addresses.
    pub(super) insts: Box<[Inst]>,
}

/// A block whose code may not be run yet: other processors may have fetched the bytes that were there
/// before it.
#[derive(Debug)]
#[must_use = "the code cannot be run before it is published"]
pub struct UnpublishedBlock(pub(super) CompiledBlock);

/// Publishes the code of these blocks by one barrier.
///
/// # Errors
///
/// [`TranslateError::Publish`] if other processors could not be made to see the code.
pub fn publish_all(blocks: Vec<UnpublishedBlock>) -> Result<Vec<CompiledBlock>, TranslateError> {
    Allocation::publish_all(blocks.iter().map(|block| &block.0.code)).map_err(TranslateError::Publish)?;
    Ok(blocks.into_iter().map(|block| block.0).collect())
}

impl CompiledBlock {
    /// The plain value of an entry cell for this block.
    pub fn entry(&self) -> usize {
        self.entry
    }

    /// The value while a page of the block is self-checking.
    pub fn self_checking_entry(&self) -> Option<usize> {
        self.check.as_ref().map(|check| self.entry() + check.start)
    }

    /// Length of the code, with the self-checking entry.
    pub fn len_bytes(&self) -> usize {
        self.code.len()
    }

    /// The bytes that it owns: its code and its tables.
    pub fn owned_bytes(&self) -> usize {
        let beside_bytes = size_of_val(&*self.faults) + size_of_val(&*self.faults.points) + size_of_val(&*self.insts);
        self.code.len() + beside_bytes
    }

    /// The instructions at the plain entry and at the self-checking one; each with its address.
    pub fn code(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let bytes = self.bytes();
        [Some(0..self.function_bytes), self.check.clone()]
            .into_iter()
            .flatten()
            .map(move |range| (self.entry() + range.start, bytes[range].to_vec()))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the executable view of the whole allocation, which is no longer written to.
        unsafe { std::slice::from_raw_parts(self.code.rx(), self.code.len()) }
    }
}

impl Drop for CompiledBlock {
    fn drop(&mut self) {
        self.space.faults.remove(self.faults.start);
    }
}
