//! Guest code that is mapped over, unmapped or moved, under
//! [`change_mapping`](codewarden::tracker::Tracker::change_mapping), the call for it.
//!
//! # Safety
//!
//! Mappings change within the fixture's own range, which it unmaps as a whole.
#![allow(unsafe_code)]

use core::ffi::c_void;

use codewarden::error::Error;
use codewarden::protection::{Access, Mode};
use codewarden::tracker::BeginError;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags};

use crate::expect::in_every_mode;
use crate::support::{Fixture, page_bytes};

const RW: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

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
    in_every_mode(|guest| {
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

#[test]
fn mremap_that_moves() {
    in_every_mode(|guest| {
        guest.fill(2, 7);
        guest.fill(10, 8);
        let (from, to) = (guest.block(2, 5), guest.block(10, 5));
        guest.replaced(2, 2, || {
            guest.replaced(10, 2, || {
                let (old, new, len) = (guest.raw(2), guest.raw(10), 2 * page_bytes());
                // SAFETY: both in the fixture's range.
                unsafe { rustix::mm::mremap_fixed(old, len, len, MremapFlags::MAYMOVE, new) }.unwrap();
            });
            // The left pages must not stay a hole, or others may map into it.
            guest.map_over(2, 2);
        });
        guest.expect_dead(from);
        guest.expect_dead(to);
        assert_eq!((guest.mapped_byte(2), guest.mapped_byte(10)), (0, 7));
        for page in [2, 3, 10, 11] {
            guest.expect_tracked(page, 5);
        }
    });
}

#[test]
fn mremap_that_grows() {
    in_every_mode(|guest| {
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
