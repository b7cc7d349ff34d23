//! Tells a fault that is not ours from one that lost a race.
//!
//! A store that faults on a page whose word says writable may have been
//! overtaken by another thread's un-protect: it only has to be tried again. Or
//! it can never succeed (it lies past the end of its memfd, or the guest may not
//! write there): then un-protecting helps nothing and the same fault comes back
//! for ever. Such a fault is the second one of the same store while the page's
//! state and generation are what the first one left: no protecting system call
//! was made in between.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::protection::WriteFault;
use crate::sys::fault::this_thread;

/// Threads whose last fault is remembered; more of them overwrite each other's,
/// which costs a needless retry.
const SLOTS: usize = 64;

#[derive(Debug)]
pub(super) struct Repeats {
    slots: [AtomicU64; SLOTS],
}

impl Repeats {
    pub(super) fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// After the un-protect for `fault`, which left the page's state and
    /// generation as in `word`.
    pub(super) fn record(&self, fault: &WriteFault, word: u64) {
        self.slots[slot_of(fault)].store(fingerprint(fault, word), Ordering::Relaxed);
    }

    /// Whether `fault` is the last one of its thread again, with the same word.
    pub(super) fn is_repeat(&self, fault: &WriteFault, word: u64) -> bool {
        self.slots[slot_of(fault)].load(Ordering::Relaxed) == fingerprint(fault, word)
    }
}

/// The storing thread: by its id, or, in that thread itself, by what it is.
fn thread_of(fault: &WriteFault) -> u64 {
    if fault.tid == 0 { this_thread() } else { u64::from(fault.tid) }
}

fn slot_of(fault: &WriteFault) -> usize {
    // Addresses of threads differ in their middle bits.
    (thread_of(fault).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS
}

/// Mixes all that must be equal into 64 bits.
fn fingerprint(fault: &WriteFault, word: u64) -> u64 {
    let pc = fault.pc.map_or(0, |pc| pc.0 as u64);
    [thread_of(fault), pc, fault.addr.0 as u64, word].into_iter().fold(0x9e37_79b9_7f4a_7c15, |hash: u64, part| {
        (hash ^ part).wrapping_mul(0xff51_afd7_ed55_8ccd).rotate_left(31)
    }) | 1
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::sync::{Arc, OnceLock, Weak};

    use super::super::Tracker;
    use super::super::opened_whole::Nobody;
    use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
    use crate::protection::model::{Model, Moment};
    use crate::protection::{Access, Handled, Mode, Options, Protection};

    const PAGE: PageSize = PageSize::from_shift(12);
    const HOST: HostAddr = HostAddr(1 << 45);

    type Both = (Weak<Tracker<Nobody>>, Weak<Model>);

    fn add_region(tracker: &Tracker<Nobody>, model: &Arc<Model>) {
        let host = HostRange::of_pages(HOST, 4, PAGE);
        let open = || Ok(model.clone() as Arc<dyn Protection>);
        tracker.add_region_on(GuestAddr(0), host, Access::ReadWrite, Options::default(), open).unwrap();
    }

    /// Between the fault and its handler its region ends and another one begins.
    #[test]
    fn a_fault_that_is_on_its_way_while_its_region_ends() {
        let tracker = Arc::new(Tracker::new(Arc::new(Nobody)));
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
}
