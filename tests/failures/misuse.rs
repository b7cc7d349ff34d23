//! Arguments that no call can use, and calls at the wrong time. Each returns an error that
//! names the mistake. The call changes nothing, neither in the regions nor in the process.
//!
//! # Safety
//!
//! Regions are added over memory that is not mapped, which is the case under test:
//! they are refused. Pieces of the test's own memory are unmapped.
#![allow(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::code_buffer::CodeBuffer;
use codewarden::error::Error;
use codewarden::guest_memory::{BackingId, GuestMemory};
use codewarden::protection::{Access, Mode};
use codewarden::tracker::{BeginError, RegionOptions, SharedMemory};
use codewarden::{CodeCache, CommitError, EntryStubs, Key, MemoryLimit};

use crate::address_space::{replace, unmap};
use crate::child::{Ended, in_child};
use crate::limits::open_files;
use crate::scenario::{End, TRACKING, byte_of, fixture, scenario};
use crate::support::{Fixture, GUEST, PAGES, page_bytes, region};

fn pages(first: HostAddr, count: usize) -> HostRange {
    HostRange::new(first, count * page_bytes(), PageSize::host()).unwrap()
}

fn shared(offset: u64) -> SharedMemory {
    SharedMemory { backing: BackingId::of_file(1, 1), offset }
}

/// Ranges that are unmapped, all of them, at one end or in the middle, or that reach to
/// the last address.
#[test]
fn a_region_that_is_not_mapped() {
    scenario("misuse::a_region_that_is_not_mapped", &Mode::ALL, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let start = memory.range().start();
        let first = HostAddr(page_bytes());
        let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
        // SAFETY: unmapped memory is refused, which is asserted here.
        let add = |host| unsafe { cache.tracker().add_region(RegionOptions::new(GuestAddr(0), host, mode)) };
        let before = open_files();
        let refused = |host: HostRange, first_hole: Option<HostAddr>| {
            let error = add(host).expect_err("it is not mapped");
            let Error::NotMapped { start, len, hole } = error else { panic!("{error}") };
            assert_eq!((start, len), (host.start().0, host.len()));
            assert_eq!(hole, first_hole.map_or(hole, |at| at.0));
            assert!(error.to_string().contains("map all of it first"), "{error}");
            assert_eq!(open_files(), before, "left open");
            assert_eq!(cache.tracker().mode_at(GuestAddr(0)), None);
        };
        refused(pages(first, 4), Some(first));
        let all_but_two = usize::MAX / page_bytes() - 1;
        refused(pages(first, all_but_two), Some(first));
        // The memory behind the test's own is not the test's.
        refused(pages(start, (usize::MAX - start.0) / page_bytes()), None);
        for hole in [PAGES - 1, 5, 0] {
            unmap(&memory, hole);
            refused(memory.range(), Some(HostAddr(start.0 + hole * page_bytes())));
        }
        for len in [usize::MAX, usize::MAX - page_bytes() + 1, 0, 1] {
            assert!(matches!(HostRange::new(start, len, PageSize::host()), Err(Error::BadRange { .. })), "{len:#x}");
        }
        // Nothing is half done: the mapped part can be tracked, and all of it once it is mapped.
        [0, 5, PAGES - 1].into_iter().for_each(|hole| replace(&memory, hole));
        add(memory.range()).unwrap();
        cache.tracker().begin(GuestAddr(0)).unwrap();
        memory.write(0, &[1]).unwrap();
    });
}

/// A page has one region: neither a guest address nor a host address is tracked twice.
#[test]
fn a_region_over_another() {
    scenario("misuse::a_region_over_another", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        guest.block(1);
        let tracker = guest.cache.tracker();
        let (bytes, host) = (page_bytes() as u64, guest.memory.range());
        let more = GuestMemory::anonymous(2 * page_bytes()).unwrap();
        let last = GUEST + (PAGES as u64 - 1) * bytes;
        let before = open_files();
        let free = 1 << 40;
        for (at, host) in [
            (GUEST, host),
            (GUEST - bytes, more.range()),
            (GUEST + bytes, more.range()),
            (last, more.range()),
            (free, host),
            (free, pages(host.start(), 1)),
            (free, pages(HostAddr(host.end().0 - page_bytes()), 1)),
        ] {
            // SAFETY: the memory outlives the cache.
            let added = unsafe { tracker.add_region(RegionOptions::new(GuestAddr(at), host, mode)) };
            let Err(error @ Error::BadRange { .. }) = added else { panic!("{mode}: {at:#x} at {host:?}: {added:?}") };
            assert!(error.to_string().contains("overlaps a region"), "{error}");
        }
        assert_eq!(open_files(), before, "left open");
        assert!(guest.lookup(byte_of(1)).is_some());
        [0, 1, PAGES - 1].into_iter().for_each(|page| guest.expect_tracked(page));
    });
}

