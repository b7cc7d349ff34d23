//! Garbage: unreachable objects that a thread may still be inside, and the memory that they take.
//!
//! The cache **retires** an object to the epoch ([`super::epoch`]). The epoch returns it when it
//! may be freed.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::key::Payload;
use super::limit::{MemoryLimit, MemoryUse};
use super::record::Block;
use super::table::Swept;
use super::translation::Translation;
use crate::sync::Arc;

/// A box held as a raw pointer while readers may still see it. It is a box again when it is dropped
/// or taken back. Before the epoch has passed it cannot be one: a box would be the only way to its
/// contents, and the compiler may rely on that.
pub(crate) struct RawBox<T>(NonNull<T>);

// SAFETY: it owns a `T`.
unsafe impl<T: Send> Send for RawBox<T> {}

impl<T> RawBox<T> {
    /// # Safety
    ///
    /// `this` comes from a box, and no other code turns it back into one. Every reader has finished
    /// when the result is dropped or taken back.
    pub(super) unsafe fn new(this: NonNull<T>) -> Self {
        Self(this)
    }

    /// The box again.
    pub(super) fn into_box(self) -> Box<T> {
        // SAFETY: by the contract of `new`; `self` is forgotten.
        unsafe { Box::from_raw(ManuallyDrop::new(self).0.as_ptr()) }
    }
}

impl<T> Drop for RawBox<T> {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new`.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Objects that the epoch frees once no thread can reach them.
pub(crate) enum Garbage<P: Payload> {
    Block(RawBox<Block<P>>),
    Translation(Arc<Translation<P>>),
    Swept(Swept),
}

/// The memory that garbage takes. Each thread that retires or frees counts it, under no lock.
#[derive(Debug)]
pub(super) struct GarbageUse {
    blocks: AtomicUsize,
    payload_bytes: AtomicUsize,
    record_bytes: AtomicUsize,
    /// Beyond this, vCPUs are asked to leave.
    ask_beyond_bytes: AtomicUsize,
}

impl GarbageUse {
    pub(super) fn new(limit: MemoryLimit) -> Self {
        let [blocks, payload_bytes, record_bytes, ask_beyond_bytes] = [0; 4].map(AtomicUsize::new);
        let used = Self { blocks, payload_bytes, record_bytes, ask_beyond_bytes };
        used.set_limit(limit);
        used
    }

    /// Called before it is retired.
    pub(super) fn add(&self, used: MemoryUse) {
        self.blocks.fetch_add(used.blocks, Ordering::Relaxed);
        self.payload_bytes.fetch_add(used.payload_bytes, Ordering::Relaxed);
        self.record_bytes.fetch_add(used.record_bytes, Ordering::Relaxed);
    }

    /// Called when it is freed.
    pub(super) fn sub(&self, used: MemoryUse) {
        self.blocks.fetch_sub(used.blocks, Ordering::Relaxed);
        self.payload_bytes.fetch_sub(used.payload_bytes, Ordering::Relaxed);
        self.record_bytes.fetch_sub(used.record_bytes, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> MemoryUse {
        MemoryUse {
            blocks: self.blocks.load(Ordering::Relaxed),
            payload_bytes: self.payload_bytes.load(Ordering::Relaxed),
            record_bytes: self.record_bytes.load(Ordering::Relaxed),
        }
    }

    /// Makes it too much beyond an eighth of the whole limit.
    pub(super) fn set_limit(&self, limit: MemoryLimit) {
        let bytes = limit.live_bytes.saturating_add(limit.retained_bytes) / 8;
        self.ask_beyond_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn is_too_much(&self) -> bool {
        self.get().bytes() > self.ask_beyond_bytes.load(Ordering::Relaxed)
    }
}
