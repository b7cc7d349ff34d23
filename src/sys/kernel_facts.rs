//! The facts about the kernel that the library relies on, each tested alone.
//!
//! A kernel that differs fails here first, with the fact's name, and not as a lost invalidation
//! somewhere above. Faults that kill the process are tested in processes of their own:
//! `tests/host_faults.rs`. The effect of `read` and other kernel writes in each mode is a case
//! of the conformance suite.
//!
//! # Safety
//!
//! Loads and stores go to the fixture's own mapping, by raw pointers.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::child::{Ended, in_child};
use crate::sys::mmap::{Mapping, memfd};
use crate::sys::pagemap::{Pagemap, entry};
use crate::sys::populate::{self, Check};
use crate::sys::probe::{Facility, Probe, skip};
use crate::sys::uffd::{Door, KernelFaults, MessageBuffer, Uffd, feature, open};
use crate::sys::uffd_calls;

const PAGES: usize = 8;
const SYNC: u64 = feature::WP | feature::WP_UNPOPULATED | feature::WP_SHMEM | feature::EXACT_ADDRESS;

/// The features that every kernel before 6.4 lacks one of.
const POPULATED_ONLY: u64 = SYNC & !feature::WP_UNPOPULATED;

/// Whether this kernel has all of `facilities`; prints a skip if not.
fn has_or_skips(facilities: &[Facility]) -> bool {
    let probe = Probe::of_this_process();
    facilities.iter().find_map(|facility| probe.why_missing(*facility)).map(skip).is_none()
}

/// Memory and a descriptor whose messages only the test reads: a store to a protected page
/// sleeps.
struct Fixture {
    page: PageSize,
    file: Option<OwnedFd>,
    memory: Mapping,
    pagemap: Pagemap,
    uffd: Uffd,
}