/// A range outside every region, or partly outside for a call that needs all of it: nothing
/// is done.
#[test]
fn calls_for_a_range_outside_every_region() {
    scenario("misuse::calls_for_a_range_outside_every_region", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        let tracker = guest.cache.tracker();
        (0..PAGES).for_each(|page| guest.block(page));
        let (bytes, len) = (page_bytes() as u64, (PAGES * page_bytes()) as u64);
        let whole = shared(0);
        let outside = [(0, bytes), (GUEST - bytes, bytes), (GUEST + len, bytes), (u64::MAX - bytes + 1, bytes)];
        let partly = [(GUEST - bytes, len), (GUEST + bytes, len), (0, 1 << 40)];
        for (start, len) in outside {
            let at = GuestAddr(start);
            let errors = [
                tracker.sync_range(at, len).err(),
                tracker.invalidate(at, len).err(),
                tracker.prepare_kernel_write(at, len).err(),
                tracker.prepare_unseen_write(at, len).err(),
                tracker.change_mapping(at, len).err(),
                tracker.set_access(at, len, Access::None).err(),
                tracker.declare_shared(at, len, whole).err(),
            ];
            assert_eq!(errors, [const { None }; 7].map(|_: Option<Error>| Some(Error::NotTracked { start, len })));
        }
        for (start, len) in partly {
            let error = Error::NotTracked { start, len };
            assert!(error.to_string().contains("add the region first"), "{error}");
            assert_eq!(tracker.set_access(GuestAddr(start), len, Access::None), Err(error.clone()));
            assert_eq!(tracker.declare_shared(GuestAddr(start), len, whole), Err(error));
        }
        for at in [0, GUEST, GUEST + 7, u64::MAX] {
            let at = GuestAddr(at);
            tracker.sync_range(at, 0).unwrap();
            tracker.invalidate(at, 0).unwrap();
            drop(tracker.prepare_kernel_write(at, 0).unwrap());
            drop(tracker.prepare_unseen_write(at, 0).unwrap());
            tracker.change_mapping(at, 0).unwrap().finish_replaced(Access::None, Some(shared(1))).unwrap();
            tracker.set_access(at, 0, Access::None).unwrap();
            tracker.declare_shared(at, 0, shared(1)).unwrap();
        }
        (0..PAGES).for_each(|page| assert!(guest.lookup(byte_of(page)).is_some(), "page {page}"));
        // No view was declared and no access changed, so a claim asks for neither.
        (0..PAGES).for_each(|page| guest.expect_tracked(page));
    });
}

