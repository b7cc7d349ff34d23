//! Reports translations and writes to the listeners.
//!
//! The library names a writer by its host pc ([`codewarden::RecentWrite`]). For compiled code the
//! fault index finds the guest's pc, as long as the block exists. So the recorder reads the new
//! entries of the journal before a block is dropped, and only then can another block take its
//! memory. Interpreters note each store before they run it; a write that hit the noted bytes came
//! from that store.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use codewarden::tracker::Cause;
use codewarden::{CodeCache, RecentWrite};

use super::events::{Event, Listener};
use super::payload::Payload;
use crate::hart::Hart;
use crate::riscv::inst::Inst;
use crate::translate::{BlockObserver, CodeSpace, CompiledBlock};

/// A store that an interpreter is about to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pc: u64,
    address: u64,
    len_bytes: u64,
}

/// The listeners, and the writes that are not reported yet.
pub(super) struct Recorder {
    wants_blocks: bool,
    listeners: Vec<Box<dyn Listener>>,
    cache: &'static CodeCache<Payload>,
    space: Option<Arc<CodeSpace>>,
    /// Writes up to here were taken from the journal.
    taken: AtomicU64,
    /// Whether some of them may be pending.
    has_pending: AtomicBool,
    /// Writes among them without a known store.
    pending: Mutex<Vec<RecentWrite>>,
}

impl BlockObserver for Recorder {
    fn block_ends(&self) {
        if self.cache.writes_recorded() != self.taken.load(Ordering::Acquire) {
            self.report(|_| None);
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("taken", &self.taken).finish_non_exhaustive()
    }
}

impl Recorder {
    pub(super) fn new(
        listeners: Vec<Box<dyn Listener>>,
        cache: &'static CodeCache<Payload>,
        space: Option<Arc<CodeSpace>>,
    ) -> Self {
        Self {
            wants_blocks: listeners.iter().any(|listener| listener.wants_blocks()),
            listeners,
            cache,
            space,
            taken: AtomicU64::new(0),
            has_pending: AtomicBool::new(false),
            pending: Mutex::default(),
        }
    }

    /// The store that `inst`, at the hart's pc, makes.
    pub(super) fn store(&self, inst: &Inst, hart: &Hart) -> Option<Store> {
        let len_bytes = inst.op.stored_bytes();
        let address = inst.address(hart.x[usize::from(inst.rs1 & 31)]);
        (len_bytes != 0).then_some(Store { pc: hart.pc, address, len_bytes })
    }

    /// Whether some listener wants blocks.
    pub(super) fn wants_blocks(&self) -> bool {
        self.wants_blocks
    }

    /// Whether there is no write to report.
    fn is_quiet(&self) -> bool {
        // Another hart may have taken the write of this one from the journal.
        let all_taken = self.cache.writes_recorded() == self.taken.load(Ordering::Acquire);
        all_taken && !self.has_pending.load(Ordering::Relaxed)
    }

    /// `store` was run by an interpreter. Under a pin, as below.
    pub(super) fn stored(&self, store: Store) {
        if self.is_quiet() {
            return;
        }
        self.report(|write| match write.cause {
            Cause::Store { byte, .. } if byte.0.wrapping_sub(store.address) < store.len_bytes => Some(Some(store.pc)),
            _ => None,
        });
    }

    /// A block of so many bytes was made. Under a pin: blocks that stored are alive.
    pub(super) fn made(&self, pc: u64, len_bytes: usize) {
        if self.is_quiet() {
            return;
        }
        // The writers of these pages are known by now, or never will be.
        let pages = pc >> PAGE_SHIFT..=(pc + len_bytes as u64 - 1) >> PAGE_SHIFT;
        self.report(|write| pages.contains(&(write.page.0 >> PAGE_SHIFT)).then_some(None));
    }

    /// The block that was made is about to become reachable.
    pub(super) fn translated(&self, pc: u64, bytes: &[u8], host: Option<&CompiledBlock>, is_self_checking: bool) {
        self.publish(&Event::Translated { pc, bytes, host, is_self_checking });
    }

    pub(super) fn revived(&self, pc: u64, is_compiled: bool) {
        self.publish(&Event::Revived { pc, is_compiled });
    }

    pub(super) fn overwritten(&self, pc: u64, is_compiled: bool) {
        self.publish(&Event::Overwritten { pc, is_compiled });
    }

    pub(super) fn refused(&self, pc: u64) {
        self.publish(&Event::Refused(pc));
    }

    /// A hart leaves for Linux. Under a pin.
    pub(super) fn system_call(&self) {
        self.report(|_| None);
        self.publish(&Event::SystemCall);
    }

    /// The guest has ended: writes whose store is still unknown are reported without it.
    pub(super) fn finish(&self) {
        self.report(|_| Some(None));
    }

    /// Takes the new entries of the journal. Reports the writes of compiled code and those that
    /// `store_pc` knows; `None` leaves a write pending.
    fn report(&self, store_pc: impl Fn(&RecentWrite) -> Option<Option<u64>>) {
        let Some(mut pending) = self.lock_pending() else { return };
        let new = self.cache.recent_writes(self.taken.load(Ordering::Relaxed));
        if let Some(last) = new.last() {
            self.has_pending.store(true, Ordering::Relaxed);
            self.taken.store(last.sequence + 1, Ordering::Release);
        }
        let mut old = pending.len();
        pending.extend(new);
        pending.retain(|write| {
            // The block of an old write may be gone by now.
            let is_old = old > 0;
            old = old.saturating_sub(1);
            let compiled = match write.cause {
                Cause::Store { pc: Some(host), .. } if !is_old => {
                    self.space.as_ref().and_then(|space| space.guest_pc(host.0))
                }
                _ => None,
            };
            let known = compiled.map(Some).or_else(|| store_pc(write));
            if let Some(store_pc) = known {
                let by_this_hart = compiled.is_none() && store_pc.is_some();
                self.publish(&Event::Written { write, store_pc, by_this_hart });
            }
            known.is_none()
        });
        // Their pages are never translated from again.
        let overdue = pending.len().saturating_sub(PENDING_MAX);
        for write in pending.drain(..overdue) {
            self.publish(&Event::Written { write: &write, store_pc: None, by_this_hart: false });
        }
        self.has_pending.store(!pending.is_empty(), Ordering::Relaxed);
    }

    fn publish(&self, event: &Event<'_>) {
        self.listeners.iter().for_each(|listener| listener.on_event(event));
    }

    /// `None` if the lock stays held: for ever in a fork's child, if another hart had it. The child
    /// then reports less, and goes on.
    fn lock_pending(&self) -> Option<MutexGuard<'_, Vec<RecentWrite>>> {
        const TRIES: usize = 10_000;
        for _ in 0..TRIES {
            match self.pending.try_lock() {
                Ok(pending) => return Some(pending),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::yield_now(),
            }
        }
        None
    }
}

const PAGE_SHIFT: u32 = 12;
/// The most writes that may wait for their store.
const PENDING_MAX: usize = 64;
