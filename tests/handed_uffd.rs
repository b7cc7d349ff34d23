//! Regions on descriptors that the embedder has opened: by the library, or by the builder of the
//! `userfaultfd` crate, in a process that has lost the right to open more.
//!
//! # Safety
//!
//! Each region's memory outlives its cache. No copy of a descriptor is kept.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code)]

mod support;

use codewarden::addr::GuestAddr;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Mode, open_uffd, uffd_features};
use codewarden::{CodeCache, EntryStubs};
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

use support::{Fixture, GUEST, PAGES, in_modes, page_bytes, region, tracking_modes};

/// The modes with a userfaultfd that are available here.
fn modes() -> Vec<Mode> {
    tracking_modes().into_iter().filter(|&mode| mode != Mode::Mprotect).collect()
}

fn build(features: FeatureFlags) -> Uffd {
    UffdBuilder::new().close_on_exec(true).require_features(features).create().unwrap()
}

fn on(mode: Mode, uffd: Uffd) -> Result<Fixture, Error> {
    let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
    let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: fields are dropped in order: the cache before the memory. The descriptor has no copy.
    unsafe { cache.tracker().add_region_on_uffd(region(GUEST, &memory, mode), uffd) }?;
    Ok(Fixture { cache, memory, mode })
}

/// A block lives until a store to its bytes.
fn expect_tracked(guest: &Fixture) {
    let entry = guest.translate(1, &[GUEST]).unwrap();
    assert_eq!(guest.lookup(1), Some(entry));
    guest.store(GUEST, 7);
    guest.announce();
    assert_eq!(guest.lookup(1), None, "{}", guest.mode);
    guest.translate(1, &[GUEST]).unwrap();
}

#[test]
fn a_descriptor_of_either_door_tracks() {
    in_modes(modes(), |beside| {
        // A region that opens its own.
        expect_tracked(beside);
        for uffd in [open_uffd(beside.mode).unwrap(), build(uffd_features(beside.mode))] {
            let guest = on(beside.mode, uffd).unwrap();
            expect_tracked(&guest);
            assert!(!guest.cache.tracker().descriptors().is_empty());
            guest.cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
        }
    });
}

#[test]
fn a_descriptor_for_another_mode_is_refused() {
    for mode in modes() {
        for other in modes().into_iter().filter(|&other| other != mode) {
            let error = on(mode, build(uffd_features(other))).err().unwrap();
            assert!(error.to_string().contains("uffd_features"), "{error}");
        }
        // Enough for mode thread, which then populates its pages before it protects them.
        match on(mode, build(FeatureFlags::PAGEFAULT_FLAG_WP)) {
            Ok(guest) if mode == Mode::Thread => expect_tracked(&guest),
            Ok(_) => panic!("{mode}"),
            Err(error) => assert!(error.to_string().contains("uffd_features"), "{mode}: {error}"),
        }
    }
    let uffd = build(FeatureFlags::PAGEFAULT_FLAG_WP);
    assert!(matches!(on(Mode::Mprotect, uffd), Err(Error::BadArgument(_))));
    assert!(matches!(open_uffd(Mode::None), Err(Error::BadArgument(_))));
}
