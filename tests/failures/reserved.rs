//! A reserved region over all addresses of a process, the process's own memory among them. The library touches
//! only declared memory: nothing takes as long as the region is large, and nothing happens to the
//! memory between.
//!
//! # Safety
//!
//! Mappings are made at addresses at which nothing was mapped, and accessed while they are there. Processes
//! have one thread but for the library's, in which no test starts another.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::error::Error;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{BeginError, MappingChange, RegionOptions};
use codewarden::{CodeCache, EntryStubs, Key};

use crate::child::{Ended, in_child};
use crate::scenario::{End, SYNCHRONOUS, UFFD, scenario};
use crate::support::{page_bytes, skip};

/// Pages between the mappings of a test.
const ROOM: usize = 64;

/// The distance of those from the addresses that the kernel gives away.
const FAR_BYTES: usize = 64 << 30;

/// Every address of the process: the guest's are the host's.
fn all_addresses() -> HostRange {
    let local = 0_u8;
    let highest = (&raw const local).addr();
    let len = 1 << (usize::BITS - highest.leading_zeros());
    HostRange::new(HostAddr(0), len, PageSize::host()).unwrap()
}

struct Space {
    cache: CodeCache<()>,
    mode: Mode,
    /// Nothing is mapped from here on, for [`ROOM`] pages.
    free: usize,
    entries: Cell<usize>,
}

impl Space {
    fn new(mode: Mode) -> Self {
        let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
        let options = RegionOptions::new(GuestAddr(0), all_addresses(), mode).with_reserved(true);
        // SAFETY: declared memory outlives the cache, or is declared to be gone.
        unsafe { cache.tracker().add_region(options) }.unwrap();
        let len = ROOM * page_bytes();
        // SAFETY: finds a place, which is free afterwards.
        let free = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let near = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(near, libc::MAP_FAILED);
            assert_eq!(libc::munmap(near, len), 0);
            // Far below all mappings that the kernel makes for the allocator.
            let far = near.wrapping_byte_sub(FAR_BYTES);
            let at = libc::mmap(far, len, libc::PROT_NONE, flags | libc::MAP_FIXED_NOREPLACE, -1, 0);
            assert_eq!(at, far);
            assert_eq!(libc::munmap(at, len), 0);
            at.addr()
        };
        Self { cache, mode, free, entries: Cell::new(0x10) }
    }

    fn at(&self, page: usize) -> usize {
        self.free + page * page_bytes()
    }

    fn change(&self, page: usize, count: usize) -> MappingChange {
        let len = (count * page_bytes()) as u64;
        self.cache.tracker().change_mapping(GuestAddr(self.at(page) as u64), len).unwrap()
    }

    /// Anonymous memory, or this file, at `count` pages.
    fn map(&self, page: usize, count: usize, file: Option<&std::fs::File>, access: i32) {
        let (kind, fd) = file.map_or((libc::MAP_ANONYMOUS, -1), |file| (0, file.as_raw_fd()));
        let (at, len) = (self.at(page), count * page_bytes());
        // SAFETY: in the free addresses.
        let mapped =
            unsafe { libc::mmap(at as *mut _, len, access, libc::MAP_PRIVATE | libc::MAP_FIXED | kind, fd, 0) };
        assert_eq!(mapped.addr(), at);
    }

    fn unmap(&self, page: usize, count: usize) {
        // SAFETY: mapped by this test, or free.
        assert_eq!(unsafe { libc::munmap(self.at(page) as *mut _, count * page_bytes()) }, 0);
    }

    fn map_declared(&self, page: usize, count: usize) {
        let change = self.change(page, count);
        self.map(page, count, None, RW);
        change.finish_replaced(Access::ReadWrite, None).unwrap();
    }

    fn unmap_declared(&self, page: usize, count: usize) {
        let change = self.change(page, count);
        self.unmap(page, count);
        change.finish_unmapped().unwrap();
    }

    fn claim(&self, address: usize) -> Result<(), BeginError> {
        loop {
            match self.cache.tracker().begin(GuestAddr(address as u64)) {
                Err(BeginError::Busy(_)) => std::thread::yield_now(),
                claimed => return claimed.map(drop),
            }
        }
    }

    /// Makes a block from a byte.
    fn block(&self, address: usize) {
        self.entries.set(self.entries.get() + 1);
        let mut ticket = self.cache.begin(Key::new(address as u64));
        while let Err(error) = ticket.claim(GuestAddr(address as u64)) {
            assert!(matches!(error, BeginError::Busy(_)), "{}: {error}", self.mode);
        }
        ticket.commit(self.entries.get(), ()).unwrap();
        assert!(self.is_reachable(address));
    }

    fn is_reachable(&self, address: usize) -> bool {
        self.cache.attach_vcpu().pin().lookup(Key::new(address as u64)).is_some()
    }

    /// A store to `page` ends the block made from there.
    fn expect_tracked(&self, page: usize) {
        let address = self.at(page) + 100;
        self.block(address);
        store(address);
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync().unwrap();
        }
        assert_eq!(self.is_reachable(address), self.mode == Mode::None, "{}: page {page}", self.mode);
        self.cache.remove(Key::new(address as u64));
    }

    fn expect_untrackable(&self, page: usize) {
        assert_eq!(self.claim(self.at(page)), Err(BeginError::Untrackable), "{}: page {page}", self.mode);
    }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

