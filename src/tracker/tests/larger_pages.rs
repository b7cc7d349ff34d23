//! Page size is a value: a tracker of pages four times as large as this kernel's, in
//! the modes that take a range as it is asked for. (A harvest reports the kernel's
//! own pages.)
//!
//! # Safety
//!
//! The memory outlives its tracker; the observer counts and does nothing else.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;

use super::super::{PageObserver, PageWrite, RegionOptions, Tracker};
use crate::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use crate::memory::guest_memory::GuestMemory;
use crate::policy::Adaptive;
use crate::protection::{Facility, Mode, Probe};
use crate::sys::probe::has_or_skips;

struct Counting;

#[derive(Default)]
struct Told {
    written: AtomicU32,
    data_written: AtomicU32,
}

// SAFETY: one addition each.
unsafe impl PageObserver for Counting {
    type Data = Told;

    fn written(&self, told: &Told, _: &PageWrite) {
        told.written.fetch_add(1, Relaxed);
    }

    fn data_written(&self, told: &Told, _: &PageWrite) {
        told.data_written.fetch_add(1, Relaxed);
    }
}

#[test]
fn a_tracker_of_larger_pages() {
    let page = PageSize::from_shift(PageSize::host().shift() + 2);
    let (host_page, bytes) = (PageSize::host().bytes(), page.bytes());
    for mode in [Mode::Sigbus, Mode::Thread, Mode::Mprotect] {
        if !has_or_skips(mode) {
            continue;
        }
        // One more, as the kernel aligns to its own pages.
        let memory = GuestMemory::anonymous(5 * bytes).unwrap();
        let base = memory.range().start().0;
        let first = page.ceil(base).unwrap();
        let mut tracker = Tracker::with_policy(Arc::new(Counting), Arc::new(Adaptive::with_checks()));
        tracker.page = page;
        let guest = GuestAddr(bytes as u64 * 100);
        let host = HostRange::new(HostAddr(first), 4 * bytes, page).unwrap();
        let options = RegionOptions::new(guest, host, mode);
        // SAFETY: the tracker is dropped before the memory.
        unsafe { tracker.add_region(options) }.unwrap();
        let store = |at: usize| memory.write(first - base + at, &[1]).unwrap();
        let begin = |number: usize| tracker.begin(GuestAddr(guest.0 + (number * bytes) as u64 + 1)).unwrap();

        // Code in the last of the kernel's pages that the second page has.
        let (claim, other) = (begin(1), begin(2));
        assert_eq!((claim.host_page().len(), claim.guest_page().0), (bytes, guest.0 + bytes as u64));
        claim.add_code(3 * host_page..3 * host_page + 64);
        other.add_code(0..bytes);
        store(bytes + 3 * host_page + 10);
        assert!(!claim.is_current() && other.is_current(), "{mode}");
        assert_eq!(claim.data().written.load(Relaxed), 1, "{mode}");
        // All of it is open.
        (0..4).for_each(|part| store(bytes + part * host_page));
        assert_eq!(claim.data().written.load(Relaxed), 1, "{mode}");

        // Beside the code: a line is a sixty-fourth of the page. Before Linux 5.18 mode thread does
        // not know the byte.
        if mode == Mode::Thread && !Probe::of_this_process().has(Facility::ExactAddress) {
            continue;
        }
        let other = begin(3);
        other.add_code(0..1);
        store(3 * bytes + bytes / 64);
        assert_eq!((other.data().written.load(Relaxed), other.data().data_written.load(Relaxed)), (0, 1), "{mode}");
    }
}