/// A view whose offset is not on a page, or wraps: refused before anything is changed.
#[test]
fn a_view_that_cannot_be() {
    scenario("misuse::a_view_that_cannot_be", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        let tracker = guest.cache.tracker();
        let bytes = page_bytes() as u64;
        guest.block(1);
        for (start, len, offset) in [
            (GUEST + 1, bytes, 0),
            (GUEST, bytes - 1, 0),
            (GUEST, bytes, 1),
            (GUEST, 2 * bytes, 0u64.wrapping_sub(bytes)),
            (u64::MAX - bytes + 1, 2 * bytes, 0),
        ] {
            let declared = tracker.declare_shared(GuestAddr(start), len, shared(offset));
            assert!(matches!(declared, Err(Error::BadRange { .. })), "{declared:?}");
        }
        assert!(guest.lookup(byte_of(1)).is_some());
        // The last page of a memory is valid.
        tracker.declare_shared(GuestAddr(GUEST), bytes, shared(0u64.wrapping_sub(bytes))).unwrap();
        tracker.declare_shared(GuestAddr(GUEST), bytes, shared(0)).unwrap();
        for offset in [1, bytes / 2, 0u64.wrapping_sub(bytes)] {
            // From the middle of page 2 to that of page 4.
            let change = tracker.change_mapping(GuestAddr(byte_of(2)), 2 * bytes).unwrap();
            (2..5).for_each(|page| replace(&guest.memory, page));
            let finished = change.finish_replaced(Access::ReadWrite, Some(shared(offset)));
            assert!(matches!(finished, Err(Error::BadRange { .. })), "{finished:?}");
            for page in 2..5 {
                assert!(guest.is_untrackable(page), "{mode}, page {page}");
            }
            guest.expect_tracked(1);
            guest.expect_tracked(5);
        }
        let change = tracker.change_mapping(GuestAddr(byte_of(2)), 2 * bytes).unwrap();
        change.finish_replaced(Access::ReadWrite, Some(shared(5 * bytes))).unwrap();
        // The range's first page shows the offset, so page 3 shows the bytes after it.
        tracker.declare_shared(GuestAddr(GUEST + 8 * bytes), bytes, shared(6 * bytes)).unwrap();
        assert_eq!(tracker.aliases(GuestAddr(byte_of(3))), [GuestAddr(GUEST + 8 * bytes)]);
        (2..5).for_each(|page| guest.expect_tracked(page));
    });
}

/// The region was removed during a change of mapping: it stays removed, and leaves nothing
/// behind.
#[test]
fn a_change_that_outlives_its_region() {
    scenario("misuse::a_change_that_outlives_its_region", &Mode::ALL, End::Well, |mode| {
        let before = open_files();
        let guest = fixture(mode);
        let tracker = guest.cache.tracker();
        // No block: a claim keeps the descriptors of its region.
        let change = tracker.change_mapping(GuestAddr(byte_of(1)), 1).unwrap();
        let held = tracker.prepare_unseen_write(GuestAddr(byte_of(2)), 1).unwrap();
        tracker.remove_region(GuestAddr(GUEST)).unwrap();
        replace(&guest.memory, 1);
        let finished = change.finish_replaced(Access::ReadWrite, None);
        assert!(matches!(finished, Err(Error::NotTracked { .. })), "{finished:?}");
        assert_eq!(open_files(), before, "left open");
        // The range is free for another tracker. A hold of the removed region holds nothing.
        let other = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
        // SAFETY: the memory outlives both caches.
        unsafe { other.tracker().add_region(region(GUEST, &guest.memory, mode)) }.unwrap();
        drop(held);
        let Fixture { cache, memory, mode } = guest;
        drop(cache);
        let guest = Fixture { cache: other, memory, mode };
        guest.expect_tracked(1);
        guest.expect_tracked(2);
    });
}

/// A region was added during a change of its pages' mapping. The change did not include it. So
/// no block that was made from these pages meanwhile stays, and the next change must include
/// them.
#[test]
fn a_region_that_comes_amid_a_change() {
    scenario("misuse::a_region_that_comes_amid_a_change", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        let tracker = guest.cache.tracker();
        let bytes = page_bytes() as u64;
        tracker.remove_region(GuestAddr(GUEST)).unwrap();
        let add = |first: usize, count: usize| {
            let host = pages(HostAddr(guest.memory.range().start().0 + first * page_bytes()), count);
            let options = RegionOptions::new(GuestAddr(GUEST + first as u64 * bytes), host, mode);
            // SAFETY: the memory outlives the cache.
            unsafe { tracker.add_region(options) }.unwrap();
        };
        add(0, 2);
        let change = tracker.change_mapping(GuestAddr(byte_of(1)), 2 * bytes).unwrap();
        add(2, PAGES - 2);
        (2..5).for_each(|page| guest.block(page));
        (1..4).for_each(|page| replace(&guest.memory, page));
        let finished = change.finish_replaced(Access::ReadWrite, None);
        let Err(error @ Error::BadRange { .. }) = finished else { panic!("{mode}: {finished:?}") };
        assert!(error.to_string().contains("change the mapping again"), "{error}");
        // To the middle of page 3.
        for page in [2, 3] {
            assert_eq!(guest.lookup(byte_of(page)), None, "{mode}: page {page}, made from the mapping before");
            assert!(guest.is_untrackable(page), "{mode}, page {page}");
        }
        // The rest of both regions is unchanged.
        tracker.sync().unwrap();
        assert!(guest.lookup(byte_of(4)).is_some(), "{mode}");
        [0, 1, 4, 5].into_iter().for_each(|page| guest.expect_tracked(page));
        let change = tracker.change_mapping(GuestAddr(byte_of(2)), bytes).unwrap();
        change.finish_replaced(Access::ReadWrite, None).unwrap();
        (1..4).for_each(|page| guest.expect_tracked(page));
    });
}

