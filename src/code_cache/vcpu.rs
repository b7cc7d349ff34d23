//! A vCPU's way into the cache: its pin and its direct-mapped front.
//!
//! The front holds cells over many pins, but the epoch frees cells that are not needed. So each pin
//! first checks whether cells were swept since the last one, and clears the front if so
//! ([`super::table`] has the order of the steps).
//!
//! # Safety
//!
//! The front is plain memory. Only its vCPU's thread reads and writes it, in Rust and in the
//! embedder's emitted code, under its pin. A cell in it lives until the pin ends, and at least
//! until the first pin that finds that cells were swept.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;

use super::cache::CodeCache;
use super::entry::{EntryCell, EntryStubs};
use super::epoch::{Epoch, Participant};
use super::key::{FRONT_SLOTS, Key, NO_KEY, Payload};
use crate::error::Error;
use crate::sync::{Arc, Rule, left_out};

impl<P: Payload> CodeCache<P> {
    /// Asks every vCPU that is inside translated code now to leave, and returns when each has been
    /// outside since. A block made unreachable before this call runs on no vCPU after it. Call it
    /// for a change that takes away something that running blocks rely on, such as the access
    /// rights of their own page.
    ///
    /// Not to be called in a signal handler.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if this thread has a vCPU pinned itself: unpin it first. The
    /// same if it holds the guard of a fork.
    pub fn wait_for_vcpus(&self) -> Result<(), Error> {
        self.0.keeper.check()?;
        self.epoch().wait_for_pins()
    }

    /// A new vCPU, for an embedder with one thread that runs translated code, or with code that
    /// returns to its dispatcher soon. [`CodeCache::attach_vcpu_with`] takes a hook by which
    /// other threads ask it to return.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn attach_vcpu(&self) -> VCpu<P> {
        self.attach_vcpu_with(|| {})
    }

    /// A new vCPU with a hook. If the vCPU holds memory back for long, any thread may call
    /// `ask_to_leave`, more than once. It should make emitted code return to its dispatcher soon,
    /// so that the pin is renewed. It is enough to set a byte that emitted code polls whenever it
    /// goes on to another block. It is called under a lock, so it must not call into the cache, nor
    /// wait. After the vCPU was dropped it is not called again.
    ///
    /// If it panics, the other vCPUs are asked all the same. Then the call that asked passes the
    /// panic on.
    ///
    /// # Panics
    ///
    /// If this thread holds the guard of a fork ([`CodeCache::before_fork`]).
    #[track_caller]
    pub fn attach_vcpu_with(&self, ask_to_leave: impl Fn() + Send + Sync + 'static) -> VCpu<P> {
        self.0.keeper.assert();
        VCpu::new(self.clone(), self.0.invalidator.stubs, self.epoch().join(Box::new(ask_to_leave)))
    }
}

/// One slot of a front, for emitted code. The slot of a key is at index [`Key::front_index`]. If
/// `key` is the wanted key, jump to the address in `cell`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FrontSlot {
    /// The key, or `u64::MAX` if the slot is empty.
    pub key: u64,
    /// Its entry cell. An empty slot has a cell that leads to the dead stub.
    pub cell: *const EntryCell,
}

/// One vCPU, which keeps its cache alive. It may move between threads, and runs on one at a time.
pub struct VCpu<P: Payload> {
    cache: CodeCache<P>,
    stubs: EntryStubs,
    participant: Arc<Participant>,
    front: Box<[UnsafeCell<FrontSlot>]>,
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
        let empty = FrontSlot { key: NO_KEY, cell: cache.table().dead_cell() };
        let front = (0..FRONT_SLOTS).map(|_| UnsafeCell::new(empty)).collect();
        Self { cache, stubs, participant, front, sweeps: 0 }
    }

    #[cold]
    fn clear_front(&mut self) {
        let empty = FrontSlot { key: NO_KEY, cell: self.cache.table().dead_cell() };
        self.front.iter_mut().for_each(|slot| *slot.get_mut() = empty);
    }

    /// The cache that it runs from.
    pub fn cache(&self) -> &CodeCache<P> {
        &self.cache
    }

    /// The front's [`FRONT_SLOTS`] slots, for emitted code that runs under this vCPU's pin. Its
    /// address stays as long as the vCPU. If the vCPU is not pinned, code must not probe it: the
    /// cells may be freed, or belong to other keys by now.
    pub fn front(&self) -> *const FrontSlot {
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
            Epoch::leave_under_guard(&self.participant);
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
    /// The current entry of the valid block of `key`, plain or self-checking; its code lives until
    /// the pin is dropped. `None`: translate it ([`CodeCache::begin`]), or interpret.
    #[inline]
    pub fn lookup(&mut self, key: Key) -> Option<usize> {
        // SAFETY: the front belongs to this vCPU, which we have alone; its emitted code does not
        // run while Rust code does.
        let FrontSlot { key: found, cell } = unsafe { *self.vcpu.front[key.front_index()].get() };
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
        let found = FrontSlot { key: key.raw(), cell };
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
        unsafe { self.vcpu.cache.table().get(key) }
    }

    #[inline]
    fn leads_somewhere(&self, address: usize) -> bool {
        let EntryStubs { dead, pending } = self.vcpu.stubs;
        address != dead && address != pending
    }

    /// The front, as [`VCpu::front`].
    pub fn front(&self) -> *const FrontSlot {
        self.vcpu.front()
    }
}

impl<P: Payload> Drop for Pin<'_, P> {
    fn drop(&mut self) {
        self.vcpu.cache.epoch().unpin(&self.vcpu.participant);
    }
}
