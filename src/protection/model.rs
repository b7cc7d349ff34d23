//! A software mechanism without system calls, for tests and model checkers.
//!
//! Memory belongs to the test; only the protection of each page is here. A store is
//! [`Model::store`]. It calls the sink as long as the page is protected, as the kernel
//! tries a store again. The test changes its own cell in the closure, in the same step
//! in which the page is seen to be writable. So a store either retires before a protect
//! or is noticed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use rustix::io::Errno;

use super::contract::{Access, KernelWrites, Opening, Protection};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sync::{Mutex, MutexGuard};
use crate::sys::ranges::{FaultSink, Handled, WriteFault};

/// A page of the modelled kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Page {
    attached: bool,
    protected: bool,
    access: Access,
    /// Its mapping cannot be attached.
    refused: bool,
}

const FRESH: Page = Page { attached: false, protected: false, access: Access::ReadWrite, refused: false };

/// The moments at which a test may put a pause, or another thread's turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Moment {
    /// A store has faulted and its sink is not called yet.
    BeforeSink,
    /// The sink is done and the store is not tried again yet.
    AfterSink,
    /// A protect, an un-protect or a harvest is about to change the pages.
    BeforeChange,
    /// The pages were changed and the call has not returned yet.
    AfterChange,
}

type Pause = Box<dyn Fn(Moment) + Send + Sync>;

/// See the module head.
pub(crate) struct Model {
    mode: Mode,
    range: HostRange,
    page: PageSize,
    pages: Mutex<Vec<Page>>,
    sinks: Mutex<Vec<(HostRange, Arc<dyn FaultSink>)>>,
    pause: Option<Pause>,
    given_up: AtomicBool,
}

impl core::fmt::Debug for Model {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Model").field("mode", &self.mode).field("range", &self.range).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Model {
    /// A model of a machine whose only memory is `range`. In [`Mode::Deferred`] stores
    /// retire at once and a harvest finds them; in any other mode the sink is called.
    pub(crate) fn new(mode: Mode, range: HostRange, page: PageSize) -> Self {
        let count = range.len() >> page.shift();
        Self {
            mode,
            range,
            page,
            pages: Mutex::new(vec![FRESH; count]),
            sinks: Mutex::new(Vec::new()),
            pause: None,
            given_up: AtomicBool::new(false),
        }
    }

    /// Calls `pause` at every [`Moment`].
    pub(crate) fn with_pause(mut self, pause: impl Fn(Moment) + Send + Sync + 'static) -> Self {
        self.pause = Some(Box::new(pause));
        self
    }

    fn pause(&self, moment: Moment) {
        if let Some(pause) = &self.pause {
            pause(moment);
        }
    }

    /// A store by thread `tid` to `address`: `retire` changes the memory. Returns
    /// [`Handled::NotOurs`], without storing, if the signal would go to another
    /// handler.
    pub(crate) fn store(&self, address: HostAddr, tid: u32, mut retire: impl FnMut()) -> Handled {
        loop {
            {
                let mut pages = lock(&self.pages);
                let page = &mut pages[(address.0 - self.range.start().0) >> self.page.shift()];
                if page.access != Access::ReadWrite {
                    return Handled::NotOurs;
                }
                if !page.protected || self.mode == Mode::Deferred {
                    page.protected = false;
                    retire();
                    return Handled::Retry;
                }
            }
            self.pause(Moment::BeforeSink);
            let sink =
                lock(&self.sinks).iter().find(|(range, _)| range.contains(address)).map(|(_, sink)| sink.clone());
            let fault = WriteFault { addr: address, pc: None, tid };
            if sink.is_some_and(|sink| sink.on_write(&fault) == Handled::NotOurs) {
                return Handled::NotOurs;
            }
            self.pause(Moment::AfterSink);
        }
    }

    /// Whether the page at `address` is protected.
    pub(crate) fn is_protected(&self, address: HostAddr) -> bool {
        lock(&self.pages)[(address.0 - self.range.start().0) >> self.page.shift()].protected
    }

    /// Puts other mappings at `range`. They are not attached, and `refused` ones cannot be.
    pub(crate) fn map(&self, range: HostRange, refused: bool) {
        if let Ok(pages) = self.of(range) {
            lock(&self.pages)[pages].fill(Page { refused, ..FRESH });
        }
    }

    /// The numbers of its pages.
    fn of(&self, range: HostRange) -> Result<Range<usize>, Error> {
        if !self.range.contains_range(range) {
            let (start, len) = (range.start().0 as u64, range.len() as u64);
            return Err(Error::BadRange { start, len, why: "the model has no such memory" });
        }
        let first = (range.start().0 - self.range.start().0) >> self.page.shift();
        Ok(first..first + (range.len() >> self.page.shift()))
    }

    fn change(&self, range: HostRange, mut change: impl FnMut(&mut Page, HostRange)) -> Result<(), Error> {
        let pages = self.of(range)?;
        self.pause(Moment::BeforeChange);
        for page in pages {
            let at = HostAddr(self.range.start().0 + (page << self.page.shift()));
            // Page by page, as the kernel does it.
            change(&mut lock(&self.pages)[page], HostRange::page_of(at, self.page));
        }
        self.pause(Moment::AfterChange);
        Ok(())
    }
}

