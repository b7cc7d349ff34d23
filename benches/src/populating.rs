//! The cost of populating a page before it is protected, as on kernels before 6.4: claims in a
//! region whose userfaultfd was opened without `UFFD_FEATURE_WP_UNPOPULATED`, beside claims in an
//! ordinary one.
//!
//! # Safety
//!
//! Regions' memory outlives their caches. The descriptors have no copies.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use codewarden::addr::GuestAddr;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Plain;
use codewarden::protection::{Mode, open_uffd, uffd_features};
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, EntryStubs, Key};
use linux_raw_sys::general::UFFD_FEATURE_WP_UNPOPULATED;
use userfaultfd::{FeatureFlags, Uffd, UffdBuilder};

use crate::library::{check_learned, learned};
use crate::pair::{Aim, Pair};

/// Pages of a batch, with a page between any two.
const PAGES: u64 = 64;
const MODE: Mode = Mode::Sigbus;

/// The state of a page before it is claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Written,
    NeverTouched,
}

/// A cache with one region.
struct Side {
    cache: CodeCache<()>,
    page_bytes: u64,
    memory: GuestMemory,
}

impl Side {
    fn new(uffd: Uffd) -> Self {
        let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Plain)).expect("the stubs differ");
        let page_bytes = cache.tracker().page_size().bytes() as u64;
        let memory = GuestMemory::anonymous((2 * PAGES * page_bytes) as usize).expect("address space");
        let region = RegionOptions::new(GuestAddr(0), memory.range(), MODE);
        // SAFETY: the memory has no other user and is dropped after the cache; nothing else has the descriptor.
        unsafe { cache.tracker().add_region_on_uffd(region, uffd) }.expect("a descriptor for this mode");
        Self { cache, page_bytes, memory }
    }

    fn pages(&self) -> impl Iterator<Item = u64> {
        let page_bytes = self.page_bytes;
        (0..PAGES).map(move |index| 2 * index * page_bytes)
    }

    fn store_all(&self) {
        self.pages().for_each(|page| self.memory.write(page as usize, &[1]).expect("inside"));
    }

    /// Nanoseconds for the claim of one page.
    fn claims(&self, before: Before) -> f64 {
        let range = self.memory.range();
        let change = self.cache.tracker().change_mapping(GuestAddr(0), range.len() as u64).expect("tracked");
        // SAFETY: throws away the contents of this side's own memory.
        let done = unsafe { libc::madvise(range.start().as_ptr().cast(), range.len(), libc::MADV_DONTNEED) };
        assert_eq!(done, 0);
        if before == Before::Written {
            self.store_all();
        }
        drop(change);
        let start = Instant::now();
        for page in self.pages() {
            let mut ticket = self.cache.begin(Key::new(page));
            ticket.claim(GuestAddr(page)).expect("an open page");
        }
        let ns = start.elapsed().as_nanos() as f64 / PAGES as f64;
        let known = learned(&self.cache);
        self.store_all();
        check_learned(&self.cache, known + PAGES);
        ns
    }
}

/// Both kinds of page, in both regions by turns.
///
/// # Panics
///
/// If this kernel protects populated pages only, or lacks the mode.
pub fn measure(rounds: usize) -> Vec<Pair> {
    let bits = uffd_features(MODE).bits();
    let unpopulated = u64::from(UFFD_FEATURE_WP_UNPOPULATED);
    assert_ne!(bits & unpopulated, 0, "this kernel protects populated pages only");
    let before_6_4 = FeatureFlags::from_bits_retain(bits & !unpopulated);
    let uffd = UffdBuilder::new().close_on_exec(true).require_features(before_6_4).create();
    let populating = Side::new(uffd.expect("a userfaultfd"));
    let ordinary = Side::new(open_uffd(MODE).expect("a userfaultfd"));
    let pair = |what: &str, before: Before| Pair {
        what: format!("claim a page that {what}, populated first"),
        beside: "the same, without populating".to_owned(),
        unit: "ns",
        samples: (0..rounds + 1)
            .map(|round| match round % 2 {
                0 => (populating.claims(before), ordinary.claims(before)),
                _ => {
                    let second = ordinary.claims(before);
                    (populating.claims(before), second)
                }
            })
            .skip(1)
            .collect(),
        aim: Aim::Told,
    };
    vec![pair("was written", Before::Written), pair("was never touched", Before::NeverTouched)]
}
