//! The host code of one block, and its memory.
//!
//! # Safety
//!
//! The unsafe block reads the compiled block's own allocation, which nothing writes to any more.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use codewarden::code_buffer::Allocation;

use super::code_space::{CodeSpace, behind};
use super::error::TranslateError;
use super::fault_index::FaultTable;
use crate::riscv::inst::Inst;

/// Host code of one block. Dropping it frees the code: by then no hart may be in it or find it.
#[derive(Debug)]
pub struct CompiledBlock(pub(super) Box<Parts>);

/// The parts of a block, in one place that does not move: the index has the address of its fault
/// table. A large program has a few hundred thousand blocks, so the parts are small.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) space: Arc<CodeSpace>,
    pub(super) code: Allocation,
    pub(super) faults: FaultTable,
    /// Compiled code holds their addresses.
    pub(super) insts: Box<[Inst]>,
    /// The length of the compiler's part.
    pub(super) function_bytes: u32,
    /// The length of the self-checking entry's instructions; 0 if there is none.
    pub(super) check_bytes: u32,
}

// Two of the allocator's words less than the next size of its own.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Parts>() <= 104);

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
    Allocation::publish_all(blocks.iter().map(|block| &block.0.0.code)).map_err(TranslateError::Publish)?;
    Ok(blocks.into_iter().map(|block| block.0).collect())
}

impl CompiledBlock {
    /// The plain value of an entry cell for this block.
    pub fn entry(&self) -> usize {
        self.0.code.rx() as usize
    }

    /// The value while a page of the block is self-checking.
    pub fn self_checking_entry(&self) -> Option<usize> {
        self.check().map(|check| self.entry() + check.start)
    }

    fn check(&self) -> Option<Range<usize>> {
        let start = behind(self.0.function_bytes as usize);
        (self.0.check_bytes != 0).then(|| start..start + self.0.check_bytes as usize)
    }

    /// Length of the code, with the self-checking entry.
    pub fn len_bytes(&self) -> usize {
        self.0.code.len()
    }

    /// The bytes that it owns: its code and its tables.
    pub fn owned_bytes(&self) -> usize {
        let Parts { code, faults, insts, .. } = &*self.0;
        code.len() + size_of::<Parts>() + faults.points.heap_bytes() + size_of_val(&**insts)
    }

    /// The instructions at the plain entry and at the self-checking one; each with its address.
    pub fn code(&self) -> impl Iterator<Item = (usize, Vec<u8>)> {
        let bytes = self.bytes();
        [Some(0..self.0.function_bytes as usize), self.check()]
            .into_iter()
            .flatten()
            .map(move |range| (self.entry() + range.start, bytes[range].to_vec()))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the executable view of the whole allocation, which is no longer written to.
        unsafe { std::slice::from_raw_parts(self.0.code.rx(), self.0.code.len()) }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(observer) = self.space.block_observer() {
            // Afterwards the index no longer finds the block's stores.
            observer.block_ends();
        }
        self.space.faults.remove(self.code.rx() as usize);
    }
}