impl Fixture {
    fn new(features: u64, on_memfd: bool) -> Self {
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
    fn sync_on_both() -> Vec<Self> {
        let on_memfd = has_or_skips(&[Facility::WpShmem]).then(|| Self::new(SYNC, true));
        [Some(Self::new(SYNC, false)), on_memfd].into_iter().flatten().collect()
    }

    fn pages(&self, first: usize, count: usize) -> HostRange {
        HostRange::of_pages(self.at(first), count, self.page)
    }

    fn at(&self, page: usize) -> HostAddr {
        HostAddr(self.memory.range().start().0 + page * self.page.bytes())
    }

    /// A raw pointer and a length, as system calls take them.
    fn raw(&self, first: usize, count: usize) -> (*mut c_void, usize) {
        (self.at(first).as_ptr().cast(), count * self.page.bytes())
    }

    fn store(&self, page: usize, value: u8) {
        // SAFETY: in the fixture's mapping.
        unsafe { self.at(page).as_ptr().write_volatile(value) };
    }

    fn load(&self, page: usize) -> u8 {
        // SAFETY: as above.
        unsafe { self.at(page).as_ptr().read_volatile() }
    }

    /// The pages that the kernel holds protected. They stay so, and keep their contents.
    fn protected(&self) -> Vec<usize> {
        (0..PAGES).filter(|page| store_sleeps(&self.uffd, self.at(*page))).collect()
    }

    fn advise(&self, page: usize, advice: Advice) {
        let (start, len) = self.raw(page, 1);
        // SAFETY: a page of the fixture's own mapping.
        unsafe { rustix::mm::madvise(start, len, advice) }.unwrap();
    }

    /// Whether the page table leads to the page.
    fn is_present(&self, page: usize) -> bool {
        let mut found = [0];
        self.pagemap.entries(self.at(page), &mut found).unwrap();
        found[0] & entry::PRESENT != 0
    }

    /// Pages it out, or discards it after MADV_FREE; whether it left. The kernel leaves a page that it
    /// is using for later.
    fn page_out(&self, page: usize) -> bool {
        (0..100).any(|_| {
            self.advise(page, Advice::LinuxPageOut);
            !self.is_present(page)
        })
    }

    fn set_access(&self, page: usize, access: MprotectFlags) {
        let (start, len) = self.raw(page, 1);
        // SAFETY: a page of the fixture's own mapping, which no code uses meanwhile.
        unsafe { rustix::mm::mprotect(start, len, access) }.unwrap();
    }

    fn faults(&self) -> Vec<HostAddr> {
        let mut addresses = Vec::new();
        self.uffd.read_faults(0, &mut MessageBuffer::new(), |fault| addresses.push(fault.addr)).unwrap();
        addresses
    }

    /// Runs `body` once a store to `page` by another thread sleeps. The store must have gone
    /// through when `body` is over.
    fn with_sleeper(&self, page: usize, body: impl FnOnce()) {
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

/// A descriptor with those of `features` that the kernel has. If `WP_UNPOPULATED` was asked for and
/// is missing, pages are populated before they are protected.
fn descriptor(features: u64) -> Uffd {
    let open = || open(Door::Syscall, KernelFaults::Delivered).or_else(|_| open(Door::Syscall, KernelFaults::Refused));
    let offered = uffd_calls::api(open().unwrap().as_fd(), 0).unwrap();
    let check =
        if features & feature::WP_UNPOPULATED == 0 { None } else { Probe::of_this_process().check_of_populated() };
    Uffd::new(open().unwrap(), features & offered, check).unwrap()
}

/// The bytes of a huge page: one page of the page table leads to all of them.
fn huge_bytes() -> usize {
    let page = PageSize::host().bytes();
    page / size_of::<u64>() * page
}

/// Whether a store to the page of `address` sleeps. Its contents and its protection stay.
fn store_sleeps(uffd: &Uffd, address: HostAddr) -> bool {
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

#[test]
fn only_a_descriptor_with_wp_unpopulated_protects_what_was_never_touched() {
    if has_or_skips(&[Facility::WpUnpopulated]) {
        let with = Fixture::new(SYNC, false);
        with.uffd.protect(with.pages(0, 2)).unwrap();
        assert_eq!(with.protected(), [0, 1]);
    }
    let without = Fixture::new(POPULATED_ONLY, false);
    without.uffd.protect(without.pages(0, 2)).unwrap();
    assert_eq!(without.protected(), []);
}

/// Kernels before 6.4, and later ones without `WP_UNPOPULATED`: one step to populate a page, then
/// the protecting call, then one step that might take the protection away.
#[test]
fn a_populated_page_is_protected_whatever_becomes_of_it() {
    type Step = fn(&Fixture);
    let nothing: Step = |_| ();
    let read: Step = |fixture| populate::read_byte(fixture.at(1)).unwrap();
    let written: Step = |fixture| fixture.store(1, 1);
    let paged_out: Step = |fixture| {
        fixture.store(1, 1);
        if !fixture.page_out(1) {
            eprintln!("skipped: the page never left; this machine has no swap");
        }
    };
    let forked: Step = |fixture| {
        fixture.store(1, 1);
        assert_eq!(in_child(|| 0), Ended::Returned(0));
    };
    let page_out: Step = |fixture| {
        fixture.page_out(1);
    };
    let fork: Step = |_| assert_eq!(in_child(|| 0), Ended::Returned(0));
    let no_access: Step = |fixture| {
        fixture.set_access(1, MprotectFlags::empty());
        fixture.set_access(1, MprotectFlags::READ | MprotectFlags::WRITE);
    };
    let discard: Step = |fixture| fixture.advise(1, Advice::LinuxDontNeed);
    let cases = [
        ("never touched", nothing, nothing, false),
        ("read: it is the zero page", read, nothing, true),
        ("the zero page, no access and back", read, no_access, true),
        ("the zero page, in a fork's parent", read, fork, true),
        ("written", written, nothing, true),
        ("paged out before", paged_out, nothing, true),
        ("paged out after", written, page_out, true),
        ("written, no access and back", written, no_access, true),
        ("shared with a fork's child before", forked, nothing, true),
        ("shared with a fork's child after", written, fork, true),
        ("discarded after", written, discard, false),
    ];
    for (name, before, after, is_protected) in cases {
        let fixture = Fixture::new(POPULATED_ONLY, false);
        before(&fixture);
        fixture.uffd.protect(fixture.pages(1, 1)).unwrap();
        after(&fixture);
        assert_eq!(store_sleeps(&fixture.uffd, fixture.at(1)), is_protected, "{name}");
    }
}

/// The contents of a page go some time after `MADV_FREE`, unless it is written before, and its
/// protection goes with them, on every kernel. The populating read does not keep the page either.
#[test]
fn a_page_that_is_freed_lazily_loses_its_protection_with_its_contents() {
    for features in [SYNC, POPULATED_ONLY] {
        for is_protected_first in [false, true] {
            let fixture = Fixture::new(features, false);
            let protect = || fixture.uffd.protect(fixture.pages(1, 1)).unwrap();
            fixture.store(1, 1);
            if is_protected_first {
                protect();
            }
            fixture.advise(1, Advice::LinuxFree);
            populate::read_byte(fixture.at(1)).unwrap();
            if !is_protected_first {
                protect();
            }
            if !fixture.page_out(1) {
                eprintln!("skipped: the page never left");
                continue;
            }
            assert_eq!(fixture.load(1), 0);
            assert!(!store_sleeps(&fixture.uffd, fixture.at(1)));
        }
    }
}

/// Part by part, as the library protects before 6.4, the pages of a huge page stay protected when
/// one of them is opened: of one with contents, and of the huge zero page.
#[test]
fn a_huge_page_that_is_protected_in_parts_is_protected_page_by_page() {
    let page = PageSize::host();
    for is_zero in [false, true] {
        let memory = Mapping::anonymous(2 * huge_bytes(), page).unwrap();
        let start = HostAddr(memory.range().start().0.next_multiple_of(huge_bytes()));
        let range = HostRange::of_pages(start, huge_bytes() >> page.shift(), page);
        // SAFETY: in the mapping, which no other code uses.
        let is_advised =
            unsafe { rustix::mm::madvise(start.as_ptr().cast(), huge_bytes(), Advice::LinuxHugepage) }.is_ok();
        if !is_advised {
            return eprintln!("SKIPPED: this kernel has no huge pages");
        }
        if is_zero {
            populate::read_byte(start).unwrap();
        } else {
            // SAFETY: as above.
            unsafe { start.as_ptr().write_volatile(1) };
        }
        let populating = Probe::with_hidden("wp_unpopulated").check_of_populated();
        let open =
            || open(Door::Syscall, KernelFaults::Delivered).or_else(|_| open(Door::Syscall, KernelFaults::Refused));
        let uffd = Uffd::new(open().unwrap(), feature::WP, populating).unwrap();
        uffd.register(range).unwrap();
        uffd.protect(range).unwrap();
        let at = |index: usize| HostAddr(start.0 + (index << page.shift()));
        uffd.unprotect(HostRange::page_of(at(7), page)).unwrap();
        assert!(!store_sleeps(&uffd, at(7)));
        for index in [0, 6, 8, 63, 64, 300, (huge_bytes() >> page.shift()) - 1] {
            assert!(store_sleeps(&uffd, at(index)), "page {index}, zero: {is_zero}");
        }
        uffd.release(range).unwrap();
    }
}

#[test]
fn dontneed_loses_protection_on_anonymous_memory_and_keeps_it_on_a_memfd() {
    for fixture in Fixture::sync_on_both() {
        fixture.store(1, 1);
        fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
        let (start, len) = fixture.raw(1, 2);
        // SAFETY: drops pages of the fixture's own mapping.
        unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontNeed) }.unwrap();
        let kept: &[usize] = if fixture.file.is_some() { &[0, 1, 2, 3] } else { &[0, 3] };
        assert_eq!(fixture.protected(), kept);
    }
}

#[test]
fn protection_survives_the_guests_mprotect() {
    for fixture in Fixture::sync_on_both() {
        fixture.store(1, 1);
        fixture.uffd.protect(fixture.pages(1, 2)).unwrap();
        let (start, len) = fixture.raw(0, 4);
        for access in [MprotectFlags::READ, MprotectFlags::empty(), MprotectFlags::READ | MprotectFlags::WRITE] {
            // SAFETY: the fixture's own mapping, which no code uses meanwhile.
            unsafe { rustix::mm::mprotect(start, len, access) }.unwrap();
        }
        assert_eq!(fixture.protected(), [1, 2]);
        fixture.with_sleeper(1, || fixture.uffd.unprotect(fixture.pages(1, 1)).unwrap());
    }
}

#[test]
fn map_fixed_loses_protection_and_registration() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let (start, len) = fixture.raw(1, 1);
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: replaces a page of the fixture's own mapping.
    unsafe { rustix::mm::mmap_anonymous(start, len, access, flags) }.unwrap();
    assert_eq!(fixture.protected(), [0, 2, 3]);
    let error = fixture.uffd.protect(fixture.pages(0, 4)).unwrap_err();
    assert!(matches!(error, Error::System { errno: libc::ENOENT, .. }), "{error}");
}

#[test]
fn mremap_loses_protection_and_registration() {
    let fixture = Fixture::new(SYNC, false);
    fixture.store(1, 1);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let target = Mapping::anonymous(fixture.page.bytes(), fixture.page).unwrap();
    let to = target.range();
    let (start, len) = fixture.raw(1, 1);
    // SAFETY: moves a page of the fixture over a mapping that the test owns.
    unsafe {
        rustix::mm::mremap_fixed(start, len, len, MremapFlags::MAYMOVE, to.start().as_ptr().cast()).unwrap();
        to.start().as_ptr().write_volatile(5); // does not sleep
    }
    assert!(!store_sleeps(&fixture.uffd, to.start()));
    assert!(fixture.uffd.protect(to).is_err());
}

#[test]
fn unregistering_wakes_no_thread_and_a_wake_after_it_does() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(3, 1)).unwrap();
    fixture.with_sleeper(3, || {
        fixture.uffd.unregister(fixture.memory.range()).unwrap();
        // Long enough for a woken store to be seen; a slow machine makes the check weaker, not
        // wrong.
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(fixture.load(3), 0, "the unregister woke the writer");
        fixture.uffd.wake(fixture.memory.range()).unwrap();
    });
}

