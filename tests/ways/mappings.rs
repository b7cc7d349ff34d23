//! Guest code that is mapped over, unmapped or moved, under
//! [`change_mapping`](codewarden::tracker::Tracker::change_mapping), the call for it.
//!
//! # Safety
//!
//! Mappings change within the fixture's own range, which it unmaps as a whole.
#![allow(unsafe_code)]

use core::ffi::c_void;
use std::os::fd::AsRawFd;

use codewarden::error::Error;
use codewarden::guest_memory::BackingId;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{BeginError, MovedFrom, SharedMemory};
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

use crate::alone::{run_alone, task};
use crate::expect::{Block, in_every_mode};
use crate::support::{Fixture, page_bytes};

const RW: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// [`in_every_mode`] for a way that leaves a hole in the memory, if only for a moment: in a process of
/// its own, so that no other test maps memory there. `name` is the path of the calling test.
fn alone_in_every_mode(name: &str, way: impl Fn(&Fixture)) {
    if task().is_some() {
        return in_every_mode(way);
    }
    let output = run_alone(name, "every mode", &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(passed, "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.lines().filter(|line| line.starts_with("skipped: ")).for_each(|line| println!("{line}"));
}

impl Fixture {
    fn raw(&self, page: usize) -> *mut c_void {
        self.host(page, 0).cast()
    }

    /// Fresh anonymous memory over `count` pages.
    fn map_over(&self, page: usize, count: usize) {
        let (at, len) = (self.raw(page), count * page_bytes());
        // SAFETY: in the fixture's range.
        unsafe { rustix::mm::mmap_anonymous(at, len, RW, MapFlags::PRIVATE | MapFlags::FIXED) }.unwrap();
    }

    /// Pages without access, which are nobody's.
    fn reserve(&self, page: usize, count: usize) {
        let (at, len) = (self.raw(page), count * page_bytes());
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: in the fixture's range.
        unsafe { rustix::mm::mmap_anonymous(at, len, ProtFlags::empty(), flags) }.unwrap();
    }

    /// Whether a system call can write to the page.
    fn kernel_may_write(&self, page: usize) -> bool {
        let (from, into) = rustix::pipe::pipe().unwrap();
        rustix::io::write(into, &[0]).unwrap();
        // SAFETY: the kernel writes one byte to the fixture's memory, or nothing.
        unsafe { libc::read(from.as_raw_fd(), self.host(page, 0).cast(), 1) == 1 }
    }

    fn unmap(&self, page: usize, count: usize) {
        // SAFETY: in the fixture's range.
        unsafe { rustix::mm::munmap(self.raw(page), count * page_bytes()) }.unwrap();
    }

    /// Announces a change of the mapping of `count` pages, makes it, and announces its end.
    fn replaced(&self, page: usize, count: usize, change: impl FnOnce()) {
        let len = (count * page_bytes()) as u64;
        let announced = self.cache.tracker().change_mapping(self.guest(page, 0), len).unwrap();
        change();
        announced.finish_replaced(Access::ReadWrite, None).unwrap();
    }

    /// The byte of [`Fixture::fill`], through the guest's present mapping.
    fn mapped_byte(&self, page: usize) -> u8 {
        // SAFETY: in the fixture's range, mapped.
        unsafe { self.host(page, 5).read_volatile() }
    }

    /// A store to the block's byte makes it unreachable, if the mode tracks.
    fn expect_ended_by_a_store(&self, block: Block, page: usize) {
        self.fill(page, self.mapped_byte(page).wrapping_add(1));
        self.announce();
        if self.mode != Mode::None {
            self.expect_dead(block);
        }
    }

    fn fill(&self, page: usize, value: u8) {
        self.store(self.guest(page, 5).0, value);
    }
}

#[test]
fn mmap_over_code() {
    in_every_mode(|guest| {
        for page in 3..7 {
            guest.fill(page, 9);
        }
        let [before, first, second, after] = [3, 4, 5, 6].map(|page| guest.block(page, 5));
        guest.replaced(4, 2, || guest.map_over(4, 2));
        guest.expect_dead(first);
        guest.expect_dead(second);
        assert_eq!(guest.mapped_byte(4), 0);
        guest.expect_reachable(before);
        guest.expect_reachable(after);
        for page in 3..7 {
            guest.expect_tracked(page, 5);
        }
    });
}

/// Not announced: the synchronous modes learn nothing. Deferred mode does at the next harvest.
/// The harvest returns that the region was lost there, and trusts none of it.
#[test]
fn mmap_over_code_without_an_announcement() {
    in_every_mode(|guest| {
        let block = guest.block(4, 5);
        guest.map_over(4, 1);
        if guest.mode == Mode::Deferred {
            let error = guest.cache.tracker().sync().unwrap_err();
            assert!(matches!(error, Error::TrackingLost), "{error}");
            guest.expect_dead(block);
        } else {
            guest.expect_reachable(block);
        }
    });
}

/// The same between pages with code, after a harvest has begun to ask about them in one call. The
/// failed call has protected a written page again and does not say so. No page with code was lost,
/// so later harvests go on.
#[test]
fn mmap_between_code_without_an_announcement() {
    in_every_mode(|guest| {
        if guest.mode != Mode::Deferred {
            return;
        }
        let [first, second, _] = [2, 4, 7].map(|page| guest.block(page, 5));
        (0..30).for_each(|_| guest.announce());
        let harvests = guest.cache.stats().harvests;
        guest.announce();
        assert_eq!(guest.cache.stats().harvests, harvests + 1, "one call for all");
        guest.expect_reachable(second);
        guest.fill(2, 9);
        guest.map_over(6, 1);
        guest.announce();
        guest.expect_dead(first);
        for page in [2, 3, 4, 7] {
            guest.expect_tracked(page, 5);
        }
    });
}

/// A translator comes to a page with a mapping that a harvest cannot ask about. Its begin fails, and
/// later harvests do not ask about that page either.
#[test]
fn a_begin_after_mmap_without_an_announcement() {
    in_every_mode(|guest| {
        if guest.mode != Mode::Deferred {
            return;
        }
        let neighbours = [3, 5].map(|page| guest.block(page, 5));
        guest.map_over(4, 1);
        let key = guest.guest(4, 5);
        let claimed = guest.cache.begin(key.into()).claim(key);
        assert!(matches!(claimed, Err(BeginError::Failed(_))), "{claimed:?}");
        assert_eq!(guest.cache.tracker().sync(), Ok(()));
        neighbours.into_iter().for_each(|block| guest.expect_reachable(block));
    });
}

/// userfaultfd's synchronous modes cannot track it. The end of the change returns that, and
/// nothing is translated from there until another mapping comes.
#[test]
fn a_regular_file_mapped_over_code() {
    let file = crate::files::temporary();
    if !crate::files::is_regular(&file) {
        return;
    }
    file.set_len(page_bytes() as u64).unwrap();
    in_every_mode(|guest| {
        let block = guest.block(4, 5);
        let len = page_bytes() as u64;
        let announced = guest.cache.tracker().change_mapping(guest.guest(4, 0), len).unwrap();
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        // SAFETY: in the fixture's range.
        unsafe { rustix::mm::mmap(guest.raw(4), page_bytes(), RW, flags, &file, 0) }.unwrap();
        let finished = announced.finish_replaced(Access::ReadWrite, None);
        guest.expect_dead(block);
        if matches!(guest.mode, Mode::Sigbus | Mode::Thread) {
            assert!(matches!(finished, Err(Error::System { errno: libc::EINVAL, .. })), "{finished:?}");
            let key = guest.guest(4, 5);
            let claimed = guest.cache.begin(key.into()).claim(key);
            assert!(matches!(claimed, Err(BeginError::Untrackable)), "{claimed:?}");
            guest.replaced(4, 1, || guest.map_over(4, 1));
        } else {
            finished.unwrap();
        }
        for page in 3..6 {
            guest.expect_tracked(page, 5);
        }
    });
}

#[test]
fn munmap() {
    alone_in_every_mode("mappings::munmap", |guest| {
        let block = guest.block(4, 5);
        let len = page_bytes() as u64;
        let announced = guest.cache.tracker().change_mapping(guest.guest(4, 0), len).unwrap();
        guest.unmap(4, 1);
        announced.finish_unmapped().unwrap();
        guest.expect_dead(block);
        guest.announce(); // over the hole
        let key = guest.guest(4, 5);
        let claimed = guest.cache.begin(key.into()).claim(key);
        assert!(matches!(claimed, Err(BeginError::Untrackable)), "{claimed:?}");

        guest.expect_tracked(3, 5);
        guest.expect_tracked(5, 5);
        guest.replaced(4, 1, || guest.map_over(4, 1));
        guest.expect_tracked(4, 5);
    });
}

/// Moves `old` pages from page `from` to `new` pages at page `to`. Returns `false` if the kernel cannot.
fn moved(guest: &Fixture, [from, old]: [usize; 2], [to, new]: [usize; 2], left: MovedFrom) -> bool {
    let (tracker, page) = (guest.cache.tracker(), page_bytes());
    let source = tracker.change_mapping(guest.guest(from, 0), (old * page) as u64).unwrap().moving().unwrap();
    let target = tracker.change_mapping(guest.guest(to, 0), (new * page) as u64).unwrap();
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    let flags = if left == MovedFrom::Mapped { flags | libc::MREMAP_DONTUNMAP } else { flags };
    // SAFETY: both in the fixture's range.
    let done = unsafe { libc::mremap(guest.raw(from), old * page, new * page, flags, guest.raw(to)) };
    if left == MovedFrom::Unmapped {
        // The left pages must not stay a hole: they would be free for any mapping.
        guest.reserve(from, old);
    }
    if done == guest.raw(to) {
        target.finish_moved(source, left).unwrap();
        return true;
    }
    crate::support::skip(&"the kernel cannot move this memory and keep its old mapping");
    false
}

fn expect_untrackable(guest: &Fixture, page: usize) {
    let key = guest.guest(page, 5);
    let claimed = guest.cache.begin(key.into()).claim(key);
    assert!(matches!(claimed, Err(BeginError::Untrackable)), "{}: {claimed:?}", guest.mode);
}

#[test]
fn mremap_that_moves() {
    alone_in_every_mode("mappings::mremap_that_moves", |guest| {
        guest.fill(2, 7);
        guest.fill(10, 8);
        let (from, to) = (guest.block(2, 5), guest.block(10, 5));
        assert!(moved(guest, [2, 2], [10, 2], MovedFrom::Unmapped));
        guest.expect_dead(from);
        guest.expect_dead(to);
        assert_eq!(guest.mapped_byte(10), 7);
        [2, 3].into_iter().for_each(|page| expect_untrackable(guest, page));
        [1, 4, 9, 10, 11, 12].into_iter().for_each(|page| guest.expect_tracked(page, 5));
        // The guest maps there again.
        guest.replaced(2, 2, || guest.map_over(2, 2));
        [2, 3].into_iter().for_each(|page| guest.expect_tracked(page, 5));
    });
}

/// Memory that was never touched is moved beside memory with code, from which it came: the kernel makes one
/// mapping of both. The memory beside it stays tracked, and so does all if `mremap` fails.
#[test]
fn mremap_beside_code() {
    alone_in_every_mode("mappings::mremap_beside_code", |guest| {
        let pages = [5, 6, 8, 9, 12];
        assert!(moved(guest, [7, 1], [12, 1], MovedFrom::Unmapped));
        let blocks = pages.map(|page| (page, guest.block(page, 5)));
        assert!(moved(guest, [12, 1], [7, 1], MovedFrom::Unmapped));
        for (page, block) in blocks {
            if page != 12 {
                guest.expect_reachable(block);
                guest.expect_ended_by_a_store(block, page);
            }
        }
        [4, 5, 6, 7, 8, 9, 10].into_iter().for_each(|page| guest.expect_tracked(page, 5));
        let block = guest.block(7, 5);
        let change = guest.cache.tracker().change_mapping(guest.guest(7, 0), page_bytes() as u64).unwrap();
        drop(change.moving().unwrap());
        guest.expect_dead(block);
        [6, 7, 8].into_iter().for_each(|page| guest.expect_tracked(page, 5));
    });
}

/// The mapping goes where the kernel chose, and the change of that place begins after the call.
#[test]
fn mremap_to_a_place_that_the_kernel_chose() {
    alone_in_every_mode("mappings::mremap_to_a_place_that_the_kernel_chose", |guest| {
        guest.fill(2, 7);
        let from = guest.block(2, 5);
        let tracker = guest.cache.tracker();
        // Nothing of the guest's is there.
        let gone = tracker.change_mapping(guest.guest(10, 0), page_bytes() as u64).unwrap();
        gone.finish_unmapped().unwrap();
        let source = tracker.change_mapping(guest.guest(2, 0), page_bytes() as u64).unwrap().moving().unwrap();
        let flags = MremapFlags::MAYMOVE;
        // SAFETY: both in the fixture's range.
        unsafe { rustix::mm::mremap_fixed(guest.raw(2), page_bytes(), page_bytes(), flags, guest.raw(10)) }.unwrap();
        guest.reserve(2, 1);
        let target = tracker.change_mapping(guest.guest(10, 0), page_bytes() as u64).unwrap();
        target.finish_moved(source, MovedFrom::Unmapped).unwrap();
        guest.expect_dead(from);
        assert_eq!(guest.mapped_byte(10), 7);
        expect_untrackable(guest, 2);
        [3, 9, 10, 11].into_iter().for_each(|page| guest.expect_tracked(page, 5));
    });
}

#[test]
fn mremap_that_moves_and_resizes() {
    alone_in_every_mode("mappings::mremap_that_moves_and_resizes", |guest| {
        for (old, new) in [(2, 4), (3, 1)] {
            guest.fill(2, 7);
            let blocks = [2, 3, 4, 10, 11, 12, 13].map(|page| (page, guest.block(page, 5)));
            assert!(moved(guest, [2, old], [10, new], MovedFrom::Unmapped));
            let is_hit = |page: &usize| (2..2 + old).contains(page) || (10..10 + new).contains(page);
            for (page, block) in blocks {
                if is_hit(&page) { guest.expect_dead(block) } else { guest.expect_reachable(block) }
            }
            assert_eq!(guest.mapped_byte(10), 7);
            (2..2 + old).for_each(|page| expect_untrackable(guest, page));
            (10..14).for_each(|page| guest.expect_tracked(page, 5));
            guest.replaced(2, old, || guest.map_over(2, old));
        }
    });
}

#[test]
fn mremap_that_shrinks() {
    alone_in_every_mode("mappings::mremap_that_shrinks", |guest| {
        guest.fill(4, 7);
        let blocks = [4, 5, 6, 7].map(|page| guest.block(page, 5));
        let tracker = guest.cache.tracker();
        let source = tracker.change_mapping(guest.guest(4, 0), 4 * page_bytes() as u64).unwrap().moving().unwrap();
        // SAFETY: in the fixture's range.
        let shrunk = unsafe { rustix::mm::mremap(guest.raw(4), 4 * page_bytes(), page_bytes(), MremapFlags::empty()) };
        assert_eq!(shrunk.unwrap(), guest.raw(4));
        guest.reserve(5, 3);
        let target = tracker.change_mapping(guest.guest(4, 0), page_bytes() as u64).unwrap();
        target.finish_moved(source, MovedFrom::Unmapped).unwrap();
        blocks.into_iter().for_each(|block| guest.expect_dead(block));
        assert_eq!(guest.mapped_byte(4), 7);
        (5..8).for_each(|page| expect_untrackable(guest, page));
        [3, 4, 8].into_iter().for_each(|page| guest.expect_tracked(page, 5));
    });
}

#[test]
fn mremap_that_leaves_the_old_mapping() {
    in_every_mode(|guest| {
        guest.fill(2, 7);
        guest.fill(10, 8);
        let (from, to) = (guest.block(2, 5), guest.block(10, 5));
        if !moved(guest, [2, 2], [10, 2], MovedFrom::Mapped) {
            return;
        }
        guest.expect_dead(from);
        guest.expect_dead(to);
        assert_eq!(guest.mapped_byte(10), 7);
        assert_eq!(guest.mapped_byte(2), if guest.memory.file().is_some() { 7 } else { 0 });
        [1, 2, 3, 4, 10, 11].into_iter().for_each(|page| guest.expect_tracked(page, 5));
    });
}

/// What the guest may do with a page, the memory that it shows and the reason why it is not tracked move along.
#[test]
fn mremap_moves_what_is_known() {
    alone_in_every_mode("mappings::mremap_moves_what_is_known", |guest| {
        let (tracker, bytes) = (guest.cache.tracker(), page_bytes() as u64);
        let memory = |page: u64| SharedMemory { backing: BackingId::numbered(7), offset: page * bytes };
        tracker.declare_shared(guest.guest(2, 0), 2 * bytes, memory(4)).unwrap();
        tracker.declare_shared(guest.guest(6, 0), bytes, memory(5)).unwrap();
        tracker.set_access(guest.guest(3, 0), bytes, Access::Read).unwrap();
        let gone = tracker.change_mapping(guest.guest(4, 0), bytes).unwrap();
        gone.finish_unmapped().unwrap();
        // The kernel moves several mappings in several calls, or in one from 6.17 on.
        let source = tracker.change_mapping(guest.guest(2, 0), 3 * bytes).unwrap().moving().unwrap();
        let target = tracker.change_mapping(guest.guest(10, 0), 3 * bytes).unwrap();
        for page in [2, 3, 4] {
            let (from, to) = (guest.raw(page), guest.raw(page + 8));
            // SAFETY: both in the fixture's range.
            unsafe { rustix::mm::mremap_fixed(from, page_bytes(), page_bytes(), MremapFlags::MAYMOVE, to) }.unwrap();
            guest.reserve(page, 1);
        }
        target.finish_moved(source, MovedFrom::Unmapped).unwrap();
        assert_eq!(tracker.aliases(guest.guest(6, 0)), [guest.guest(11, 0)]);
        assert_eq!(tracker.aliases(guest.guest(10, 0)), []);
        expect_untrackable(guest, 12);
        guest.expect_tracked(10, 5);
        // It is read-only still: a system call that writes there fails, whether or not it is tracked.
        let key = guest.guest(11, 5);
        while let Err(error) = guest.cache.begin(key.into()).claim(key) {
            assert!(matches!(error, BeginError::Busy(_)), "{error}");
        }
        let written = tracker.prepare_kernel_write(guest.guest(11, 0), 8).map(|_held| guest.kernel_may_write(11));
        assert_eq!(written, Ok(false), "{}", guest.mode);
        tracker.set_access(guest.guest(11, 0), bytes, Access::ReadWrite).unwrap();
        guest.expect_tracked(11, 5);
    });
}

#[test]
fn mremap_that_grows() {
    alone_in_every_mode("mappings::mremap_that_grows", |guest| {
        guest.fill(4, 7);
        let blocks = [4, 5, 6, 7].map(|page| guest.block(page, 5));
        guest.replaced(4, 4, || {
            guest.unmap(6, 2);
            // SAFETY: it grows into pages that were just unmapped.
            let grown =
                unsafe { rustix::mm::mremap(guest.raw(4), 2 * page_bytes(), 4 * page_bytes(), MremapFlags::empty()) };
            assert_eq!(grown.unwrap(), guest.raw(4));
        });
        blocks.into_iter().for_each(|block| guest.expect_dead(block));
        assert_eq!(guest.mapped_byte(4), 7);
        for page in 3..9 {
            guest.expect_tracked(page, 5);
        }
    });
}