fn store(address: usize) {
    // SAFETY: mapped by the test, as the guest's memory or as its own.
    unsafe { (address as *mut u8).write_volatile(7) };
}

fn load(address: usize) -> u8 {
    // SAFETY: as in `store`.
    unsafe { (address as *const u8).read_volatile() }
}

/// A file that userfaultfd's synchronous modes refuse; `None`, with a report, if files are in memory here.
fn regular_file(pages: usize) -> Option<std::fs::File> {
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("reserved-{}-{}", std::process::id(), NEXT.fetch_add(1, SeqCst));
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len((pages * page_bytes()) as u64).unwrap();
    let is_regular = rustix::fs::fstatfs(&file).unwrap().f_type as u32 != libc::TMPFS_MAGIC as u32;
    if !is_regular {
        skip(&"the directory for tests' files is on tmpfs");
    }
    is_regular.then_some(file)
}

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

/// Memory of the process lies in the region, before and after the guest had the same addresses. It is not
/// tracked, not protected and not opened.
#[test]
fn the_memory_of_the_process() {
    scenario("reserved::the_memory_of_the_process", &Mode::ALL, End::Well, |mode| {
        let space = Space::new(mode);
        let own = vec![0_u8; 4 * page_bytes()];
        static STATIC: AtomicBool = AtomicBool::new(false);
        let local = Cell::new(0);
        for address in
            [own.as_ptr().addr() + page_bytes(), local.as_ptr().addr(), (&raw const STATIC).addr(), 0, space.free]
        {
            assert_eq!(space.claim(address), Err(BeginError::Untrackable), "{mode}: {address:#x}");
        }
        space.map_declared(2, 4);
        (2..6).for_each(|page| space.expect_tracked(page));
        [1, 6].into_iter().for_each(|page| space.expect_untrackable(page));
        let calls = space.cache.stats().protection_calls;
        // The guest unmaps, and the process maps memory of its own there.
        space.block(space.at(3));
        space.block(space.at(4));
        space.unmap_declared(2, 3);
        assert!(!space.is_reachable(space.at(3)) && !space.is_reachable(space.at(4)));
        space.map(2, 3, None, RW);
        (2..5).for_each(|page| space.expect_untrackable(page));
        space.block(space.at(5));
        (2..5).for_each(|page| store(space.at(page) + 8));
        assert_eq!((2..5).map(|page| load(space.at(page) + 8)).collect::<Vec<_>>(), [7; 3]);
        assert!(space.is_reachable(space.at(5)), "{mode}: a neighbour");
        // The process's own protection of its memory stays as well.
        // SAFETY: the test's own memory.
        assert_eq!(unsafe { libc::mprotect(space.at(3) as *mut _, page_bytes(), libc::PROT_READ) }, 0);
        space.cache.tracker().maintain();
        store(space.at(5));
        space.cache.tracker().remove_region(GuestAddr(0)).unwrap();
        let kept = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = kept.lines().find(|line| line.starts_with(&format!("{:x}-", space.at(3)))).unwrap_or_default();
        assert!(line.contains(" r--p "), "{mode}: {line}");
        if mode != Mode::None {
            assert!(space.cache.stats().protection_calls <= calls + 10, "{mode}");
        }
    });
}