#[test]
fn a_release_leaves_no_writer_asleep() {
    for fixture in Fixture::sync_on_both() {
        fixture.uffd.protect(fixture.pages(3, 1)).unwrap();
        fixture.with_sleeper(3, || fixture.uffd.release(fixture.memory.range()).unwrap());
    }
}

#[test]
fn closing_the_descriptor_wakes_all_and_opens_all() {
    let Fixture { memory, uffd, .. } = Fixture::new(SYNC, false);
    uffd.protect(memory.range()).unwrap();
    let start = memory.range().start();
    std::thread::scope(|scope| {
        // SAFETY: in the mapping, which lives until the scope's end.
        scope.spawn(move || unsafe { start.as_ptr().write_volatile(1) });
        let mut asleep = false;
        while !asleep {
            uffd.read_faults(0, &mut MessageBuffer::new(), |_| asleep = true).unwrap();
        }
        drop(uffd);
    });
    // No store waits. (Linux 6.1 still shows the pages as protected in the pagemap.)
    for page in 0..PAGES {
        // SAFETY: in the mapping.
        unsafe { start.as_ptr().add(page * PageSize::host().bytes()).write_volatile(1) };
    }
}

#[test]
fn one_unprotect_wakes_several_writers_and_takes_their_messages() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(2, 1)).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let address = HostAddr(fixture.at(2).0 + writer * 64);
            // SAFETY: in the fixture's mapping.
            scope.spawn(move || unsafe { address.as_ptr().write_volatile(1) });
        }
        let mut seen = Vec::new();
        while seen.len() < 4 {
            seen.extend(fixture.faults());
        }
        assert_eq!(seen.len(), 4);
        seen.sort();
        seen.dedup();
        let is_exact = Probe::of_this_process().has(Facility::ExactAddress);
        assert_eq!(seen.len(), if is_exact { 4 } else { 1 }, "each writer has a message of its own: {seen:?}");
        fixture.uffd.unprotect(fixture.pages(2, 1)).unwrap();
    });
    assert_eq!(fixture.faults(), []);
}