/// A region that ends with the last byte of the guest's 64 bits: every call reaches it.
#[test]
fn the_last_page_of_the_guest() {
    scenario("misuse::the_last_page_of_the_guest", &TRACKING, End::Well, |mode| {
        let memory = GuestMemory::anonymous(2 * page_bytes()).unwrap();
        let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
        let tracker = cache.tracker();
        let bytes = page_bytes() as u64;
        let (start, last) = (0u64.wrapping_sub(2 * bytes), 0u64.wrapping_sub(bytes));
        // SAFETY: the memory outlives the cache; the second is refused.
        let add = |guest| unsafe { tracker.add_region(region(guest, &memory, mode)) };
        let refused = add(last).unwrap_err();
        assert!(refused.to_string().contains("64-bit"), "{refused}");
        add(start).unwrap();
        let mut vcpu = cache.attach_vcpu();
        let block = || {
            let mut ticket = cache.begin(Key::new(last));
            while ticket.claim(GuestAddr(u64::MAX)).is_err() {}
            let mut byte = [0; 4];
            memory.read(2 * page_bytes() - 4, &mut byte).unwrap();
            ticket.add_source(GuestAddr(u64::MAX - 3), &byte).unwrap();
            ticket.commit(0x1000, 0).unwrap();
        };
        assert!(cache.begin(Key::new(last)).add_source(GuestAddr(u64::MAX), &[0; 2]).is_err());
        let mut ends = |what: &str, end: &dyn Fn()| {
            block();
            assert!(vcpu.pin().lookup(Key::new(last)).is_some(), "{mode}: {what}");
            end();
            assert!(vcpu.pin().lookup(Key::new(last)).is_none(), "{mode}: {what}");
        };
        let store = || memory.write(2 * page_bytes() - 1, &[1]).unwrap();
        ends("sync", &|| {
            store();
            tracker.sync().unwrap();
        });
        for (at, len) in [(u64::MAX, 1), (last, bytes), (0, u64::MAX)] {
            let at = GuestAddr(at);
            ends("sync_range", &|| {
                store();
                tracker.sync_range(at, len).unwrap();
            });
            ends("invalidate", &|| tracker.invalidate(at, len).unwrap());
            ends("prepare_unseen_write", &|| drop(tracker.prepare_unseen_write(at, len).unwrap()));
            ends("change_mapping", &|| {
                tracker.change_mapping(at, len).unwrap().finish_replaced(Access::ReadWrite, None).unwrap();
            });
        }
        ends("declare_shared", &|| tracker.declare_shared(GuestAddr(last), bytes, shared(0)).unwrap());
        tracker.set_access(GuestAddr(u64::MAX), 1, Access::ReadWrite).unwrap();
        for beyond in [(u64::MAX, 2), (last, bytes + 1), (2, u64::MAX)] {
            let (at, len) = (GuestAddr(beyond.0), beyond.1);
            assert!(matches!(tracker.invalidate(at, len), Err(Error::BadRange { .. })));
            assert!(matches!(tracker.sync_range(at, len), Err(Error::BadRange { .. })));
            assert!(matches!(tracker.set_access(at, len, Access::Read), Err(Error::BadRange { .. })));
        }
        ends("remove_region", &|| tracker.remove_region(GuestAddr(start)).unwrap());
    });
}

