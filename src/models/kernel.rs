//! The kernel as the models see it: a page is one atomic word, its protection and its byte
//! together.
//!
//! A store is one step. It finds the page writable and changes the byte, or it faults: then the
//! range's sink runs and the store is tried again. Protecting and un-protecting are barriers for
//! every thread, as the TLB shootdown is. A core that runs a load ahead of its store is
//! [`Kernel::store_behind`]: after a barrier on every thread, or a fault, it runs the load again.

use std::sync::{Mutex, PoisonError};

use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::Permit;
use crate::protection::{Access, FaultSink, Handled, KernelWrites, Mode, Opening, Protection, WriteFault};
use crate::sync::{Arc, AtomicU64, Ordering, memory_fence};
use crate::tracker::RegionOptions;

const PROTECTED: u64 = 1;
const BYTE_SHIFT: u32 = 8;

#[derive(Debug)]
pub(super) struct Kernel {
    mode: Mode,
    range: HostRange,
    page: PageSize,
    pages: Box<[AtomicU64]>,
    sink: SinkOf,
    /// The number of barriers that every thread passed.
    fences: AtomicU64,
    /// Not a part of the model.
    fails: std::sync::atomic::AtomicBool,
    refuses: Refuses,
    explicit_fetch: bool,
}

/// Openings that the kernel refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refuses {
    Nothing,
    /// To open a page alone, as `mprotect` does at the limit of mappings.
    SinglePages,
    /// To open any page, until the mechanism is abandoned: a check finds that it is lost.
    Everything,
}

/// The lock is held only for a clone.
struct SinkOf(Mutex<Option<Arc<dyn FaultSink>>>);

impl core::fmt::Debug for SinkOf {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SinkOf")
    }
}