#[test]
fn a_failing_compare_and_exchange_is_a_store() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 1)).unwrap();
    let address = fixture.at(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // SAFETY: aligned, in the fixture's mapping, used as an atomic only.
            let word = unsafe { AtomicU64::from_ptr(address.as_ptr().cast()) };
            assert_eq!(word.compare_exchange(1, 2, SeqCst, SeqCst), Err(0));
        });
        while fixture.faults().is_empty() {
            std::thread::yield_now();
        }
        fixture.uffd.unprotect(fixture.pages(0, 1)).unwrap();
    });
}

#[test]
fn an_alias_and_pwrite_pass_by_the_protection() {
    if !has_or_skips(&[Facility::WpShmem]) {
        return;
    }
    let fixture = Fixture::new(SYNC, true);
    let file = fixture.file.as_ref().unwrap();
    let alias = Mapping::shared(file, fixture.memory.range().len(), fixture.page).unwrap();
    fixture.uffd.protect(fixture.memory.range()).unwrap();
    // SAFETY: in the alias's own mapping.
    unsafe { alias.range().start().as_ptr().write_volatile(3) };
    assert_eq!(fixture.load(0), 3);
    rustix::io::pwrite(file, &[4], fixture.page.bytes() as u64).unwrap();
    assert_eq!(fixture.load(1), 4);
    assert_eq!(fixture.faults(), []);
    assert_eq!(fixture.protected().len(), PAGES);
}

