//! Limits of the process: open files, mappings, addresses.
//!
//! # Safety
//!
//! Sets limits and makes mappings of its own, in processes of their own. An observer does nothing.
#![allow(unsafe_code)]

use core::ffi::c_int;
use core::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Barrier};

use codewarden::addr::GuestAddr;
use codewarden::code_buffer::CodeBuffer;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{BeginError, PageClaim, PageObserver, PageWrite, Tracker};
use codewarden::{CodeCache, EntryStubs, Key};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::child::{Ended, in_child};
use crate::scenario::{End, TRACKING, UFFD, byte_of, fixture, scenario};
use crate::support::{Fixture, GUEST, PAGES, page_bytes, region, skip};

/// The tests check the descriptors below this number.
const NUMBERS: c_int = 1024;

pub(crate) fn set_limit(resource: Resource, most: u64) {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let most = maximum.map_or(most, |maximum| most.min(maximum));
    let current = (most != libc::RLIM_INFINITY).then_some(most);
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

pub(crate) fn open_files() -> Vec<c_int> {
    // SAFETY: asks about numbers.
    (0..NUMBERS).filter(|number| unsafe { libc::fcntl(*number, libc::F_GETFD) } != -1).collect()
}

/// Calls `make` with one free descriptor more each time until it succeeds. Each failure must
/// name the limit to raise and leave nothing open. Returns the result of `make`.
fn with_ever_more_files<T>(make: impl Fn() -> Result<T, Error>) -> (T, usize) {
    let before = open_files();
    let first_free = (0..).find(|number| !before.contains(number)).unwrap();
    for more in 0..16 {
        set_limit(Resource::Nofile, (first_free + more) as u64);
        match make() {
            Ok(made) => return (made, more as usize),
            Err(error) => assert!(error.to_string().contains("ulimit -n"), "with {more} free: {error}"),
        }
        assert_eq!(open_files(), before, "with {more} free: left open");
    }
    panic!("16 descriptors are not enough");
}

/// The descriptors run out at each place that opens one.
#[test]
fn open_files_of_a_region() {
    scenario("limits::open_files_of_a_region", &Mode::ALL, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let ((), needed) = with_ever_more_files(|| {
            let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE)?;
            // SAFETY: the memory outlives the cache.
            unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }
        });
        assert_eq!(needed == 0, !UFFD.contains(&mode), "{needed}");
        // With none left a region still works.
        let guest = fixture(mode);
        guest.expect_tracked(1);
        guest.expect_tracked(2);
    });
}

/// A sandbox forbids descriptors under a region. Thread mode's handler waits by `poll`,
/// which a limit below 3 refuses: that region is lost, and nothing of it is stale.
#[test]
fn open_files_forbidden_under_a_region() {
    scenario("limits::open_files_forbidden_under_a_region", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        set_limit(Resource::Nofile, 0);
        for _ in 0..2 {
            guest.store_to(1);
            guest.expect_dead(1);
        }
        if mode == Mode::Thread {
            // The handler comes to it a moment after the store is through.
            while guest.begin_error(2).is_none() {
                std::thread::yield_now();
            }
            guest.expect_lost();
        } else {
            guest.expect_tracked(2);
        }
    });
}

#[test]
fn open_files_of_guest_memory() {
    scenario("limits::open_files_of_guest_memory", &[Mode::Mprotect], End::Well, |_| {
        let (memory, needed) = with_ever_more_files(|| GuestMemory::memfd(page_bytes()));
        assert_eq!(needed, 1);
        drop(memory);
        let (_memory, needed) = with_ever_more_files(|| GuestMemory::anonymous(page_bytes()));
        assert_eq!(needed, 0);
    });
}

/// Memory for code has neither a descriptor nor a file size.
#[test]
fn code_needs_no_file() {
    scenario("limits::code_needs_no_file", &[Mode::Mprotect], End::Well, |_| {
        set_limit(Resource::Fsize, 0);
        let (buffer, needed) = with_ever_more_files(|| CodeBuffer::new(1 << 20));
        assert_eq!(needed, 0);
        let code = buffer.alloc(100, 16).unwrap();
        // SAFETY: the first byte of an allocation that is alive, in either view.
        unsafe {
            code.rw().write_volatile(7);
            assert_eq!(code.rx().read_volatile(), 7);
        }
        code.publish().unwrap();
    });
}

