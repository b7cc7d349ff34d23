//! The blocks that were committed and not reaped, in the order in which they became reachable.
//! Evictions take from one end; the block that was committed or revived last is at the other. The
//! list goes through the records, so that taking a block out of its middle costs the same however
//! many there are.
//!
//! # Safety
//!
//! Records are in the queue from their commit until they are reaped, and are freed later. The queue
//! is changed, and the records' neighbours are read, only under the commit lock.
#![allow(unsafe_code)]

use std::mem::replace;
use std::ptr::NonNull;

use super::key::Payload;
use super::limit::MemoryUse;
use super::record::{Block, Neighbours};

/// The queue.
pub(super) struct Live<P: Payload> {
    oldest: Option<NonNull<Block<P>>>,
    newest: Option<NonNull<Block<P>>>,
    used: MemoryUse,
}

impl<P: Payload> Live<P> {
    pub(super) fn new() -> Self {
        Self { oldest: None, newest: None, used: MemoryUse::default() }
    }

    /// The memory that all blocks take.
    pub(super) fn memory_use(&self) -> MemoryUse {
        self.used
    }

    /// Enters `block` as the newest.
    ///
    /// # Safety
    ///
    /// It is in no queue, and lives until it was taken out.
    pub(super) unsafe fn add(&mut self, block: NonNull<Block<P>>) {
        // SAFETY: by this function's contract.
        let shared = unsafe { block.as_ref() };
        shared.neighbours.older.set(self.newest);
        match self.newest {
            // SAFETY: in the queue.
            Some(newest) => unsafe { newest.as_ref() }.neighbours.newer.set(Some(block)),
            None => self.oldest = Some(block),
        }
        self.newest = Some(block);
        self.used += shared.memory_use();
    }

    /// Takes `block` out. Returns the address by which it was added. The block may be freed only by
    /// that address, not by one from a reference to it.
    ///
    /// # Safety
    ///
    /// `block` is in the queue.
    pub(super) unsafe fn remove(&mut self, block: &Block<P>) -> NonNull<Block<P>> {
        let Neighbours { older, newer } = &block.neighbours;
        let added = match older.get() {
            // SAFETY: in the queue.
            Some(older) => unsafe { older.as_ref() }.neighbours.newer.replace(newer.get()),
            None => replace(&mut self.oldest, newer.get()),
        };
        match newer.get() {
            // SAFETY: in the queue.
            Some(newer) => unsafe { newer.as_ref() }.neighbours.older.set(older.get()),
            None => self.newest = older.get(),
        }
        self.used -= block.memory_use();
        added.expect("what is before it in the queue leads to it")
    }

    /// All blocks, the oldest first.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = &Block<P>> {
        let newer = |&block: &NonNull<Block<P>>| {
            // SAFETY: in the queue, which is borrowed.
            unsafe { block.as_ref() }.neighbours.newer.get()
        };
        // SAFETY: as above.
        std::iter::successors(self.oldest, newer).map(|block| unsafe { block.as_ref() })
    }

    /// Takes the newest out, to be freed: no other thread uses the cache any more.
    pub(super) fn pop(&mut self) -> Option<NonNull<Block<P>>> {
        let block = self.newest?;
        // SAFETY: in the queue.
        unsafe { self.remove(block.as_ref()) };
        Some(block)
    }
}
