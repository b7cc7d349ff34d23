//! A mechanism that can open all pages and no single one, as `mprotect` can at the
//! limit of mappings. Tests a translator at each step of that.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::super::{BeginError, PageObserver, PageWrite, RegionOptions, Tracker};
use super::NoObserver;
use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::{Busy, Permit};
use crate::policy::{Adaptive, Decision, Limits, PageHistory, Policy};
use crate::protection::{Access, FaultSink, Handled, KernelWrites, Mode, Opening, Protection, WriteFault};

/// The result of a translator that begins while all pages are being opened.
type Meanwhile = Mutex<Option<Result<(), BeginError>>>;

#[derive(Default)]
struct OpensAllOrNone {
    // Weak: both keep the mechanism.
    sink: OnceLock<Weak<dyn FaultSink>>,
    tracker: OnceLock<Weak<Tracker<()>>>,
    meanwhile: Meanwhile,
    /// Calls for single pages for an announced write of the kernel.
    for_kernel_write: AtomicUsize,
    single: AtomicUsize,
    /// Bytes of the longest call.
    longest: AtomicUsize,
    opens_nothing: AtomicBool,
    abandoned: AtomicBool,
}

impl OpensAllOrNone {
    fn tracker(&self) -> Option<Arc<Tracker<()>>> {
        self.tracker.get()?.upgrade()
    }
}

impl std::fmt::Debug for OpensAllOrNone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpensAllOrNone")
    }
}

impl Protection for OpensAllOrNone {
    fn mode(&self) -> Mode {
        Mode::Mprotect
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
    }

    fn reserve(&self, _: HostRange, _: &Arc<dyn FaultSink>) -> Result<(), Error> {
        Ok(())
    }

    fn give_up(&self, _: HostRange) {}

    fn attach(&self, _: HostRange, sink: &Arc<dyn FaultSink>, _: Access, _: Permit<'_>) -> Result<(), Error> {
        let _ = self.sink.set(Arc::downgrade(sink));
        Ok(())
    }

    fn detach(&self, _: HostRange, _: Permit<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn fence_threads(&self) -> Result<(), Error> {
        Ok(())
    }

    fn protect(&self, _: HostRange) -> Result<(), Error> {
        Ok(())
    }

    fn unprotect(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        if range.len() == PAGE.bytes() {
            self.single.fetch_add(1, SeqCst);
        }
        self.longest.fetch_max(range.len(), SeqCst);
        if range.len() == PAGE.bytes() || self.opens_nothing.load(SeqCst) {
            return Err(Error::system("mprotect", range.start().0, range.len(), rustix::io::Errno::NOMEM));
        }
        let Some(tracker) = self.tracker().filter(|_| self.meanwhile.lock().unwrap().is_none()) else {
            return Ok(());
        };
        *self.meanwhile.lock().unwrap() = Some(tracker.begin(guest(2)).map(drop));
        let before = self.single.load(SeqCst);
        let _held = tracker.prepare_kernel_write(guest(1), 1)?;
        self.for_kernel_write.store(self.single.load(SeqCst) - before, SeqCst);
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        if self.opens_nothing.load(SeqCst) { Err(Error::TrackingLost) } else { Ok(()) }
    }

    fn abandon(&self, _: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.abandoned.store(true, SeqCst);
        *self.meanwhile.lock().unwrap() = self.tracker().map(|tracker| tracker.begin(guest(2)).map(drop));
        Ok(())
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(())
    }

    fn set_access(&self, _: HostRange, _: Access) -> Result<(), Error> {
        Ok(())
    }
}

const PAGE: PageSize = PageSize::from_shift(12);
const HOST: usize = 1 << 45;

fn guest(page: u64) -> GuestAddr {
    GuestAddr(page << PAGE.shift())
}

/// A store to page 1, on which a translation began. Returns the mechanism afterwards.
fn store(opens_nothing: bool) -> (Arc<OpensAllOrNone>, Arc<Tracker<()>>) {
    store_in(4, opens_nothing)
}

fn store_in(pages: usize, opens_nothing: bool) -> (Arc<OpensAllOrNone>, Arc<Tracker<()>>) {
    let tracker = Arc::new(Tracker::new(Arc::new(NoObserver)));
    let mechanism = Arc::new(OpensAllOrNone { opens_nothing: opens_nothing.into(), ..Default::default() });
    assert!(mechanism.tracker.set(Arc::downgrade(&tracker)).is_ok());
    let host = HostRange::of_pages(HostAddr(HOST), pages, PAGE);
    let open = |_: &mut _| Ok(mechanism.clone() as Arc<dyn Protection>);
    tracker.add_region_on(RegionOptions::new(guest(0), host, mechanism.mode()), None, open).unwrap();
    let claim = tracker.begin(guest(1)).unwrap();
    let fault = WriteFault { addr: HostAddr(HOST + PAGE.bytes()), pc: None, tid: 0 };
    assert_eq!(mechanism.sink.get().and_then(Weak::upgrade).unwrap().on_write(&fault), Handled::Retry);
    assert!(!claim.is_current());
    (mechanism, tracker)
}

/// Otherwise the translator's page would be opened under its block.
#[test]
fn no_translator_begins_while_all_pages_are_opened() {
    let (mechanism, tracker) = store(false);
    assert_eq!(*mechanism.meanwhile.lock().unwrap(), Some(Err(BeginError::Busy(Busy::Unprotecting))));
    assert!(tracker.begin(guest(1)).is_ok() && tracker.begin(guest(2)).is_ok(), "and then as before");
    assert!(!mechanism.abandoned.load(SeqCst));
}

/// Pages that were never used need not be opened: the region may be a whole address space, with other memory in it.
#[test]
fn all_pages_are_those_that_were_used() {
    let (mechanism, _tracker) = store_in(1 << 30, false);
    let longest = mechanism.longest.load(SeqCst);
    assert!((2 * PAGE.bytes()..1 << 20).contains(&longest), "{longest:#x} bytes at once");
    // The same for a mechanism that has lost its descriptor or its thread.
    let mut used = Vec::new();
    let sink = mechanism.sink.get().and_then(Weak::upgrade).unwrap();
    sink.for_each_used(HostRange::of_pages(HostAddr(HOST), 1 << 30, PAGE), &mut |part| used.push(part));
    assert!(used.len() == 1 && used[0].len() == longest, "{used:?}");
}

/// The page's word says open a moment before the page is.
#[test]
fn an_announced_write_does_not_rely_on_who_opens_all_pages() {
    let (mechanism, _) = store(false);
    assert!(mechanism.for_kernel_write.load(SeqCst) > 0);
}

/// Says that a page is to be self-checking, after the mechanism has lost the region.
#[derive(Debug)]
struct ChecksALostOne(Arc<OpensAllOrNone>);

impl Policy for ChecksALostOne {
    fn on_begin(&self, _: &PageHistory) -> Decision {
        let _leave = self.0.sink.get().and_then(Weak::upgrade).unwrap().on_lost();
        Decision::SelfCheck
    }