/// The kernel's signal for this limit would end the process.
#[test]
fn file_size_of_guest_memory() {
    scenario("limits::file_size_of_guest_memory", &[Mode::Mprotect], End::Well, |_| {
        set_limit(Resource::Fsize, 2 * page_bytes() as u64);
        let before = open_files();
        let refused = GuestMemory::memfd(3 * page_bytes()).unwrap_err();
        assert!(refused.to_string().contains("ulimit -f"), "{refused}");
        assert_eq!(open_files(), before);
        GuestMemory::memfd(2 * page_bytes()).unwrap();
        // The signal does not come later either.
        // SAFETY: reads this thread's signals into a local, for which zeroes are valid.
        let waiting = unsafe {
            let mut set = core::mem::zeroed();
            libc::sigpending(&raw mut set);
            libc::sigismember(&raw const set, libc::SIGXFSZ)
        };
        assert_eq!(waiting, 0);
    });
}

/// A child closes the descriptors that it inherited, and needs no more than those. The same
/// holds for its memory for code.
#[test]
fn open_files_of_a_forks_child() {
    scenario("limits::open_files_of_a_forks_child", &Mode::ALL, End::Well, |mode| {
        let (guest, buffer) = (fixture(mode), CodeBuffer::new(1 << 20).unwrap());
        guest.block(1);
        set_limit(Resource::Fsize, 0);
        set_limit(Resource::Nofile, *open_files().last().unwrap() as u64 + 1);
        // SAFETY: makes unused descriptors.
        while unsafe { libc::dup(0) } != -1 {}
        let before = open_files();
        let guards = (buffer.before_fork(), guest.cache.before_fork());
        let status = in_child(|| {
            guards.0.after_fork_child().unwrap();
            guards.1.after_fork_child().unwrap();
            buffer.alloc(100, 16).unwrap().publish().unwrap();
            guest.expect_dead(1);
            guest.expect_tracked(2);
            assert_eq!(open_files(), before);
            0
        });
        assert_eq!(status, Ended::Returned(0), "{mode}: the child");
        guest.expect_tracked(3);
    });
}

/// The kernel's limit of mappings; `None` if it is more than a test should take.
fn most_mappings() -> Option<usize> {
    let most: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    if most > 100_000 {
        skip(&format!("vm.max_map_count is {most}"));
        return None;
    }
    Some(most)
}

/// Makes mappings until the kernel gives no more; `None` as of [`most_mappings`].
fn use_up_mappings() -> Option<()> {
    let most = most_mappings()?;
    let len = (most + 64) * page_bytes();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, without users; its pages change between two kinds of access.
    unsafe {
        let start = libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
        assert_ne!(start, libc::MAP_FAILED);
        let every_other = (0..most + 64).step_by(2).map(|page| start.wrapping_byte_add(page * page_bytes()));
        let refused = every_other.take_while(|page| libc::mprotect(*page, page_bytes(), libc::PROT_READ) == 0).count();
        assert!(refused < most / 2 + 1, "no limit was met");
    }
    Some(())
}

/// Blocks on pages 4 to 8, each of them protected.
fn five_blocks_and_no_mapping_left(mode: Mode) -> Option<Fixture> {
    let guest = fixture(mode);
    (4..9).for_each(|page| guest.block(page));
    use_up_mappings().map(|()| guest)
}

/// Whether the allocator has memory when no mapping is left; prints a skip if not. The library's own
/// allocations then end the process, as any Rust program's do: no error of the library's is at fault.
fn allocates_without_mappings() -> bool {
    let is_musl = cfg!(target_env = "musl");
    if is_musl {
        skip(&"musl's allocator makes a mapping for each group of objects, and has no memory without one");
    }
    !is_musl
}

