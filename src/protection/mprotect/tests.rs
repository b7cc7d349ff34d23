//! Changes and openers of one page, at each step of each other; and the cost of
//! regions of any size.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use super::super::contract::{Access, Inherited, Protection};
use super::Mprotect;
use super::fake::FakeKernel;
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::page_table::Permit;
use crate::protection::contract::Opening;
use crate::sync::interruptible::{interrupt_at, was_interrupted};
use crate::sys::ranges::FaultSink;
use crate::sys::ranges::{Handled, WriteFault};

const PAGE: PageSize = PageSize::from_shift(12);

struct NoObserver;

#[allow(unsafe_code)]
// SAFETY: does nothing.
unsafe impl FaultSink for NoObserver {
    fn on_write(&self, _: &WriteFault) -> Handled {
        Handled::NotOurs
    }

    fn on_lost(&self) -> Permit<'_> {
        Permit::for_test()
    }
}

/// Two attached pages at `start`, which no other test has.
fn two_pages(start: HostAddr, kernel: FakeKernel) -> (Arc<Mprotect<FakeKernel>>, HostRange) {
    let range = HostRange::of_pages(start, 2, PAGE);
    let protection = Arc::new(Mprotect::new(PAGE, kernel).unwrap());
    let sink: Arc<dyn FaultSink> = Arc::new(NoObserver);
    protection.attach(range, &sink, Access::ReadWrite, Permit::for_test()).unwrap();
    (protection, range)
}

/// In the end the kernel's access agrees with the words, and a page that is not protected
/// again is open.
#[test]
fn a_page_is_opened_at_each_step_of_a_change() {
    const START: HostAddr = HostAddr(3 << 44);
    type Change = fn(&Mprotect<FakeKernel>, HostRange);
    let changes: [(Option<Access>, Change); 4] = [
        (None, |protection, range| protection.protect(range).unwrap()),
        (Some(Access::ReadWrite), |protection, range| protection.set_access(range, Access::ReadWrite).unwrap()),
        (Some(Access::Read), |protection, range| protection.set_access(range, Access::Read).unwrap()),
        (Some(Access::None), |protection, range| protection.set_access(range, Access::None).unwrap()),
    ];
    for (access, change) in changes {
        for step in 0.. {
            let kernel = FakeKernel::new(START, PAGE);
            let (protection, range) = two_pages(START, kernel.clone());
            protection.protect(range).unwrap();
            let opener = protection.clone();
            interrupt_at(step, move || opener.unprotect(range, Opening::for_test()).unwrap());
            change(&protection, range);
            let was_interrupted = was_interrupted();
            for page in 0..2 {
                let word = protection.words.get((START.0 >> PAGE.shift()) + page).unwrap().load();
                assert_eq!(Some(kernel.access_of(page)), word.kernel_access(), "{access:?}, step {step}");
                if access.is_some() && was_interrupted {
                    assert_eq!(Some(kernel.access_of(page)), access, "step {step}");
                }
            }
            if !was_interrupted {
                assert!(step > 8, "{access:?}: {step} steps");
                break;
            }
        }
    }
}

/// A thread is about to let stores through, by the word that it saw. Meanwhile the guest
/// makes the page read-only: that must be the last call to the kernel.
#[test]
fn a_change_waits_for_who_opens_by_the_word_before() {
    const START: HostAddr = HostAddr(4 << 44);
    /// More than a change takes that does not wait.
    const STEPS: usize = 1000;
    static IS_OPENING: AtomicBool = AtomicBool::new(false);
    static GO_ON: AtomicBool = AtomicBool::new(false);
    let kernel = FakeKernel::with_pause(START, PAGE, |access| {
        if access == Access::ReadWrite {
            IS_OPENING.store(true, SeqCst);
            while !GO_ON.load(SeqCst) {
                std::thread::yield_now();
            }
        }
    });
    let (protection, range) = two_pages(START, kernel.clone());
    protection.protect(range).unwrap();
    std::thread::scope(|scope| {
        let opener = protection.clone();
        scope.spawn(move || opener.unprotect(range, Opening::for_test()).unwrap());
        while !IS_OPENING.load(SeqCst) {
            std::thread::yield_now();
        }
        interrupt_at(STEPS, || GO_ON.store(true, SeqCst));
        protection.set_access(range, Access::Read).unwrap();
        let waited = was_interrupted();
        GO_ON.store(true, SeqCst);
        assert!(waited, "the change did not wait");
    });
    assert_eq!([kernel.access_of(0), kernel.access_of(1)], [Access::Read; 2]);
}