/// The guest's mprotect changes declared memory alone. Memory of the process beside it keeps its access.
#[test]
fn access_to_memory_that_was_not_declared() {
    scenario("reserved::access_to_memory_that_was_not_declared", &Mode::ALL, End::Well, |mode| {
        let (space, bytes) = (Space::new(mode), page_bytes() as u64);
        space.map(0, 6, None, RW);
        space.map_declared(1, 2);
        let set = |page: usize, count: u64, access| {
            space.cache.tracker().set_access(GuestAddr(space.at(page) as u64), count * bytes, access)
        };
        for (page, count, foreign) in [(4, 1, 4), (0, 2, 0), (1, 3, 3), (0, 6, 0)] {
            let error = Error::NotTracked { start: space.at(foreign) as u64, len: bytes };
            assert_eq!(set(page, count, Access::None), Err(error), "{mode}: {page}");
            (0..6).for_each(|page| store(space.at(page)));
        }
        set(1, 2, Access::Read).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.starts_with(&format!("{:x}-", space.at(1)))).unwrap_or_default();
        assert!(line.contains(" r--p "), "{mode}: {line}");
        set(1, 2, Access::ReadWrite).unwrap();
        [1, 2].into_iter().for_each(|page| space.expect_tracked(page));
    });
}

/// A claim outlives the mapping of its page. Nothing is read from the page then.
#[test]
fn read_by_a_claim_whose_mapping_has_gone() {
    scenario("reserved::read_by_a_claim_whose_mapping_has_gone", &Mode::ALL, End::Well, |mode| {
        let space = Space::new(mode);
        let (tracker, guest) = (space.cache.tracker(), GuestAddr(space.at(0) as u64));
        space.map_declared(0, 1);
        space.claim(space.at(0)).unwrap();
        let claim = tracker.begin(guest).unwrap();
        let read = || {
            let mut byte = [0];
            tracker.read(&claim, guest, &mut byte).map(|()| byte[0])
        };
        assert_eq!(read(), Ok(0), "{mode}");
        let change = space.change(0, 1);
        space.unmap(0, 1);
        assert!(matches!(read(), Err(BeginError::Busy(_))), "{mode}: {:?}", read());
        change.finish_unmapped().unwrap();
        assert_eq!(read(), Err(BeginError::Untrackable), "{mode}");
        space.map_declared(0, 1);
        store(space.at(0));
        assert_eq!(read(), Ok(7), "{mode}: another mapping of the guest's");
    });
}

/// Memory of the process lies between two pages with code. A harvest does not look at it, and does not fail
/// because of it.
#[test]
fn harvested_around_the_memory_of_the_process() {
    scenario("reserved::harvested_around_the_memory_of_the_process", &Mode::ALL, End::Well, |mode| {
        let space = Space::new(mode);
        space.map(0, 20, None, RW);
        let code = [0, 15].map(|page| {
            space.map_declared(page, 1);
            space.block(space.at(page));
            space.at(page)
        });
        for round in 0..100 {
            space.cache.tracker().sync().unwrap();
            for address in code {
                assert!(space.is_reachable(address), "{mode}: round {round}");
            }
        }
        let [written, other] = code;
        store(written);
        space.cache.tracker().sync().unwrap();
        assert_eq!(space.is_reachable(written), mode == Mode::None, "{mode}");
        assert!(space.is_reachable(other), "{mode}");
    });
}

/// A range is mapped, unmapped and reserved again and again. No mapping of the process is left over.
#[test]
fn unmapped_and_reserved_again() {
    scenario("reserved::unmapped_and_reserved_again", &Mode::ALL, End::Well, |mode| {
        let space = Space::new(mode);
        space.map(0, ROOM, None, libc::PROT_NONE);
        let before = mappings();
        for round in 0..100 {
            let (page, count) = (round % 50, 1 + round % 7);
            space.map_declared(page, count);
            space.expect_tracked(page + count - 1);
            let change = space.change(page, count);
            space.map(page, count, None, libc::PROT_NONE);
            change.finish_unmapped().unwrap();
            space.expect_untrackable(page);
        }
        // A few of the heap's.
        assert!(mappings() < before + 10, "{mode}: {before} before, {} after", mappings());
    });
}