/// A userfaultfd splits no mapping: the modes that have one go on.
#[test]
fn mappings_where_none_is_split() {
    if !allocates_without_mappings() {
        return;
    }
    let modes = [Mode::Sigbus, Mode::Thread, Mode::Deferred, Mode::None];
    scenario("limits::mappings_where_none_is_split", &modes, End::Well, |mode| {
        let guest = fixture(mode);
        guest.expect_tracked(1);
        if use_up_mappings().is_some() {
            (0..PAGES).step_by(2).for_each(|page| guest.block(page));
            (0..PAGES).step_by(2).for_each(|page| guest.store_to(page));
            (0..PAGES).step_by(2).for_each(|page| guest.expect_dead(page));
        }
    });
}

/// To protect a page takes two more mappings, and so does to open one between protected
/// pages. The first fails with an error; the second opens all of them.
#[test]
fn mappings_under_mprotect() {
    scenario("limits::mappings_under_mprotect", &[Mode::Mprotect], End::Well, |mode| {
        let Some(guest) = five_blocks_and_no_mapping_left(mode) else { return };
        let error = guest.begin_error(1).expect("no mapping is left");
        assert!(error.to_string().contains("vm.max_map_count"), "{error}");
        guest.store_to(1);
        guest.store_to(6);
        (4..9).for_each(|page| guest.expect_dead(page));
        (0..PAGES).for_each(|page| guest.store_to(page));
        // The mappings of the five pages are free again.
        guest.expect_tracked(0);
    });
}

/// Leaves pages to their observer.
struct Silent;

// SAFETY: does nothing.
unsafe impl PageObserver for Silent {
    type Data = ();

    fn written(&self, (): &(), _: &PageWrite) {}
}

/// No mapping is left for a fork's child. Under mprotect its pages took them all, and it goes over them without
/// memory for a list. Mode thread may have no stack for its thread: then nothing is kept.
#[test]
fn mappings_of_a_forks_child() {
    if !allocates_without_mappings() {
        return;
    }
    scenario("limits::mappings_of_a_forks_child", &TRACKING, End::Well, |mode| {
        let Some(most) = most_mappings() else { return };
        let pages = if mode == Mode::Mprotect { most } else { PAGES };
        let tracker = Tracker::new(Arc::new(Silent));
        let memory = Arc::new(GuestMemory::anonymous(pages * page_bytes()).unwrap());
        tracker.add_memory(GuestAddr(0), memory.clone(), mode).unwrap();
        let mut claims = Vec::with_capacity(pages);
        claims.extend((0..pages).step_by(2).map_while(|page| {
            let claim = tracker.begin(GuestAddr((page * page_bytes()) as u64)).ok()?;
            claim.add_code(0..1);
            Some(claim)
        }));
        if mode == Mode::Mprotect {
            assert!(claims.len() > most / 3 && claims.len() < most / 2, "the limit was met: {}", claims.len());
        } else if use_up_mappings().is_none() {
            return;
        }
        let guard = tracker.before_fork();
        let ended = in_child(|| {
            let is_tracked = guard.after_fork_child().is_ok();
            if !is_tracked && mode != Mode::Thread {
                return 1;
            }
            let keeps_all = is_tracked && mode != Mode::Deferred;
            if claims.iter().any(|claim| claim.is_current() != keeps_all) {
                return 2;
            }
            // The first one is opened by itself, or all of them are.
            let hears = (0..claims.len()).rev().step_by(100).all(|at| {
                memory.write(2 * at * page_bytes(), &[1]).unwrap();
                !claims[at].is_current()
            });
            if hears { 0 } else { 3 }
        });
        assert_eq!(ended, Ended::Returned(0), "{mode}");
        assert!(claims.iter().all(PageClaim::is_current), "{mode}: in the parent");
    });
}