#[test]
fn a_debuggers_write_fails_without_an_event() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 1)).unwrap();
    let memory = File::options().write(true).open("/proc/self/mem").unwrap();
    let error = memory.write_at(&[1], fixture.at(0).0 as u64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(fixture.faults(), []);
}

#[test]
fn scattered_protections_stay_in_one_vma() {
    let fixture = Fixture::new(SYNC, false);
    for page in (0..PAGES).step_by(2) {
        fixture.uffd.protect(fixture.pages(page, 1)).unwrap();
    }
    let vma = region::query(fixture.at(1).as_ptr()).unwrap().as_range();
    assert!(vma.start <= fixture.at(0).0 && vma.end >= fixture.memory.range().end().0);
    assert_eq!(fixture.protected(), [0, 2, 4, 6]);
}

/// A mapping with one huge page, and that page, if one is
/// available. Another test that forks while it is filled splits it.
fn huge_page() -> Option<(Mapping, HostRange)> {
    let page = PageSize::host();
    let pagemap = Pagemap::open(page).unwrap();
    (0..50).find_map(|_| {
        let memory = Mapping::anonymous(2 * huge_bytes(), page).unwrap();
        let start = HostAddr(memory.range().start().0.next_multiple_of(huge_bytes()));
        let range = HostRange::of_pages(start, huge_bytes() >> page.shift(), page);
        // SAFETY: in the mapping, which no other code uses.
        unsafe {
            rustix::mm::madvise(start.as_ptr().cast(), huge_bytes(), Advice::LinuxHugepage).ok()?;
            start.as_ptr().write_bytes(1, huge_bytes());
        }
        (pagemap.huge(range) == Ok(vec![range])).then_some((memory, range))
    })
}

#[test]
fn a_huge_page_stays_whole_where_all_of_it_is_protected() {
    if !has_or_skips(&[Facility::PagemapScan]) {
        return;
    }
    let Some((_memory, range)) = huge_page() else {
        return skip("no huge page was to be had");
    };
    let page = PageSize::host();
    let (uffd, pagemap) = (descriptor(SYNC), Pagemap::open(page).unwrap());
    uffd.register(range).unwrap();
    assert_eq!(pagemap.huge(range), Ok(vec![range]), "registering splits nothing");
    uffd.protect(range).unwrap();
    assert_eq!(pagemap.huge(range), Ok(vec![range]));
    assert_eq!(pagemap.protected(range), Ok(vec![range]));
    uffd.unprotect(range).unwrap();
    assert_eq!(pagemap.huge(range), Ok(vec![range]));
    let one = HostRange::page_of(HostAddr(range.start().0 + 7 * page.bytes()), page);
    uffd.protect(one).unwrap();
    assert_eq!(pagemap.protected(range), Ok(vec![one]));
    assert_eq!(pagemap.huge(range), Ok(vec![]), "one small page of it splits it");
}