/// Several mappings are declared in one change, a regular file's between. It spoils none of the others, neither
/// then, nor under announced writes, nor at the region's end.
#[test]
fn an_untrackable_piece_between_others() {
    scenario("reserved::an_untrackable_piece_between_others", &Mode::ALL, End::Well, |mode| {
        let Some(file) = regular_file(2) else { return };
        let space = Space::new(mode);
        let change = space.change(0, 8);
        space.map(0, 3, None, RW);
        space.map(3, 2, Some(&file), RW);
        space.map(5, 1, None, libc::PROT_READ);
        space.map(6, 2, None, RW);
        let done = change.finish_replaced(Access::ReadWrite, None);
        let is_refused = matches!(mode, Mode::Sigbus | Mode::Thread);
        if is_refused {
            let Err(Error::System { errno: libc::EINVAL, .. }) = done else { panic!("{mode}: {done:?}") };
        } else {
            done.unwrap();
        }
        let check = || {
            for page in [0, 1, 2, 6, 7] {
                space.expect_tracked(page);
            }
            for page in [3, 4] {
                if is_refused { space.expect_untrackable(page) } else { space.expect_tracked(page) }
            }
        };
        check();
        let (tracker, at) = (space.cache.tracker(), GuestAddr(space.at(0) as u64));
        for page in 0..8 {
            _ = space.claim(space.at(page));
        }
        drop(tracker.prepare_kernel_write(at, (8 * page_bytes()) as u64).unwrap());
        tracker.sync().unwrap();
        tracker.maintain();
        check();
        // Another mapping takes the file's place.
        space.map_declared(3, 2);
        [2, 3, 4].into_iter().for_each(|page| space.expect_tracked(page));
        for page in [0, 3, 7] {
            _ = space.claim(space.at(page));
        }
        tracker.remove_region(GuestAddr(0)).unwrap();
        [0, 3, 7].into_iter().for_each(|page| store(space.at(page)));
    });
}

/// A fork's child tracks the same memory as its parent, with anything between: a file, holes, and a mapping that the child
/// did not inherit.
#[test]
fn a_forks_child() {
    scenario("reserved::a_forks_child", &Mode::ALL, End::Well, |mode| {
        let Some(file) = regular_file(1) else { return };
        let space = Space::new(mode);
        space.map_declared(0, 2);
        let change = space.change(2, 1);
        space.map(2, 1, Some(&file), RW);
        let is_refused = matches!(mode, Mode::Sigbus | Mode::Thread);
        assert_eq!(change.finish_replaced(Access::ReadWrite, None).is_err(), is_refused);
        space.map_declared(3, 1);
        space.map_declared(10, 1);
        space.map_declared(20, 1);
        // SAFETY: the test's own mapping.
        assert_eq!(unsafe { libc::madvise(space.at(10) as *mut _, page_bytes(), libc::MADV_DONTFORK) }, 0);
        for page in [0, 1, 3, 10, 20] {
            space.block(space.at(page) + 100);
        }
        let guard = space.cache.before_fork();
        let ended = in_child(|| {
            let done = guard.after_fork_child();
            let misses_one = mode != Mode::Mprotect && mode != Mode::None;
            assert_eq!(done.is_err(), misses_one, "{mode}: {done:?}");
            if misses_one {
                space.expect_untrackable(10);
            }
            if is_refused {
                space.expect_untrackable(2)
            } else {
                space.expect_tracked(2)
            }
            [0, 1, 3, 20].into_iter().for_each(|page| space.expect_tracked(page));
            [4, 21].into_iter().for_each(|page| space.expect_untrackable(page));
            // And later mappings.
            space.map_declared(30, 1);
            space.expect_tracked(30);
            space.cache.tracker().remove_region(GuestAddr(0)).unwrap();
            0
        });
        assert_eq!(ended, Ended::Returned(0));
        for page in [0, 1, 3, 10, 20] {
            assert!(space.is_reachable(space.at(page) + 100), "{mode}: page {page} in the parent");
            store(space.at(page) + 100);
        }
        [0, 1, 3, 10, 20].into_iter().for_each(|page| space.expect_tracked(page));
    });
}