/// Handlers open the whole region over and over while translators begin. A block that can be
/// reached after a store was made from the store's bytes.
#[test]
fn mappings_under_mprotect_with_threads() {
    const ROUNDS: usize = 3_000;
    if !allocates_without_mappings() {
        return;
    }
    scenario("limits::mappings_under_mprotect_with_threads", &[Mode::Mprotect], End::Well, |mode| {
        let guest = fixture(mode);
        let most = PAGES - 2;
        // One mapping for each page that changes in the middle.
        (1..=most).for_each(|page| guest.block(page));
        // A thread needs mappings, so all threads start before the mappings run out.
        let start = Barrier::new(4);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                while !stop.load(SeqCst) {
                    (1..=most).for_each(|page| translate_if_possible(&guest, page));
                }
            });
            let writers = [4, 9].map(|page| {
                let (guest, start) = (&guest, &start);
                scope.spawn(move || {
                    start.wait();
                    for round in 0..ROUNDS {
                        // Another byte each time: a byte that faults repeatedly makes its page hot.
                        guest.store(byte_of(page) + 1 + (round % 1000) as u64, 0);
                        guest.store(byte_of(page), round as u8);
                        let reached = guest.lookup(byte_of(page));
                        assert!(reached.is_none_or(|entry| entry as u8 == round as u8), "stale: {reached:x?}");
                    }
                })
            });
            let _ = use_up_mappings();
            start.wait();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            stop.store(true, SeqCst);
        });
    });
}

/// Like `Fixture::translate`, but does nothing if the page is busy or cannot be protected.
fn translate_if_possible(guest: &Fixture, page: usize) {
    let mut ticket = guest.cache.begin(Key::new(byte_of(page)));
    if ticket.claim(GuestAddr(byte_of(page))).is_ok() {
        let _ = ticket.commit(0x1000 | usize::from(guest.read(byte_of(page))), 0);
    }
}

#[test]
fn mappings_under_an_announcement() {
    scenario("limits::mappings_under_an_announcement", &[Mode::Mprotect], End::Well, |mode| {
        let Some(guest) = five_blocks_and_no_mapping_left(mode) else { return };
        let held = guest.cache.tracker().prepare_kernel_write(GuestAddr(byte_of(6)), 1).unwrap();
        guest.expect_dead(6);
        let file = std::fs::File::open("/dev/zero").unwrap();
        let into = guest.memory.range().start().as_ptr().wrapping_add((byte_of(6) - GUEST) as usize);
        // SAFETY: the kernel writes one byte of the guest's.
        assert_eq!(unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&file), into.cast(), 1) }, 1);
        drop(held);
    });
}

/// No memory for page descriptors is an error; a plain allocation would end the process.
#[test]
fn addresses() {
    scenario("limits::addresses", &Mode::ALL, End::Well, |mode| {
        const LEN: usize = 128 << 30;
        let memory = GuestMemory::anonymous(LEN).unwrap();
        let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
        // SAFETY: the memory outlives the cache.
        unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }.unwrap();
        cache.tracker().begin(GuestAddr(GUEST)).unwrap();
        leave_addresses(256 << 10);
        // Each page has descriptors of its own.
        let pages = (1..LEN as u64 >> 21).map(|number| GuestAddr(GUEST + (number << 21)));
        let refused = pages.map(|page| cache.tracker().begin(page)).find_map(Result::err);
        set_limit(Resource::As, libc::RLIM_INFINITY);
        let Some(BeginError::Failed(error)) = refused else { panic!("{mode}: {refused:?}") };
        assert!(matches!(error, Error::NoMemory { .. }) && error.to_string().contains("ulimit -v"), "{error}");
        // Everything from before still works.
        cache.tracker().begin(GuestAddr(GUEST)).unwrap();
        memory.write(0, &[1]).unwrap();
        cache.tracker().set_access(GuestAddr(GUEST), 1, Access::ReadWrite).unwrap();
    });
}

/// Lets the process map this much more, and nothing beyond it.
fn leave_addresses(len_bytes: usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let mapped_pages: usize = statm.split(' ').next().unwrap().parse().unwrap();
    set_limit(Resource::As, (mapped_pages * page_bytes() + len_bytes) as u64);
}