/// A call that would wait for itself returns an error, or panics if it has none to return.
/// The guard stays valid, and so do the things that it guards.
#[test]
fn a_call_under_ones_own_fork_guard() {
    scenario("misuse::a_call_under_ones_own_fork_guard", &Mode::ALL, End::Well, |mode| {
        let (guest, buffer) = (fixture(mode), CodeBuffer::new(1 << 16).unwrap());
        let (cache, tracker) = (&guest.cache, guest.cache.tracker());
        guest.block(1);
        let (start, len, key) = (GuestAddr(GUEST), page_bytes() as u64, Key::new(byte_of(1)));
        let held = tracker.prepare_unseen_write(GuestAddr(byte_of(4)), 1).unwrap();
        let change = tracker.change_mapping(GuestAddr(byte_of(5)), 1).unwrap();
        let mut ticket = cache.begin(Key::new(2));
        ticket.claim(GuestAddr(byte_of(2))).unwrap();
        let more = GuestMemory::anonymous(page_bytes()).unwrap();
        let guards = (cache.before_fork(), buffer.before_fork());
        // SAFETY: it is refused.
        let added = unsafe { tracker.add_region(RegionOptions::new(GuestAddr(1 << 40), more.range(), mode)) };
        let errors = [
            added.err(),
            tracker.remove_region(start).err(),
            tracker.begin(start).err().map(|error| match error {
                BeginError::Failed(error) => error,
                busy => panic!("{busy}"),
            }),
            tracker.sync().err(),
            tracker.sync_range(start, len).err(),
            tracker.invalidate(start, len).err(),
            tracker.prepare_kernel_write(start, len).err(),
            tracker.prepare_unseen_write(start, len).err(),
            tracker.change_mapping(start, len).err(),
            change.finish_replaced(Access::ReadWrite, None).err(),
            tracker.set_access(start, len, Access::Read).err(),
            tracker.declare_shared(start, len, shared(0)).err(),
            cache.link(key).err(),
            cache.wait_for_vcpus().err(),
            buffer.alloc(1, 1).err(),
        ];
        for (at, error) in errors.into_iter().enumerate() {
            assert!(matches!(error, Some(Error::BadArgument(why)) if why.contains("fork guard")), "{at}: {error:?}");
        }
        assert_eq!(ticket.commit(0x2000, 0), Err(CommitError::UnderForkGuard));
        let panics: [&dyn Fn(); 10] = [
            &|| cache.remove(key),
            &|| cache.collect(),
            &|| cache.evict(1),
            &|| cache.set_limit(MemoryLimit::of_bytes(0)),
            &|| drop(cache.attach_vcpu()),
            &|| tracker.maintain(),
            &|| drop(tracker.aliases(start)),
            &|| drop(tracker.before_fork()),
            &|| drop(cache.before_fork()),
            &|| drop(buffer.before_fork()),
        ];
        for (at, call) in panics.into_iter().enumerate() {
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "call {at} has no error, and came back");
        }
        drop(held);
        drop(guards);
        assert!(guest.lookup(byte_of(1)).is_some());
        buffer.alloc(1, 1).unwrap();
        (0..PAGES).for_each(|page| guest.expect_tracked(page));
    });
}

/// Another processor may still run the earlier bytes. So there is no entry until the code is
/// published, in this process.
#[test]
fn code_that_is_not_published() {
    scenario("misuse::code_that_is_not_published", &Mode::ALL, End::Well, |mode| {
        let (guest, buffer) = (fixture(mode), CodeBuffer::new(1 << 16).unwrap());
        let code = buffer.alloc(100, 16).unwrap();
        let refused = code.entry(0).unwrap_err();
        assert!(refused.to_string().contains("call publish"), "{refused}");
        code.publish().unwrap();
        let entry = code.entry(99).unwrap();
        let refused = code.entry(100).unwrap_err();
        assert!(refused.to_string().contains("inside its allocation"), "{refused}");
        let mut ticket = guest.cache.begin(Key::new(1));
        ticket.claim(GuestAddr(byte_of(1))).unwrap();
        ticket.commit(entry, 0).unwrap();
        assert_eq!(guest.lookup(1), Some(entry));
        let guards = (guest.cache.before_fork(), buffer.before_fork());
        let status = in_child(|| {
            guards.1.after_fork_child().unwrap();
            guards.0.after_fork_child().unwrap();
            let refused = code.entry(0).unwrap_err();
            assert!(refused.to_string().contains("call publish"), "{refused}");
            code.publish().unwrap();
            assert_eq!(code.entry(99), Ok(entry));
            0
        });
        assert_eq!(status, Ended::Returned(0), "{mode}: the child");
        assert_eq!(code.entry(99), Ok(entry));
    });
}