/// The descriptors are closed. The pages with code are opened, and nobody looks at all others.
#[test]
fn descriptors_closed() {
    scenario("reserved::descriptors_closed", &UFFD, End::Well, |mode| {
        for closed in [1, 2] {
            let space = Space::new(mode);
            space.map_declared(0, 1);
            space.map_declared(40, 1);
            space.block(space.at(0) + 100);
            space.block(space.at(40) + 100);
            let numbers = space.cache.tracker().descriptors();
            for number in numbers.into_iter().take(closed) {
                // SAFETY: the case under test.
                assert_eq!(unsafe { libc::close(number) }, 0);
            }
            store(space.at(0) + 100);
            space.cache.tracker().maintain();
            _ = space.cache.tracker().sync();
            assert!(!space.is_reachable(space.at(40) + 100), "{mode}, {closed} closed");
            assert_eq!(
                space.claim(space.at(0)),
                Err(BeginError::Failed(Error::TrackingLost)),
                "{mode}, {closed} closed"
            );
            store(space.at(40) + 100);
            // A lost mechanism is told of at the end, or was given up whole.
            _ = space.cache.tracker().remove_region(GuestAddr(0));
            space.unmap(0, ROOM);
        }
    });
}

/// One thread maps over a page and takes it away again and again, another translates from it. No block outlives
/// the mapping that it was made from, and none is made from memory that is not the guest's.
#[test]
fn mapped_under_a_translator() {
    scenario("reserved::mapped_under_a_translator", &SYNCHRONOUS, End::Well, mapped_under_a_translator_in);
}

/// The same in the mode that asks later.
#[test]
fn mapped_under_a_translator_in_deferred_mode() {
    scenario(
        "reserved::mapped_under_a_translator_in_deferred_mode",
        &[Mode::Deferred],
        End::Well,
        mapped_under_a_translator_in,
    );
}

fn mapped_under_a_translator_in(mode: Mode) {
    const ROUNDS: usize = 3_000;
    /// The byte of memory that is not the guest's.
    const FOREIGN: u8 = 0xee;
    let space = Space::new(mode);
    // Memory with the byte already in it, which a `mremap` puts in place at once: it is readable at any time.
    let put = |byte: u8| {
        space.map(8, 1, None, RW);
        let (from, to, len) = (space.at(8), space.at(0), page_bytes());
        // SAFETY: both are the test's own.
        unsafe {
            (from as *mut u8).write_volatile(byte);
            let moved = libc::mremap(from as *mut _, len, len, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, to);
            assert_eq!(moved.addr(), to);
        }
    };
    put(FOREIGN);
    let (address, stop) = (space.at(0), AtomicBool::new(false));
    let key = Key::new(address as u64);
    let entry_of = |byte: u8| 0x1000 | usize::from(byte);
    let cache = &space.cache;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                let mut ticket = cache.begin(key);
                if ticket.claim(GuestAddr(address as u64)).is_ok() {
                    let byte = load(address);
                    _ = ticket.commit(entry_of(byte), ());
                }
            }
        });
        let mut vcpu = cache.attach_vcpu();
        let mut found = 0;
        for round in 0..ROUNDS {
            let byte = (round % 200) as u8;
            let mut expect = |allowed: Option<u8>, when: &str| {
                let entry = vcpu.pin().lookup(key);
                found += u64::from(entry.is_some());
                assert!(entry.is_none() || entry == allowed.map(entry_of), "{mode}, {when}, round {round}: {entry:x?}");
            };
            let change = space.change(0, 1);
            expect(None, "in a change");
            put(byte);
            expect(None, "in a change");
            change.finish_replaced(Access::ReadWrite, None).unwrap();
            (0..20).for_each(|_| expect(Some(byte), "mapped"));
            if round % 2 == 0 {
                let change = space.change(0, 1);
                put(FOREIGN);
                change.finish_unmapped().unwrap();
                (0..20).for_each(|_| expect(None, "unmapped"));
            }
        }
        stop.store(true, SeqCst);
        println!("{mode}: found {found} times");
    });
}
