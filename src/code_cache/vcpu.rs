//! A vCPU's way into the cache: its pin and its direct-mapped front.
//!
//! # Safety
//!
//! The front is plain memory that its vCPU's thread alone reads and writes, in
//! Rust and in the embedder's emitted code; cells stay as long as the cache, which
//! the vCPU keeps.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::fmt;
use std::ptr;

use super::{CodeCache, Key, Payload};
use crate::block::EntryCell;
use crate::epoch::Participant;
use crate::sync::Arc;

/// Entries of a front; a power of two.
pub const FRONT_ENTRIES: usize = 4096;

/// One entry of a front, for emitted code: the entry of a key is at index
/// [`Key::front_index`]; where `key` is the key that is looked for, jump to what
/// `cell` holds.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FrontEntry {
    /// The key, or `u64::MAX` where the entry is empty.
    pub key: u64,
    /// Its entry cell.
    pub cell: *const EntryCell,
}

/// One vCPU. It may move between threads, and runs on one at a time.
pub struct VCpu<P: Payload> {
    cache: CodeCache<P>,
    participant: Arc<Participant>,
    front: Box<[UnsafeCell<FrontEntry>]>,
}

// SAFETY: the front's pointers are to cells that the cache shares by design and
// that it keeps; all else is Send.
unsafe impl<P: Payload> Send for VCpu<P> {}

impl<P: Payload> fmt::Debug for VCpu<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VCpu").field("participant", &self.participant).finish_non_exhaustive()
    }
}

impl<P: Payload> VCpu<P> {
    pub(super) fn new(cache: CodeCache<P>, participant: Arc<Participant>) -> Self {
        let empty = FrontEntry { key: u64::MAX, cell: ptr::null() };
        let front = (0..FRONT_ENTRIES).map(|_| UnsafeCell::new(empty)).collect();
        Self { cache, participant, front }
    }

    /// The cache that it runs from.
    pub fn cache(&self) -> &CodeCache<P> {
        &self.cache
    }

    /// The front's [`FRONT_ENTRIES`] entries, for emitted code that runs under
    /// this vCPU's pin.
    pub fn front(&self) -> *const FrontEntry {
        self.front.as_ptr().cast()
    }

    /// Pins the vCPU: the code and the payload of every block that is looked up
    /// or jumped to from now on live until the pin is dropped. Unpin around guest
    /// system calls and whatever else may last.
    pub fn pin(&mut self) -> Pin<'_, P> {
        self.cache.epoch().pin(&self.participant);
        Pin { vcpu: self }
    }
}

impl<P: Payload> Drop for VCpu<P> {
    fn drop(&mut self) {
        self.cache.epoch().leave(&self.participant);
    }
}

/// A vCPU that may look up and run blocks.
#[derive(Debug)]
pub struct Pin<'a, P: Payload> {
    vcpu: &'a mut VCpu<P>,
}

impl<P: Payload> Pin<'_, P> {
    /// The entry of the valid block of `key`.
    pub fn lookup(&mut self, key: Key) -> Option<usize> {
        let slot = self.vcpu.front[key.front_index()].get();
        // SAFETY: the front is this vCPU's, which we have alone; no emitted code
        // of it runs while Rust code does.
        let front = unsafe { &mut *slot };
        if front.key != key.raw() {
            *front = FrontEntry { key: key.raw(), cell: self.cell(key)? };
        }
        // SAFETY: an entry with a key has a cell, which lives as long as the
        // cache.
        self.vcpu.cache.live(unsafe { &*front.cell }.load())
    }

    /// [`Pin::lookup`] past the front, which stays as it is: for keys that
    /// emitted code does not look for.
    pub fn lookup_shared(&mut self, key: Key) -> Option<usize> {
        self.vcpu.cache.live(self.cell(key)?.load())
    }

    fn cell(&self, key: Key) -> Option<&EntryCell> {
        // SAFETY: under a pin.
        unsafe { self.vcpu.cache.table().get(key) }.map(|cell| &cell.entry)
    }

    /// The front, as [`VCpu::front`].
    pub fn front(&self) -> *const FrontEntry {
        self.vcpu.front()
    }
}

impl<P: Payload> Drop for Pin<'_, P> {
    fn drop(&mut self) {
        self.vcpu.cache.epoch().unpin(&self.vcpu.participant);
    }
}
