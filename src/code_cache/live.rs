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

use std::cell::Cell;
use std::mem::replace;
use std::ptr::NonNull;

use super::Payload;
use super::limit::Weight;
use super::record::Block;

/// The queue's part of a record.
pub(super) struct Neighbours<P: Payload> {
    older: Cell<Option<NonNull<Block<P>>>>,
    newer: Cell<Option<NonNull<Block<P>>>>,
}

impl<P: Payload> Neighbours<P> {
    /// The part of a record that is in no queue.
    pub(super) fn none() -> Self {
        Self { older: Cell::new(None), newer: Cell::new(None) }
    }
}

pub(super) struct Live<P: Payload> {
    oldest: Option<NonNull<Block<P>>>,
    newest: Option<NonNull<Block<P>>>,
    weight: Weight,
}

impl<P: Payload> Live<P> {
    pub(super) fn new() -> Self {
        Self { oldest: None, newest: None, weight: Weight::default() }
    }

    /// The weight of all blocks.
    pub(super) fn weight(&self) -> Weight {
        self.weight
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
        self.weight += shared.weight();
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
        self.weight -= block.weight();
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