    fn on_harvest(&self, _: &PageHistory) -> bool {
        false
    }

    fn has_cooled(&self, _: &PageHistory) -> bool {
        false
    }

    fn limits(&self) -> Limits {
        Adaptive::new().limits()
    }
}

#[test]
fn a_page_of_a_region_that_is_lost_meanwhile_does_not_become_self_checking() {
    let mechanism = Arc::new(OpensAllOrNone::default());
    let tracker = Tracker::with_policy(Arc::new(NoObserver), Arc::new(ChecksALostOne(mechanism.clone())));
    let host = HostRange::of_pages(HostAddr(HOST), 4, PAGE);
    let open = |_: &mut _| Ok(mechanism.clone() as Arc<dyn Protection>);
    tracker.add_region_on(RegionOptions::new(guest(0), host, mechanism.mode()), None, open).unwrap();
    assert_eq!(tracker.begin(guest(1)).map(drop), Err(BeginError::Failed(Error::TrackingLost)));
}

#[test]
fn what_cannot_be_opened_whole_is_abandoned() {
    let (mechanism, tracker) = store(true);
    assert!(mechanism.abandoned.load(SeqCst));
    let lost = Some(Err(BeginError::Failed(Error::TrackingLost)));
    assert_eq!(*mechanism.meanwhile.lock().unwrap(), lost, "before the pages are opened");
    assert_eq!(tracker.begin(guest(2)).map(drop), Err(BeginError::Failed(Error::TrackingLost)));
}

/// While the first page is told of a loss, another thread calls the tracker.
struct CallsMeanwhile {
    call: fn(&Tracker<()>),
    mechanism: Arc<OpensAllOrNone>,
    told: Mutex<Vec<GuestAddr>>,
    has_called: AtomicBool,
    told_behind_the_call: Mutex<Vec<GuestAddr>>,
}

#[allow(unsafe_code)]
// SAFETY: the test's writes are calls, of which no lock or tracked memory is in the way.
unsafe impl PageObserver for CallsMeanwhile {
    type Data = ();

    fn written(&self, (): &(), write: &PageWrite) {
        if !self.has_called.swap(true, SeqCst) {
            let tracker = self.mechanism.tracker().unwrap();
            std::thread::scope(|scope| scope.spawn(|| (self.call)(&tracker)).join().unwrap());
            *self.told_behind_the_call.lock().unwrap() = self.told.lock().unwrap().clone();
        }
        self.told.lock().unwrap().push(write.page);
    }
}

/// The thread that noticed the loss may sleep before it has told of the second page, and the kernel may have opened that
/// already.
#[test]
fn a_call_that_finds_a_region_lost_tells_of_every_page() {
    let calls: [fn(&Tracker<()>); 2] = [Tracker::maintain, |tracker| {
        assert_eq!(tracker.begin(guest(3)).map(drop), Err(BeginError::Failed(Error::TrackingLost)));
    }];
    for call in calls {
        let mechanism = Arc::new(OpensAllOrNone { opens_nothing: true.into(), ..Default::default() });
        let observer = Arc::new(CallsMeanwhile {
            call,
            mechanism: mechanism.clone(),
            told: Mutex::default(),
            has_called: false.into(),
            told_behind_the_call: Mutex::default(),
        });
        let tracker = Arc::new(Tracker::new(observer.clone()));
        assert!(mechanism.tracker.set(Arc::downgrade(&tracker)).is_ok());
        let host = HostRange::of_pages(HostAddr(HOST), 4, PAGE);
        let open = |_: &mut _| Ok(mechanism.clone() as Arc<dyn Protection>);
        tracker.add_region_on(RegionOptions::new(guest(0), host, mechanism.mode()), None, open).unwrap();
        let claims = [1, 2].map(|page| tracker.begin(guest(page)).unwrap());
        let _leave = mechanism.sink.get().and_then(Weak::upgrade).unwrap().on_lost();
        assert!(claims.iter().all(|claim| !claim.is_current()));
        let told = observer.told_behind_the_call.lock().unwrap();
        assert!([1, 2].iter().all(|&page| told.contains(&guest(page))), "{told:?}");
    }
}