#[test]
fn regular_files_are_for_asynchronous_descriptors_alone() {
    let page = PageSize::host();
    let path = std::env::temp_dir().join(format!("codewarden-kernel-facts-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(page.bytes() as u64).unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping without stores; it ends with the process.
    let start =
        unsafe { rustix::mm::mmap(core::ptr::null_mut(), page.bytes(), access, MapFlags::PRIVATE, &file, 0) }.unwrap();
    let range = HostRange::of_pages(HostAddr(start as usize), 1, page);
    if rustix::fs::fstatfs(&file).unwrap().f_type as u32 != libc::TMPFS_MAGIC as u32 {
        let error = descriptor(SYNC).register(range).unwrap_err();
        assert!(matches!(error, Error::System { errno: libc::EINVAL, .. }), "{error}");
    }
    if has_or_skips(&[Facility::WpAsync]) {
        descriptor(SYNC | feature::WP_ASYNC).register(range).unwrap();
    }
}

#[test]
fn asynchronous_writeprotect_hides_a_write_from_the_next_harvest() {
    if !has_or_skips(&[Facility::WpAsync, Facility::PagemapScan]) {
        return;
    }
    let fixture = Fixture::new(SYNC | feature::WP_ASYNC, false);
    let harvest = || {
        let mut written = 0;
        fixture
            .pagemap
            .harvest(fixture.memory.range(), &mut |part| written += part.len() / fixture.page.bytes())
            .unwrap();
        written
    };
    assert_eq!(harvest(), PAGES, "a fresh range counts as written");
    fixture.store(1, 1);
    fixture.store(5, 1);
    assert_eq!(harvest(), 2);
    fixture.store(1, 2);
    fixture.uffd.protect(fixture.pages(1, 1)).unwrap();
    assert_eq!(harvest(), 0, "taken over by the ioctl: this is why deferred regions never use it");
}

#[test]
fn a_harvest_of_more_regions_than_fit_in_one_call_is_whole() {
    if !has_or_skips(&[Facility::WpAsync, Facility::PagemapScan]) {
        return;
    }
    let page = PageSize::host();
    let pages = 1200;
    let memory = Mapping::anonymous(pages * page.bytes(), page).unwrap();
    // So that a page table leads to each page: see the next fact.
    for page_index in 0..pages {
        populate::read_byte(HostAddr(memory.range().start().0 + page_index * page.bytes())).unwrap();
    }
    let uffd = descriptor(SYNC | feature::WP_ASYNC);
    uffd.register(memory.range()).unwrap();
    let pagemap = Pagemap::open(page).unwrap();
    pagemap.harvest(memory.range(), &mut |_| ()).unwrap();
    let written: Vec<usize> = (0..pages).step_by(3).collect();
    for page_index in &written {
        let address = HostAddr(memory.range().start().0 + page_index * page.bytes());
        // SAFETY: in the test's own mapping.
        unsafe { address.as_ptr().write_volatile(1) };
    }
    let mut found = Vec::new();
    let index = |address: HostAddr| (address.0 - memory.range().start().0) / page.bytes();
    pagemap.harvest(memory.range(), &mut |part| found.extend(index(part.start())..index(part.end()))).unwrap();
    assert_eq!(found, written);
}

/// A harvest by Linux 6.17 passes over pages to which no page table leads: it neither reports nor
/// protects them. The first write makes the page table, whose other pages then count as written too.
/// So more is reported than was written, and nothing less.
#[test]
fn a_write_where_no_page_table_was_is_harvested() {
    if !has_or_skips(&[Facility::WpAsync, Facility::PagemapScan]) {
        return;
    }
    let page = PageSize::host();
    let memory = Mapping::anonymous(3 * huge_bytes(), page).unwrap();
    let uffd = descriptor(SYNC | feature::WP_ASYNC);
    uffd.register(memory.range()).unwrap();
    let pagemap = Pagemap::open(page).unwrap();
    let harvest = |what: &str, at: HostAddr, is_exact: bool| {
        let (mut pages, mut found) = (0, false);
        pagemap
            .harvest(memory.range(), &mut |part| {
                pages += part.len() / page.bytes();
                found |= part.contains(at);
            })
            .unwrap();
        assert!(found && (!is_exact || pages == 1), "{what}: {pages} pages");
    };
    pagemap.harvest(memory.range(), &mut |_| ()).unwrap();
    // In the middle of the part that a page of the page table leads to.
    let at = HostAddr(memory.range().start().0.next_multiple_of(huge_bytes()) + huge_bytes() + huge_bytes() / 2);
    for (what, is_exact) in [("the first write", false), ("the second", true)] {
        // SAFETY: in the test's own mapping.
        unsafe { at.as_ptr().write_volatile(1) };
        harvest(what, at, is_exact);
    }
}

#[test]
fn an_unregistered_piece_ends_the_ioctl_after_a_part_was_applied() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.unregister(fixture.pages(2, 1)).unwrap();
    let (start, len) = (fixture.at(0).0, 4 * fixture.page.bytes());
    // Not piece by piece, as the library does it.
    assert!(uffd_calls::protect(fixture.uffd.copies()[0], start, len).is_err());
    // A call over several mappings does nothing on older kernels (6.1 is one).
    let protected = fixture.protected();
    assert!(protected == [0, 1] || protected.is_empty(), "{protected:?}");
}

#[test]
fn a_read_that_reaches_a_protected_page_is_cut_short_in_user_mode_only() {
    if !has_or_skips(&[Facility::UserModeOnly]) {
        return;
    }
    let page = PageSize::host();
    let memory = Mapping::anonymous(2 * page.bytes(), page).unwrap();
    let fd = open(Door::Syscall, KernelFaults::Refused).unwrap();
    let uffd = Uffd::new(fd, feature::WP, Some(Check::Populated)).unwrap();
    uffd.register(memory.range()).unwrap();
    let second = HostAddr(memory.range().start().0 + page.bytes());
    uffd.protect(HostRange::page_of(second, page)).unwrap();
    let (from, into) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&into, &[9; 8]).unwrap();
    let read_to = |address: usize, len| {
        // SAFETY: the kernel writes to the test's own mapping.
        let count = unsafe { libc::read(from.as_raw_fd(), address as *mut c_void, len) };
        if count >= 0 { Ok(count) } else { Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()) }
    };
    assert_eq!(read_to(second.0, 8), Err(Errno::FAULT), "no data is lost by it");
    assert_eq!(read_to(second.0 - 4, 8).unwrap_or(4), 4);
    // SAFETY: in the test's own mapping.
    assert_eq!(unsafe { second.as_ptr().read_volatile() }, 0);
}

