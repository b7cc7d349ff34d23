//! Memory with a descriptor, and the question whether a store to it sleeps.
//!
//! # Safety
//!
//! Loads and stores go to the fixture's own mapping, by raw pointers.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::os::fd::{AsFd, OwnedFd};

use rustix::mm::{Advice, MprotectFlags};

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::sys::mmap::{Mapping, memfd};
use crate::sys::pagemap::{Pagemap, entry};
use crate::sys::probe::{Facility, Probe, skip};
use crate::sys::uffd::{Door, KernelFaults, MessageBuffer, Opened, Uffd, feature, open};
use crate::sys::uffd_calls;

pub(super) const PAGES: usize = 8;
pub(super) const SYNC: u64 = feature::WP | feature::WP_UNPOPULATED | feature::WP_SHMEM | feature::EXACT_ADDRESS;

/// The features that every kernel before 6.4 lacks one of.
pub(super) const POPULATED_ONLY: u64 = SYNC & !feature::WP_UNPOPULATED;

/// Whether this kernel has all of `facilities`; prints a skip if not.
pub(super) fn has_or_skips(facilities: &[Facility]) -> bool {
    let probe = Probe::of_this_process();
    facilities.iter().find_map(|facility| probe.why_missing(*facility)).map(skip).is_none()
}

/// Memory and a descriptor whose messages only the test reads: a store to a protected page
/// sleeps.
pub(super) struct Fixture {
    pub(super) page: PageSize,
    pub(super) file: Option<OwnedFd>,
    pub(super) memory: Mapping,
    pub(super) pagemap: Pagemap,
    pub(super) uffd: Uffd,
}

impl Fixture {
    pub(super) fn new(features: u64, on_memfd: bool) -> Self {
        let page = PageSize::host();
        let len = PAGES * page.bytes();
        let file = on_memfd.then(|| memfd("kernel-facts", len).unwrap());
        let memory = match &file {
            Some(file) => Mapping::shared(file, len, page).unwrap(),
            None => Mapping::anonymous(len, page).unwrap(),
        };
        let uffd = descriptor(features);
        uffd.register(memory.range()).unwrap();
        Self { page, file, memory, pagemap: Pagemap::open(page).unwrap(), uffd }
    }

    /// On anonymous memory, and on a memfd if this kernel protects those.
    pub(super) fn sync_on_both() -> Vec<Self> {
        let on_memfd = has_or_skips(&[Facility::WpShmem]).then(|| Self::new(SYNC, true));
        [Some(Self::new(SYNC, false)), on_memfd].into_iter().flatten().collect()
    }

    pub(super) fn pages(&self, first: usize, count: usize) -> HostRange {
        HostRange::of_pages(self.at(first), count, self.page)
    }

    pub(super) fn at(&self, page: usize) -> HostAddr {
        HostAddr(self.memory.range().start().0 + page * self.page.bytes())
    }

    /// A raw pointer and a length, as system calls take them.
    pub(super) fn raw(&self, first: usize, count: usize) -> (*mut c_void, usize) {
        (self.at(first).as_ptr().cast(), count * self.page.bytes())
    }

    pub(super) fn store(&self, page: usize, value: u8) {
        // SAFETY: in the fixture's mapping.
        unsafe { self.at(page).as_ptr().write_volatile(value) };
    }

    pub(super) fn load(&self, page: usize) -> u8 {
        // SAFETY: as above.
        unsafe { self.at(page).as_ptr().read_volatile() }
    }

    /// The pages that the kernel holds protected. They stay so, and keep their contents.
    pub(super) fn protected(&self) -> Vec<usize> {
        (0..PAGES).filter(|page| store_sleeps(&self.uffd, self.at(*page))).collect()
    }

    pub(super) fn advise(&self, page: usize, advice: Advice) {
        let (start, len) = self.raw(page, 1);
        // SAFETY: a page of the fixture's own mapping.
        unsafe { rustix::mm::madvise(start, len, advice) }.unwrap();
    }

    /// Whether the page table leads to the page.
    pub(super) fn is_present(&self, page: usize) -> bool {
        let mut found = [0];
        self.pagemap.entries(self.at(page), &mut found).unwrap();
        found[0] & entry::PRESENT != 0
    }

    /// Pages it out, or discards it after MADV_FREE; whether it left. The kernel leaves a page that it
    /// is using for later.
    pub(super) fn page_out(&self, page: usize) -> bool {
        (0..100).any(|_| {
            self.advise(page, Advice::LinuxPageOut);
            !self.is_present(page)
        })
    }

    pub(super) fn set_access(&self, page: usize, access: MprotectFlags) {
        let (start, len) = self.raw(page, 1);
        // SAFETY: a page of the fixture's own mapping, which no code uses meanwhile.
        unsafe { rustix::mm::mprotect(start, len, access) }.unwrap();
    }

    pub(super) fn faults(&self) -> Vec<HostAddr> {
        let mut addresses = Vec::new();
        self.uffd.read_faults(0, &mut MessageBuffer::new(), |fault| addresses.push(fault.addr)).unwrap();
        addresses
    }

    /// Runs `body` once a store to `page` by another thread sleeps. The store must have gone
    /// through when `body` is over.
    pub(super) fn with_sleeper(&self, page: usize, body: impl FnOnce()) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                self.store(page, 77);
                done.store(true, SeqCst);
            });
            while !self.faults().contains(&self.at(page)) {
                std::thread::yield_now();
            }
            assert!(!done.load(SeqCst), "the store went through a protection");
            body();
        });
        assert_eq!(self.load(page), 77);
    }
}

/// A descriptor to which the kernel's own faults go too, if this user may have one.
pub(super) fn opened() -> Opened {
    open(Door::Syscall, KernelFaults::Delivered).or_else(|_| open(Door::Syscall, KernelFaults::Refused)).unwrap()
}

/// A descriptor with those of `features` that the kernel has. If `WP_UNPOPULATED` was asked for and
/// is missing, pages are populated before they are protected.
pub(super) fn descriptor(features: u64) -> Uffd {
    let offered = uffd_calls::api(opened().as_fd(), 0).unwrap();
    let check =
        if features & feature::WP_UNPOPULATED == 0 { None } else { Probe::of_this_process().check_of_populated() };
    Uffd::new(opened(), features & offered, check).unwrap()
}

/// The bytes of a huge page: one page of the page table leads to all of them.
pub(super) fn huge_bytes() -> usize {
    let page = PageSize::host().bytes();
    page / size_of::<u64>() * page
}

/// Whether a store to the page of `address` sleeps. Its contents and its protection stay.
pub(super) fn store_sleeps(uffd: &Uffd, address: HostAddr) -> bool {
    let page = HostRange::page_of(address, PageSize::host());
    let done = AtomicBool::new(false);
    let slept = std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the tests pass addresses of their own mappings only.
            unsafe { address.as_ptr().write_volatile(address.as_ptr().read_volatile()) };
            done.store(true, SeqCst);
        });
        let mut slept = false;
        while !slept && !done.load(SeqCst) {
            uffd.read_faults(0, &mut MessageBuffer::new(), |fault| slept |= page.contains(fault.addr)).unwrap();
            std::thread::yield_now();
        }
        if slept {
            uffd.unprotect(page).unwrap();
        }
        slept
    });
    if slept {
        uffd.protect(page).unwrap();
    }
    slept
}
