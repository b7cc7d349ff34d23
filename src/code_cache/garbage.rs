//! Garbage: unreachable objects that a thread may still be inside, and the memory that they take.
//!
//! The cache **retires** an object. The epoch ([`super::epoch`]) tells when it may be freed. The
//! commit lock guards the queue, but nothing is dropped under it: payloads are the embedder's code.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use smallvec::SmallVec;

use super::epoch::{Epoch, Retired};
use super::key::Payload;
use super::limit::{MemoryLimit, MemoryUse};
use super::record::Block;
use super::table::Swept;
use super::translation::Translation;

/// A box held as a raw pointer while readers may still see it. It is a box again when it is dropped.
/// Before the epoch has passed it cannot be one: a box would be the only way to its contents, and
/// the compiler may rely on that.
pub(crate) struct RawBox<T>(NonNull<T>);

// SAFETY: it owns a `T`.
unsafe impl<T: Send> Send for RawBox<T> {}

impl<T> RawBox<T> {
    /// # Safety
    ///
    /// `this` comes from a box, and no other code turns it back into one. Every reader has finished
    /// when the result is dropped.
    pub(super) unsafe fn new(this: NonNull<T>) -> Self {
        Self(this)
    }

    pub(super) fn get(&self) -> &T {
        // SAFETY: it owns a `T`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for RawBox<T> {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Commits leave this many objects to a later one. Not more: allocators have places at hand for a
/// few objects of a size.
const DUE_OBJECTS: usize = if cfg!(loom) { 1 } else { 8 };

/// The same, in bytes: their records and payloads.
const DUE_BYTES: usize = 8 << 10;

/// Objects that the epoch frees once no thread can reach them.
pub(crate) enum Garbage<P: Payload> {
    /// With its translation, unless that has another owner.
    Block(RawBox<Block<P>>),
    Translation(Box<Translation<P>>),
    Swept(Box<Swept>),
}

impl<P: Payload> Garbage<P> {
    /// The memory that it takes, with that of the translation that goes with it.
    pub(super) fn memory_use(&self) -> MemoryUse {
        match self {
            Self::Block(block) => block.get().memory_use(),
            Self::Translation(translation) => translation.memory_use(),
            Self::Swept(_) => MemoryUse::default(),
        }
    }
}

/// The garbage of a cache, under its commit lock.
pub(super) struct GarbageQueue<P: Payload> {
    retired: Retired<Garbage<P>>,
    used: MemoryUse,
    /// Beyond this, vCPUs are asked to leave.
    ask_beyond_bytes: usize,
}

impl<P: Payload> GarbageQueue<P> {
    pub(super) fn new(limit: MemoryLimit) -> Self {
        let mut queue = Self { retired: Retired::new(), used: MemoryUse::default(), ask_beyond_bytes: 0 };
        queue.set_limit(limit);
        queue
    }

    /// Frees `garbage` once no thread can reach it. New visitors cannot reach it already.
    pub(super) fn retire(&mut self, garbage: Garbage<P>) {
        self.used += garbage.memory_use();
        self.retired.add(garbage);
    }

    /// Whether a commit should collect it. A collection costs as much for one object as for some.
    pub(super) fn is_due(&self) -> bool {
        self.retired.len() >= DUE_OBJECTS || self.used.bytes() >= DUE_BYTES
    }

    /// Hands out the garbage that no thread can reach any more.
    pub(super) fn collect(&mut self, epoch: &Epoch) -> SmallVec<[Garbage<P>; 4]> {
        let free = epoch.collect(&mut self.retired);
        free.iter().for_each(|garbage| self.used -= garbage.memory_use());
        free
    }

    /// Hands out all garbage, of a cache that no thread uses any more.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Garbage<P>> {
        self.retired.drain()
    }

    /// The memory that all of it takes.
    pub(super) fn memory_use(&self) -> MemoryUse {
        self.used
    }

    /// Makes it too much beyond an eighth of the whole limit.
    pub(super) fn set_limit(&mut self, limit: MemoryLimit) {
        self.ask_beyond_bytes = limit.live_bytes.saturating_add(limit.retained_bytes) / 8;
    }

    /// Whether vCPUs hold so much back that they have to leave.
    pub(super) fn is_too_much(&self) -> bool {
        self.used.bytes() > self.ask_beyond_bytes || self.retired.is_held_back()
    }
}