impl SinkOf {
    fn set(&self, sink: Option<Arc<dyn FaultSink>>) {
        let old = core::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), sink);
        drop(old);
    }

    fn get(&self) -> Option<Arc<dyn FaultSink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Kernel {
    /// `pages` pages that hold the byte 0, at an address that is never accessed.
    pub(super) fn new(mode: Mode, pages: usize) -> Self {
        let page = PageSize::host();
        let range = HostRange::of_pages(HostAddr(page.bytes() * 16), pages, page);
        let words = (0..pages).map(|_| AtomicU64::new(0)).collect();
        Self {
            mode,
            range,
            page,
            pages: words,
            sink: SinkOf(Mutex::new(None)),
            fences: AtomicU64::new(0),
            fails: false.into(),
            refuses: Refuses::Nothing,
            explicit_fetch: false,
        }
    }

    /// The guest fetches its code explicitly.
    #[cfg(loom)]
    pub(super) fn with_explicit_fetch(mut self) -> Self {
        self.explicit_fetch = true;
        self
    }

    pub(super) fn that_refuses(mut self, refuses: Refuses) -> Self {
        self.refuses = refuses;
        self
    }

    fn open(&self, range: HostRange) -> Result<(), Error> {
        self.change(range, |word, _| {
            word.fetch_and(!PROTECTED, Ordering::AcqRel);
        })
    }

    /// The memory as a region at guest address 0.
    pub(super) fn region(&self) -> RegionOptions {
        RegionOptions::new(GuestAddr(0), self.range, self.mode).with_explicit_fetch(self.explicit_fetch)
    }

    /// The byte of `page`.
    pub(super) fn load(&self, page: usize) -> u8 {
        (self.pages[page].load(Ordering::Acquire) >> BYTE_SHIFT) as u8
    }

    /// A complete store by thread `tid`. Returns whether it faulted.
    pub(super) fn store(&self, page: usize, byte: u8, tid: u32) -> bool {
        let mut faulted = false;
        let word = &self.pages[page];
        let next = u64::from(byte) << BYTE_SHIFT;
        loop {
            // A read-modify-write sees the newest value: no store finds an old protection.
            let seen = word.fetch_or(0, Ordering::AcqRel);
            if seen & PROTECTED == 0 || self.mode == Mode::Deferred {
                if word.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return faulted;
                }
                continue;
            }
            let addr = HostAddr(self.range.start().0 + (page << self.page.shift()) + usize::from(byte));
            let handled = self.sink.get().map(|sink| sink.on_write(&WriteFault { addr, pc: None, tid }));
            assert_ne!(handled, Some(Handled::NotOurs), "the fault is the tracker's own");
            faulted = true;
        }
    }

    /// A store, `between` and a `look` in the program, by a core that runs the look before the store
    /// has an address. Returns the look's result.
    #[cfg(loom)]
    pub(super) fn store_behind<T>(
        &self,
        page: usize,
        byte: u8,
        tid: u32,
        between: impl Fn(),
        look: impl Fn() -> T,
    ) -> T {
        // Read-modify-writes have one order with the barriers.
        let fences = || self.fences.fetch_or(0, Ordering::AcqRel);
        let before = fences();
        let ahead = look();
        let faulted = self.store(page, byte, tid);
        let fenced = crate::sync::count_fences(between) > 0;
        if faulted || fenced || fences() != before { look() } else { ahead }
    }

    /// A store by thread `tid` to a byte of `page` that belongs to no block.
    pub(super) fn store_data(&self, page: usize, tid: u32) {
        if self.mode == Mode::Deferred {
            // No fault: the next harvest finds it.
            self.pages[page].fetch_and(!PROTECTED, Ordering::AcqRel);
            return;
        }
        while self.pages[page].fetch_or(0, Ordering::AcqRel) & PROTECTED != 0 {
            let addr = HostAddr(self.range.start().0 + (page << self.page.shift()) + self.page.bytes() / 2);
            let handled = self.sink.get().map(|sink| sink.on_write(&WriteFault { addr, pc: None, tid }));
            assert_ne!(handled, Some(Handled::NotOurs), "the fault is the tracker's own");
        }
    }

    /// A store by the kernel itself. Returns whether it succeeded.
    pub(super) fn kernel_store(&self, page: usize, byte: u8) -> bool {
        let word = &self.pages[page];
        let seen = word.fetch_or(0, Ordering::AcqRel);
        let next = u64::from(byte) << BYTE_SHIFT;
        seen & PROTECTED == 0 && word.compare_exchange(seen, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A store through the host's own view: nothing stops it and nothing orders it.
    #[cfg(loom)]
    pub(super) fn host_store(&self, page: usize, byte: u8) {
        let change = u64::from(self.load(page) ^ byte) << BYTE_SHIFT;
        self.pages[page].fetch_xor(change, Ordering::Relaxed);
    }

    /// The mechanism ends: it tells its sink, then every page is open.
    #[cfg(loom)]
    pub(super) fn lose(&self) {
        let sink = self.sink.get().unwrap_or_else(|| unreachable!("a region is attached"));
        Opening::behind_a_barrier(sink.on_lost(), || self.fence_threads())
            .and_then(|opening| self.abandon(self.range, opening))
            .unwrap_or_else(|_| unreachable!("it never fails"));
    }

    /// The next harvest fails, after it protected the pages again.
    #[cfg(loom)]
    pub(super) fn fail_next_harvest(&self) {
        self.fails.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    fn change(&self, range: HostRange, mut change: impl FnMut(&AtomicU64, HostRange)) -> Result<(), Error> {
        memory_fence(Ordering::SeqCst);
        let first = (range.start().0 - self.range.start().0) >> self.page.shift();
        for index in 0..range.len() >> self.page.shift() {
            let at = HostAddr(range.start().0 + (index << self.page.shift()));
            change(&self.pages[first + index], HostRange::page_of(at, self.page));
        }
        memory_fence(Ordering::SeqCst);
        Ok(())
    }
}

impl Protection for Kernel {
    fn mode(&self) -> Mode {
        self.mode
    }

    fn kernel_writes(&self) -> KernelWrites {
        if self.mode == Mode::Deferred { KernelWrites::Tracked } else { KernelWrites::Refused }
    }

    fn reserve(&self, _: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.sink.set(Some(sink.clone()));
        Ok(())
    }

    fn give_up(&self, _: HostRange) {
        self.sink.set(None);
    }

    fn attach(&self, _: HostRange, sink: &Arc<dyn FaultSink>, _: Access, _: Permit<'_>) -> Result<(), Error> {
        self.sink.set(Some(sink.clone()));
        Ok(())
    }

    fn detach(&self, range: HostRange, _: Permit<'_>) -> Result<(), Error> {
        self.open(range)?;
        self.sink.set(None);
        Ok(())
    }

    fn fence_threads(&self) -> Result<(), Error> {
        self.fences.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.change(range, |word, _| {
            word.fetch_or(PROTECTED, Ordering::AcqRel);
        })
    }

    fn unprotect(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        let is_single = range.len() == self.page.bytes();
        match self.refuses {
            Refuses::Nothing => self.open(range),
            Refuses::SinglePages if !is_single => self.open(range),
            _ => Err(Error::system("mprotect", range.start().0, range.len(), rustix::io::Errno::NOMEM)),
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.refuses == Refuses::Everything { Err(Error::TrackingLost) } else { Ok(()) }
    }

    fn abandon(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.open(range)
    }

    fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        if self.fails.swap(false, std::sync::atomic::Ordering::Relaxed) {
            self.protect(range)?;
            return Err(Error::TrackingLost);
        }
        self.change(range, |word, at| {
            if word.fetch_or(PROTECTED, Ordering::AcqRel) & PROTECTED == 0 {
                written(at);
            }
        })
    }

    fn set_access(&self, _: HostRange, _: Access) -> Result<(), Error> {
        Ok(())
    }
}