/// A store that the kernel refuses during a change may be one that the change will allow.
/// So the number of changes must not look unchanged.
#[test]
fn a_change_is_reported_from_its_first_step_to_its_last() {
    const START: HostAddr = HostAddr(5 << 44);
    static MECHANISM: OnceLock<Arc<Mprotect<FakeKernel>>> = OnceLock::new();
    let kernel = FakeKernel::with_pause(START, PAGE, |_| {
        let changes = MECHANISM.get().map(|protection| protection.access_changes(START));
        assert!(matches!(changes, None | Some(None)), "{changes:?}");
    });
    let (protection, range) = two_pages(START, kernel);
    assert!(MECHANISM.set(protection.clone()).is_ok());
    protection.protect(range).unwrap();
    let before = protection.access_changes(START).unwrap();
    protection.set_access(range, Access::ReadWrite).unwrap();
    assert!(protection.access_changes(START).unwrap() > before);
    protection.detach(range, Permit::for_test()).unwrap();
}

/// A thread of the parent was opening a page. The child does not have that thread, and must not wait for
/// it. The other page stays protected, without a call.
#[test]
fn a_forks_child_has_no_openers_and_keeps_its_protection() {
    const START: HostAddr = HostAddr(8 << 44);
    let kernel = FakeKernel::new(START, PAGE);
    let (protection, range) = two_pages(START, kernel.clone());
    protection.protect(range).unwrap();
    let word = protection.words.get(START.0 >> PAGE.shift()).unwrap();
    word.enter();
    // More steps than it takes without waiting, so that a wait ends.
    let late = protection.clone();
    interrupt_at(1000, move || late.words.get(START.0 >> PAGE.shift()).unwrap().leave());
    let sink: Arc<dyn FaultSink> = Arc::new(NoObserver);
    let calls = kernel.calls();
    assert_eq!(protection.open_in_child(), Ok(Inherited::Protected));
    protection.take_over(range).unwrap();
    protection.attach_again(range, &sink, Access::ReadWrite, Permit::for_test()).unwrap();
    let [first, second] = [0, 1].map(|page| HostRange::of_pages(HostAddr(START.0 + (page << PAGE.shift())), 1, PAGE));
    protection.protect_again(second).unwrap();
    assert_eq!(kernel.calls(), calls);
    protection.open_again(first, Opening::for_test()).unwrap();
    assert_eq!([kernel.access_of(0), kernel.access_of(1)], [Access::ReadWrite, Access::Read]);
    protection.set_access(range, Access::Read).unwrap();
    assert!(!was_interrupted(), "the child waited for a thread that is not there");
    assert!(!word.is_being_opened());
}

/// The mapping of a page was about to be moved when the process forked: it is detached, and attached again.
#[test]
fn a_forks_child_attaches_a_mapping_that_was_about_to_be_moved() {
    const START: HostAddr = HostAddr(9 << 44);
    let kernel = FakeKernel::new(START, PAGE);
    let (protection, range) = two_pages(START, kernel.clone());
    protection.detach(range, Permit::for_test()).unwrap();
    let sink: Arc<dyn FaultSink> = Arc::new(NoObserver);
    protection.open_in_child().unwrap();
    protection.take_over(range).unwrap();
    protection.attach_again(range, &sink, Access::ReadWrite, Permit::for_test()).unwrap();
    protection.protect(range).unwrap();
    assert_eq!([kernel.access_of(0), kernel.access_of(1)], [Access::Read; 2]);
}

/// The cost of a region follows the number of protected pages.
#[test]
fn a_region_of_any_size_costs_the_same_calls() {
    const START: HostAddr = HostAddr(1 << 50);
    let calls = [20, 46].map(|shift| {
        let kernel = FakeKernel::new(START, PAGE);
        let protection = Mprotect::new(PAGE, kernel.clone()).unwrap();
        let range = HostRange::of_pages(START, 1 << (shift - PAGE.shift()), PAGE);
        let sink: Arc<dyn FaultSink> = Arc::new(NoObserver);
        protection.attach(range, &sink, Access::ReadWrite, Permit::for_test()).unwrap();
        let last = HostRange::of_pages(HostAddr(range.end().0 - PAGE.bytes()), 1, PAGE);
        protection.protect(last).unwrap();
        protection.unprotect(range, Opening::for_test()).unwrap();
        protection.protect(last).unwrap();
        let before = protection.words.bytes();
        protection.detach(range, Permit::for_test()).unwrap();
        drop(protection);
        (kernel.calls(), before)
    });
    assert_eq!(calls[0], calls[1]);
}