impl Protection for Model {
    fn mode(&self) -> Mode {
        self.mode
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
    }

    fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        let mut sinks = lock(&self.sinks);
        if !sinks.iter().any(|(known, _)| known.contains_range(range)) {
            sinks.push((range, sink.clone()));
        }
        Ok(())
    }

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, access: Access, _: Permit<'_>) -> Result<(), Error> {
        if self.of(range).is_ok_and(|pages| lock(&self.pages)[pages].iter().any(|page| page.refused)) {
            return Err(Error::system("attach", range.start().0, range.len(), Errno::INVAL));
        }
        self.change(range, |page, _| *page = Page { attached: true, access, ..FRESH })?;
        self.reserve(range, sink)
    }

    fn forget(&self, range: HostRange) {
        if let Ok(pages) = self.of(range) {
            lock(&self.pages)[pages].iter_mut().for_each(|page| page.attached = false);
        }
    }

    fn give_up(&self, range: HostRange) {
        lock(&self.sinks).retain(|(known, _)| !range.contains_range(*known));
    }

    /// Each page is a mapping of its own.
    fn mappings(&self, range: HostRange, page: PageSize) -> Vec<HostRange> {
        let starts = (range.start().0..range.end().0).step_by(page.bytes());
        starts.map(|start| HostRange::of_pages(HostAddr(start), 1, page)).collect()
    }

    fn detach(&self, range: HostRange, _: Permit<'_>) -> Result<(), Error> {
        self.change(range, |page, _| *page = Page { refused: page.refused, ..FRESH })?;
        lock(&self.sinks).retain(|(known, _)| !range.contains_range(*known));
        Ok(())
    }

    fn fence_threads(&self) -> Result<(), Error> {
        Ok(())
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        if self.mode == Mode::Deferred {
            return Err(Error::BadArgument("a deferred region is protected by its harvest alone"));
        }
        self.change(range, |page, _| page.protected = page.attached)
    }

    fn unprotect(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.change(range, |page, _| page.protected = false)
    }

    /// As a descriptor that is given up: opens all pages.
    fn abandon(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        let others: Vec<_> = lock(&self.sinks).iter().filter(|(at, _)| !range.contains_range(*at)).cloned().collect();
        for (_, sink) in &others {
            let _ = sink.on_lost();
        }
        self.given_up.store(true, SeqCst);
        self.change(self.range, |page, _| page.protected = false)
    }

    fn check(&self) -> Result<(), Error> {
        if self.given_up.load(SeqCst) { Err(Error::TrackingLost) } else { Ok(()) }
    }

    fn harvest(&self, range: HostRange, written: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        if self.mode != Mode::Deferred {
            return Ok(());
        }
        self.change(range, |page, at| {
            if !core::mem::replace(&mut page.protected, page.attached) {
                written(at);
            }
        })
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.change(range, |page, _| page.access = access)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Opens {
        model: OnceLock<Arc<Model>>,
        calls: AtomicUsize,
    }

    #[allow(unsafe_code)]
    // SAFETY: called by the model alone, never in a signal handler.
    unsafe impl FaultSink for Opens {
        fn on_write(&self, fault: &WriteFault) -> Handled {
            self.calls.fetch_add(1, SeqCst);
            let model = self.model.get().unwrap();
            model.unprotect(HostRange::page_of(fault.addr, model.page), Opening::for_test()).unwrap();
            Handled::Retry
        }

        fn on_lost(&self) -> Permit<'_> {
            Permit::for_test()
        }
    }

    /// The page is protected again between the sink and the store's next try: the store
    /// is reported once more, and goes through in the end.
    #[test]
    fn a_page_that_is_protected_again_under_a_store_is_reported_twice() {
        let page = PageSize::from_shift(12);
        let range = HostRange::new(HostAddr(0x10_000), 0x4000, page).unwrap();
        let sink = Arc::new(Opens::default());
        let (again, seen) = (Arc::new(OnceLock::<Arc<Model>>::new()), Arc::new(AtomicUsize::new(0)));
        let (in_pause, count) = (again.clone(), seen.clone());
        let model = Arc::new(Model::new(Mode::Sigbus, range, page).with_pause(move |moment| {
            if moment == Moment::AfterSink && count.fetch_add(1, SeqCst) == 0 {
                in_pause.get().unwrap().protect(range).unwrap();
            }
        }));
        assert!(again.set(model.clone()).is_ok() && sink.model.set(model.clone()).is_ok());
        let as_sink: Arc<dyn FaultSink> = sink.clone();
        model.attach(range, &as_sink, Access::ReadWrite, Permit::for_test()).unwrap();
        model.protect(range).unwrap();
        let mut stores = 0;
        assert_eq!(model.store(HostAddr(0x11_008), 1, || stores += 1), Handled::Retry);
        assert_eq!((stores, sink.calls.load(SeqCst), seen.load(SeqCst)), (1, 2, 2));
        assert!(!model.is_protected(HostAddr(0x11_000)) && model.is_protected(HostAddr(0x12_000)));
    }
}
