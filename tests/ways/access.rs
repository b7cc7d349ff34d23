//! The guest's own mprotect, both ways, and guests that may only read or run their code.
//!
//! # Safety
//!
//! Mappings outlive the cache. Bytes that the guest may not read are read through the host's
//! view.
#![allow(unsafe_code)]

use codewarden::addr::HostAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, Facility, Mode};
use codewarden::{CodeCache, EntryStubs};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};

use crate::expect::in_every_mode;
use crate::support::{Fixture, GUEST, PAGES, has_or_skips, page_bytes, region, tracking_modes};

impl Fixture {
    fn set_access(&self, page: usize, access: Access) {
        self.cache.tracker().set_access(self.guest(page, 0), page_bytes() as u64, access).unwrap();
    }

    /// mprotect past the library.
    fn raw_mprotect(&self, page: usize, access: MprotectFlags) {
        // SAFETY: a page of the fixture's memory.
        unsafe { rustix::mm::mprotect(self.host(page, 0).cast(), page_bytes(), access) }.unwrap();
    }

    /// A store by its address, directly after the last change.
    fn store_raw(&self, page: usize) {
        // SAFETY: in the memory, which is writable by now.
        unsafe { self.host(page, 3).write_volatile(0x77) };
    }
}

fn away_and_back(access: Access) {
    in_every_mode(|guest| {
        let block = guest.block(1, 3);
        guest.set_access(1, access);
        guest.expect_reachable(block);
        guest.set_access(1, Access::ReadWrite);
        guest.expect_reachable(block);
        guest.store_raw(1);
        assert_eq!(guest.bytes(1, 3, 1), [0x77]);
        guest.expect_learned(block);
    });
}

#[test]
fn read_only_and_back() {
    away_and_back(Access::Read);
}

#[test]
fn nothing_and_back() {
    away_and_back(Access::None);
}

/// Translated from while it is read-only, as a JIT's page after the flip.
#[test]
fn translated_while_read_only() {
    in_every_mode(|guest| {
        guest.set_access(1, Access::Read);
        let block = guest.block(1, 3);
        guest.set_access(1, Access::ReadWrite);
        guest.expect_reachable(block);
        guest.store_raw(1);
        guest.expect_learned(block);
    });
}

/// userfaultfd's protection is a bit of its own. So an mprotect without an announcement takes
/// nothing away (to RX, for example, for which the library has no name).
#[test]
fn mprotect_past_the_library() {
    in_every_mode(|guest| {
        if guest.mode == Mode::Mprotect {
            return;
        }
        let block = guest.block(1, 3);
        guest.raw_mprotect(1, MprotectFlags::READ | MprotectFlags::EXEC);
        guest.raw_mprotect(1, MprotectFlags::READ | MprotectFlags::WRITE);
        guest.expect_reachable(block);
        guest.store_raw(1);
        guest.expect_learned(block);
    });
}

/// The baseline shares one set of bits with the guest. So the same call opens the page behind
/// the library's back, and the store is missed. Under a change of the mapping the blocks are
/// dead before the call, and the page is tracked after it.
#[test]
fn mprotect_past_the_library_under_mprotect() {
    let calls = |guest: &Fixture, page| {
        guest.raw_mprotect(page, MprotectFlags::READ | MprotectFlags::EXEC);
        guest.raw_mprotect(page, MprotectFlags::READ | MprotectFlags::WRITE);
    };
    let guest = Fixture::new(Mode::Mprotect, GuestMemory::anonymous(PAGES * page_bytes()).unwrap());
    let block = guest.block(1, 3);
    calls(&guest, 1);
    guest.store_raw(1);
    guest.expect_reachable(block);

    let block = guest.block(2, 3);
    let change = guest.cache.tracker().change_mapping(guest.guest(2, 0), page_bytes() as u64).unwrap();
    calls(&guest, 2);
    change.finish_replaced(Access::ReadWrite, None).unwrap();
    guest.store_raw(2);
    guest.expect_dead(block);
    guest.expect_tracked(2, 3);
}

/// A region that is mapped with `access` (and `flags` in the host) when it is added.
fn mapped_as(mode: Mode, on_memfd: bool, access: Access, flags: ProtFlags) -> Fixture {
    let len = PAGES * page_bytes();
    // Lives as long as the process: the region's mapping shows its bytes.
    let made = Box::leak(Box::new(GuestMemory::memfd(len).unwrap()));
    made.write(page_bytes() + 3, &[5]).unwrap();
    let nowhere = core::ptr::null_mut();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        match on_memfd {
            true => rustix::mm::mmap(nowhere, len, flags, MapFlags::SHARED, made.file().unwrap(), 0),
            false => rustix::mm::mmap_anonymous(nowhere, len, flags, MapFlags::PRIVATE),
        }
    };
    let view = made.host_view().filter(|_| on_memfd);
    // SAFETY: the mapping stays until the process ends, and is this fixture's alone.
    let memory = unsafe { GuestMemory::from_raw(HostAddr(start.unwrap() as usize), len, view) }.unwrap();
    let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the mapping stays.
    unsafe { cache.tracker().add_region(region(GUEST, &memory, mode).with_access(access)) }.unwrap();
    Fixture { cache, memory, mode }
}

fn from_the_start(access: Access, flags: ProtFlags, kinds: &[bool]) {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        for &on_memfd in kinds {
            if on_memfd && !has_or_skips(mode, Facility::WpShmem) {
                continue;
            }
            let guest = mapped_as(mode, on_memfd, access, flags);
            let block = guest.block(1, 3);
            guest.expect_reachable(block);
            guest.set_access(1, Access::ReadWrite);
            guest.store_raw(1);
            assert_eq!(guest.bytes(1, 3, 1), [0x77]);
            guest.expect_learned(block);
        }
    }
}

#[test]
fn a_guest_mapped_read_only() {
    from_the_start(Access::Read, ProtFlags::READ, &[false, true]);
}

/// As data the guest has no access to it; the translator reads the host's view.
#[test]
fn a_guest_mapped_execute_only() {
    from_the_start(Access::None, ProtFlags::EXEC, &[true]);
}
