//! Another owner has the range.
//!
//! # Safety
//!
//! Memory outlives the trackers on it.
#![allow(unsafe_code)]

use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Mode, Probe};
use codewarden::{CodeCache, EntryStubs};
use userfaultfd::{FeatureFlags, RegisterMode, Uffd, UffdBuilder};

use crate::scenario::{End, OTHERS, TRACKING, UFFD, fixture, scenario};
use crate::support::{Fixture, GUEST, PAGES, page_bytes, region, skip};

/// A userfaultfd of the embedder's own, on all of `memory`. Its crate opens the device if there is
/// one, which may be root's alone; then the test is skipped.
fn register_elsewhere(memory: &GuestMemory) -> Option<Uffd> {
    let mut builder = UffdBuilder::new();
    builder.close_on_exec(true).user_mode_only(true).require_features(FeatureFlags::PAGEFAULT_FLAG_WP);
    let uffd = match builder.create() {
        Err(userfaultfd::Error::OpenDevUserfaultfd(error)) => {
            skip(&format_args!("/dev/userfaultfd: {error}"));
            return None;
        }
        uffd => uffd.unwrap(),
    };
    uffd.register_with_mode(memory.range().start().as_ptr().cast(), memory.len(), RegisterMode::WRITE_PROTECT).unwrap();
    Some(uffd)
}

fn add(memory: &GuestMemory, mode: Mode) -> Result<(), Error> {
    let cache = CodeCache::<u32>::new(EntryStubs::NOT_CODE).unwrap();
    // SAFETY: the memory outlives the cache.
    unsafe { cache.tracker().add_region(region(GUEST, memory, mode)) }
}

/// A range has one userfaultfd: the error names the owner that must give it up.
#[test]
fn another_userfaultfd() {
    scenario("owners::another_userfaultfd", &UFFD, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let Some(other) = register_elsewhere(&memory) else { return };
        let error = add(&memory, mode).unwrap_err();
        assert!(matches!(error, Error::AlreadyTracked { .. }), "{error}");
        assert!(error.to_string().contains("another userfaultfd (EBUSY)"), "{error}");
        drop(other);
        Fixture::new(mode, memory).expect_tracked(1);
    });
}

/// `mprotect` works beside it.
#[test]
fn another_userfaultfd_where_none_is_needed() {
    scenario("owners::another_userfaultfd_where_none_is_needed", &OTHERS, End::Well, |mode| {
        let memory = GuestMemory::anonymous(PAGES * page_bytes()).unwrap();
        let Some(_other) = register_elsewhere(&memory) else { return };
        Fixture::new(mode, memory).expect_tracked(1);
    });
}

/// Two trackers of this library, in any two modes.
#[test]
fn another_tracker() {
    scenario("owners::another_tracker", &Mode::ALL, End::Well, |mode| {
        let guest = fixture(mode);
        for other in TRACKING {
            if let Err(error) = Probe::of_this_process().check(other) {
                skip(&error);
                continue;
            }
            if mode == Mode::None {
                add(&guest.memory, other).unwrap();
                continue;
            }
            let error = add(&guest.memory, other).unwrap_err();
            assert!(matches!(error, Error::AlreadyTracked { .. }), "{other} over {mode}: {error}");
        }
        guest.expect_tracked(1);
    });
}
