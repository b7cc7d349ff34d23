//! Faults that come back, and faults that only look like that.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};

use super::super::{BeginError, RegionOptions, Tracker};
use super::NoObserver;
use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::page_table::Busy;
use crate::protection::model::{Model, Moment};
use crate::protection::mprotect::{Mprotect, fake::FakeKernel};
use crate::protection::{Access, Handled, Mode, Protection, WriteFault};
use crate::sync::interruptible::{interrupt_at, was_interrupted};
use crate::sys::ranges::{Delivery, dispatch};

const PAGE: PageSize = PageSize::from_shift(12);
const HOST: HostAddr = HostAddr(1 << 45);

type Both = (Weak<Tracker<()>>, Weak<Model>);

fn add_region(tracker: &Tracker<()>, model: &Arc<Model>) {
    let host = HostRange::of_pages(HOST, 4, PAGE);
    let open = |_: &mut _| Ok(model.clone() as Arc<dyn Protection>);
    tracker.add_region_on(RegionOptions::new(GuestAddr(0), host, model.mode()), None, open).unwrap();
}

/// The kernel protects a page that its word calls open, and the message of its store
/// looks like the last one. The page is opened, and no translator begins meanwhile.
#[test]
fn a_handler_thread_opens_each_reported_page_under_the_count() {
    let tracker = Arc::new(Tracker::new(Arc::new(NoObserver)));
    let armed = Arc::new((OnceLock::new(), AtomicBool::new(false)));
    let begun = Arc::new(std::sync::Mutex::new(None));
    let range = HostRange::of_pages(HOST, 4, PAGE);
    let model = Arc::new(Model::new(Mode::Thread, range, PAGE).with_pause({
        let (armed, begun) = (armed.clone(), begun.clone());
        move |moment| {
            if moment == Moment::BeforeChange && armed.1.swap(false, SeqCst) {
                let tracker = armed.0.get().and_then(Weak::<Tracker<()>>::upgrade).unwrap();
                let busy = tracker.begin(GuestAddr(0)).map(drop);
                *begun.lock().unwrap() = Some(busy);
            }
        }
    }));
    armed.0.set(Arc::downgrade(&tracker)).unwrap();
    add_region(&tracker, &model);
    tracker.begin(GuestAddr(0)).unwrap();
    assert_eq!(model.store(HOST, 0, || ()), Handled::Retry);
    for _ in 0..2 {
        model.protect(HostRange::of_pages(HOST, 1, PAGE)).unwrap();
        armed.1.store(true, SeqCst);
        let retired = AtomicBool::new(false);
        assert_eq!(model.store(HOST, 0, || retired.store(true, SeqCst)), Handled::Retry);
        assert!(retired.into_inner());
        assert_eq!(begun.lock().unwrap().take(), Some(Err(BeginError::Busy(Busy::Unprotecting))));
    }
}

/// Its region ends between the fault and its handler, and another one begins.
#[test]
fn a_fault_that_is_on_its_way_while_its_region_ends() {
    let tracker = Arc::new(Tracker::new(Arc::new(NoObserver)));
    let all: Arc<OnceLock<Both>> = Arc::default();
    let model = Arc::new(Model::new(Mode::Sigbus, HostRange::of_pages(HOST, 4, PAGE), PAGE).with_pause({
        let all = all.clone();
        move |moment| {
            let Some((tracker, model)) = all.get().filter(|_| moment == Moment::BeforeSink) else { return };
            let (tracker, model) = (tracker.upgrade().unwrap(), model.upgrade().unwrap());
            tracker.remove_region(GuestAddr(0)).unwrap();
            add_region(&tracker, &model);
        }
    }));
    add_region(&tracker, &model);
    tracker.begin(GuestAddr(0)).unwrap();
    assert!(all.set((Arc::downgrade(&tracker), Arc::downgrade(&model))).is_ok());
    let retired = AtomicBool::new(false);
    assert_eq!(model.store(HOST, 1, || retired.store(true, SeqCst)), Handled::Retry);
    assert!(retired.into_inner());
}

/// The guest's own mprotect of a page that it may write before and after. A store is
/// tried between each two steps: it goes through in the end, and is not taken for a
/// crash.
#[test]
fn a_store_at_each_two_steps_of_the_guests_mprotect() {
    const START: HostAddr = HostAddr(6 << 44);
    crate::sys::membarrier::register_fence().unwrap();
    for gap in 0..24 {
        for step in 0.. {
            let kernel = FakeKernel::new(START, PAGE);
            let mechanism: Arc<dyn Protection> = Arc::new(Mprotect::new(PAGE, kernel.clone()).unwrap());
            let tracker = Tracker::new(Arc::new(NoObserver));
            let host = HostRange::of_pages(START, 1, PAGE);
            let open = |_: &mut _| Ok(mechanism);
            tracker.add_region_on(RegionOptions::new(GuestAddr(0), host, Mode::Mprotect), None, open).unwrap();
            tracker.begin(GuestAddr(0)).unwrap();
            // Tries once. Returns whether it went through.
            let store = move || {
                let retires = kernel.access_of(0) == Access::ReadWrite;
                if !retires {
                    let fault = WriteFault { addr: START, pc: None, tid: 0 };
                    let handled = dispatch(Delivery::Sigsegv, &fault);
                    assert_eq!(handled, Some(Handled::Retry), "{gap} steps behind step {step}");
                }
                retires
            };
            let (first, again) = (store.clone(), store.clone());
            interrupt_at(step, move || {
                first();
                interrupt_at(gap, move || _ = again());
            });
            tracker.set_access(GuestAddr(0), PAGE.bytes() as u64, Access::ReadWrite).unwrap();
            let was_interrupted = was_interrupted();
            assert!(store() || store(), "{gap} steps behind step {step}: it goes through");
            if !was_interrupted {
                assert!(step + gap > 10, "{step}");
                break;
            }
        }
    }
}
