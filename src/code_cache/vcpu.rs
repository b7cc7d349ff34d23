//! A vCPU's way into the cache: its pin and its direct-mapped front.
//!
//! The front holds cells over many pins. A cell that is not needed is freed behind the epoch. So
//! each pin first checks whether cells were swept since the last one, and clears the front if so
//! ([`super::table`] has the order of the steps).
//!
//! # Safety
//!
//! The front is plain memory. Only its vCPU's thread reads and writes it, in Rust and in the
//! embedder's emitted code, under its pin. A cell in it lives until the pin ends, and until the pin
//! that finds that cells were swept meanwhile.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;

use super::record::Garbage;
use super::table::NO_KEY;
use super::{CodeCache, Key, Payload};
use crate::block::{EntryCell, EntryStubs};
use crate::epoch::{Epoch, Participant};
use crate::sync::{Arc, Rule, left_out};

/// Entries of a front; a power of two.
pub const FRONT_ENTRIES: usize = if cfg!(miri) { 64 } else { 4096 };

/// One entry of a front, for emitted code. The entry of a key is at index [`Key::front_index`]. If
/// `key` is the wanted key, jump to the address in `cell`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FrontEntry {
    /// The key, or `u64::MAX` if the entry is empty.
    pub key: u64,
    /// Its entry cell. An empty entry has a cell that leads to the dead stub.
    pub cell: *const EntryCell,
}

/// One vCPU, which keeps its cache alive. It may move between threads, and runs on one at a time.
pub struct VCpu<P: Payload> {
    cache: CodeCache<P>,
    stubs: EntryStubs,
    participant: Arc<Participant>,
    front: Box<[UnsafeCell<FrontEntry>]>,
    /// The number of the last sweep that the front knows of.
    sweeps: u64,
}

// SAFETY: the front's pointers are to cells that the cache shares by design; all else is Send.
unsafe impl<P: Payload> Send for VCpu<P> {}

impl<P: Payload> fmt::Debug for VCpu<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VCpu").field("participant", &self.participant).finish_non_exhaustive()
    }
}

impl<P: Payload> VCpu<P> {
    pub(super) fn new(cache: CodeCache<P>, stubs: EntryStubs, participant: Arc<Participant>) -> Self {
        let empty = FrontEntry { key: NO_KEY, cell: &cache.table().nobody().entry };
        let front = (0..FRONT_ENTRIES).map(|_| UnsafeCell::new(empty)).collect();
        Self { cache, stubs, participant, front, sweeps: 0 }
    }

    #[cold]
    fn clear_front(&mut self) {
        let empty = FrontEntry { key: NO_KEY, cell: &self.cache.table().nobody().entry };
        self.front.iter_mut().for_each(|entry| *entry.get_mut() = empty);
    }

    /// The cache that it runs from.
    pub fn cache(&self) -> &CodeCache<P> {
        &self.cache
    }

    /// The front's [`FRONT_ENTRIES`] entries, for emitted code that runs under this vCPU's pin. Its
    /// address stays as long as the vCPU. If the vCPU is not pinned, code must not probe it: the
    /// cells may be freed, or belong to other keys by now.
    pub fn front(&self) -> *const FrontEntry {
        self.front.as_ptr().cast()
    }

    /// Pins the vCPU: the code and the payload of every block that is looked up or jumped to from
    /// now on live until the pin is dropped. Unpin around guest system calls and anything else that
    /// may last.
    pub fn pin(&mut self) -> Pin<'_, P> {
        self.cache.epoch().pin(&self.participant);
        let sweeps = self.cache.table().sweeps();
        if sweeps != self.sweeps {
            self.sweeps = sweeps;
            if !left_out(Rule::ClearFronts) {
                self.clear_front();
            }
        }
        Pin { vcpu: self, _of_this_thread: PhantomData }
    }
}

impl<P: Payload> Drop for VCpu<P> {
    fn drop(&mut self) {
        if self.cache.stands_still_here() {
            Epoch::<Garbage<P>>::leave_under_guard(&self.participant);
        } else {
            self.cache.epoch().leave(&self.participant);
        }
    }
}

/// A vCPU that may look up and run blocks. It stays on the thread that pinned it: a fork's child
/// keeps the pins of its own thread and forgets the others.
///
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<codewarden::Pin<'static, ()>>();
/// ```
#[derive(Debug)]
pub struct Pin<'a, P: Payload> {
    vcpu: &'a mut VCpu<P>,
    _of_this_thread: PhantomData<*const ()>,
}

impl<P: Payload> Pin<'_, P> {
    /// The current entry of the valid block of `key`, plain or checked; its code lives until the
    /// pin is dropped. `None`: translate it ([`CodeCache::begin`]), or interpret.
    #[inline]
    pub fn lookup(&mut self, key: Key) -> Option<usize> {
        // SAFETY: the front belongs to this vCPU, which we have alone; its emitted code does not
        // run while Rust code does.
        let FrontEntry { key: found, cell } = unsafe { *self.vcpu.front[key.front_index()].get() };
        if found == key.raw() {
            // SAFETY: the cells of a front live under the pin.
            let address = unsafe { &*cell }.load();
            if self.leads_somewhere(address) {
                return Some(address);
            }
        }
        self.refill(key)
    }

    /// Called if the front does not have it, or has a cell that was swept since.
    fn refill(&mut self, key: Key) -> Option<usize> {
        let cell = self.cell(key)?;
        let found = FrontEntry { key: key.raw(), cell };
        // SAFETY: as in `lookup`.
        unsafe { *self.vcpu.front[key.front_index()].get() = found };
        let address = cell.load();
        self.leads_somewhere(address).then_some(address)
    }

    /// [`Pin::lookup`] without the front, which stays as it is: for keys that emitted code does not
    /// look for.
    #[inline]
    pub fn lookup_shared(&mut self, key: Key) -> Option<usize> {
        let address = self.cell(key)?.load();
        self.leads_somewhere(address).then_some(address)
    }

    #[inline]
    fn cell<'a>(&self, key: Key) -> Option<&'a EntryCell> {
        // SAFETY: under a pin, which the callers hold.
        unsafe { self.vcpu.cache.table().get(key) }.map(|cell| &cell.entry)
    }

    #[inline]
    fn leads_somewhere(&self, address: usize) -> bool {
        let EntryStubs { dead, pending } = self.vcpu.stubs;
        address != dead && address != pending
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