#[test]
fn a_forks_child_is_untracked_and_the_parent_stays_tracked() {
    let fixture = Fixture::new(SYNC, false);
    fixture.store(1, 1);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let status = in_child(|| {
        fixture.store(1, 2); // would sleep for ever if it were tracked
        let refused = fixture.uffd.unprotect(fixture.pages(0, 4)) == Err(Error::InForkChild);
        u8::from(!refused) | u8::from(fixture.load(1) != 2) << 1
    });
    assert_eq!(status, Ended::Returned(0));
    assert_eq!(fixture.load(1), 1);
    assert_eq!(fixture.protected(), [0, 1, 2, 3]);
}

#[test]
fn an_ioctl_by_a_forks_child_acts_on_the_parent() {
    let fixture = Fixture::new(SYNC, false);
    fixture.uffd.protect(fixture.pages(0, 4)).unwrap();
    let (start, len) = (fixture.at(1).0, fixture.page.bytes());
    let refused = in_child(|| u8::from(uffd_calls::unprotect(fixture.uffd.copies()[0], start, len).is_err()));
    assert_eq!(refused, Ended::Returned(0));
    assert_eq!(fixture.protected(), [0, 2, 3]);
}

#[test]
fn an_ordinary_store_by_another_thread_is_seen_under_protection() {
    // The control of this file: without protection the helper's store does not sleep.
    let fixture = Fixture::new(SYNC, false);
    let stored = AtomicU8::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            fixture.store(1, 1);
            stored.store(1, SeqCst);
        });
    });
    assert_eq!((stored.load(SeqCst), fixture.faults().len()), (1, 0));
}
