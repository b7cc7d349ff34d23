//! The end of a region if steps of it are refused: no later step is skipped.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::super::{RegionOptions, Tracker};
use super::NoObserver;
use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::page_table::Permit;
use crate::protection::{Access, FaultSink, KernelWrites, Mode, Opening, Protection};

const PAGE: PageSize = PageSize::from_shift(12);

/// Refuses each step that has its bit set, and notes the requested steps.
#[derive(Debug, Default)]
struct Refuses {
    steps: AtomicUsize,
    asked: Mutex<Vec<&'static str>>,
}

const STEPS: [&str; 4] = ["fence", "detach", "open", "abandon"];

impl Refuses {
    fn step(&self, name: &'static str) -> Result<(), Error> {
        self.asked.lock().unwrap().push(name);
        let bit = STEPS.iter().position(|step| *step == name).unwrap();
        if self.steps.load(SeqCst) & 1 << bit == 0 {
            return Ok(());
        }
        Err(Error::system(name, 0, 0, rustix::io::Errno::PERM))
    }
}

impl Protection for Refuses {
    fn mode(&self) -> Mode {
        Mode::Sigbus
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
    }

    fn reserve(&self, _: HostRange, _: &Arc<dyn FaultSink>) -> Result<(), Error> {
        Ok(())
    }

    fn give_up(&self, _: HostRange) {}

    fn attach(&self, _: HostRange, _: &Arc<dyn FaultSink>, _: Access, _: Permit<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn detach(&self, _: HostRange, _: Permit<'_>) -> Result<(), Error> {
        self.step("detach")
    }

    fn fence_threads(&self) -> Result<(), Error> {
        self.step("fence")
    }

    fn protect(&self, _: HostRange) -> Result<(), Error> {
        Ok(())
    }

    fn unprotect(&self, _: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.step("open")
    }

    fn abandon(&self, _: HostRange, _: Opening<'_>) -> Result<(), Error> {
        self.step("abandon")
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(())
    }

    fn set_access(&self, _: HostRange, _: Access) -> Result<(), Error> {
        Ok(())
    }
}

#[test]
fn a_refused_step_skips_no_later_one() {
    for refused in 0..1 << STEPS.len() {
        let tracker = Tracker::new(Arc::new(NoObserver));
        let mechanism = Arc::new(Refuses::default());
        let host = HostRange::of_pages(HostAddr(7 << 44), 4, PAGE);
        let open = |_: &mut _| Ok(mechanism.clone() as Arc<dyn Protection>);
        tracker.add_region_on(RegionOptions::new(GuestAddr(0), host, mechanism.mode()), None, open).unwrap();
        assert!(tracker.begin(GuestAddr(0)).is_ok(), "a page that may be protected");
        mechanism.steps.store(refused, SeqCst);
        let removed = tracker.remove_region(GuestAddr(0));
        let is_refused = |step: usize| refused & 1 << step != 0;
        // Giving the mechanism up ends it for other regions too, so that comes last.
        let first_done = (1..STEPS.len() - 1).find(|&step| !is_refused(step)).unwrap_or(STEPS.len() - 1);
        let expected = &STEPS[..=first_done];
        assert_eq!(*mechanism.asked.lock().unwrap(), expected, "refused: {refused:#b}");
        assert_eq!(removed.is_err(), is_refused(0) || (1..STEPS.len()).all(is_refused), "{removed:?}");
        assert_eq!(tracker.mode_at(GuestAddr(0)), None, "it is removed all the same");
        drop(tracker);
        assert_eq!(Arc::strong_count(&mechanism), 1, "nothing keeps it");
    }
}
