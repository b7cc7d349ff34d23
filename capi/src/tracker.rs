//! Trackers: what learns of writes to guest memory.
//!
//! A cache of this library has a tracker, cw_cache_tracker(). If your blocks are in a cache
//! of your own, make a tracker for it, cw_tracker_new(): it tells you which pages' blocks
//! have become stale. Regions, mappings, announced writes, forks and statistics are the same
//! for both. Any thread may call a function that takes a const cw_tracker at any time, except
//! in a signal handler and while another thread frees the tracker.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::sync::Arc;

use engine::addr::{GuestAddr, HostRange, PageSize};
use engine::error::Error;
use engine::policy::Policy;
use engine::protection::{Access, Mode};
use engine::tracker::{Held, HotPage, MappingChange, PageData, PagesByState, RegionOptions, SharedMemory, Tracker};
use engine::{CodeCache, Histograms, Stats};

use crate::code_page::{Codes, Embedder};
use crate::handle::{borrow, filled_in, out_handle, take_back};
use crate::payload::Owned;
use crate::policy::cw_policy;
use crate::status::{Failure, cw_status, guarded};
use crate::told::cw_tracker_options;

/// The calls that all trackers have, whatever they keep for a page.
pub(crate) trait AnyTracker {
    fn page_size(&self) -> PageSize;
    /// # Safety
    ///
    /// That of `Tracker::add_region`.
    unsafe fn add_region(&self, options: RegionOptions) -> Result<(), Error>;
    fn remove_region(&self, guest: GuestAddr) -> Result<(), Error>;
    fn mode_at(&self, guest: GuestAddr) -> Option<Mode>;
    fn host_from(&self, guest: GuestAddr) -> Option<HostRange>;
    fn declare_shared(&self, guest: GuestAddr, len_bytes: u64, memory: SharedMemory) -> Result<(), Error>;
    fn set_access(&self, guest: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error>;
    fn change_mapping(&self, guest: GuestAddr, len_bytes: u64) -> Result<MappingChange, Error>;
    fn sync(&self) -> Result<(), Error>;
    fn sync_range(&self, guest: GuestAddr, len_bytes: u64) -> Result<(), Error>;
    fn invalidate(&self, guest: GuestAddr, len_bytes: u64) -> Result<(), Error>;
    fn prepare_kernel_write(&self, guest: GuestAddr, len_bytes: u64) -> Result<Held, Error>;
    fn prepare_unseen_write(&self, guest: GuestAddr, len_bytes: u64) -> Result<Held, Error>;
    /// Panics under the guard of a fork.
    fn maintain(&self);
    fn stats(&self) -> Stats;
    fn histograms(&self) -> Histograms;
    fn hottest_pages(&self, most: usize) -> Vec<HotPage>;
    fn pages_by_state(&self) -> PagesByState;
    fn descriptors(&self) -> Vec<i32>;
}

/// Each call as the tracker has it.
macro_rules! as_the_tracker_has_it {
    ($($name:ident($($argument:ident: $of:ty),*) $(-> $result:ty)?;)*) => {
        impl<D: PageData> AnyTracker for Tracker<D> {
            unsafe fn add_region(&self, options: RegionOptions) -> Result<(), Error> {
                // SAFETY: the caller's.
                unsafe { self.add_region(options) }
            }

            $(fn $name(&self, $($argument: $of),*) $(-> $result)? {
                self.$name($($argument),*)
            })*
        }
    };
}

as_the_tracker_has_it! {
    page_size() -> PageSize;
    remove_region(guest: GuestAddr) -> Result<(), Error>;
    mode_at(guest: GuestAddr) -> Option<Mode>;
    host_from(guest: GuestAddr) -> Option<HostRange>;
    declare_shared(guest: GuestAddr, len_bytes: u64, memory: SharedMemory) -> Result<(), Error>;
    set_access(guest: GuestAddr, len_bytes: u64, access: Access) -> Result<(), Error>;
    change_mapping(guest: GuestAddr, len_bytes: u64) -> Result<MappingChange, Error>;
    sync() -> Result<(), Error>;
    sync_range(guest: GuestAddr, len_bytes: u64) -> Result<(), Error>;
    invalidate(guest: GuestAddr, len_bytes: u64) -> Result<(), Error>;
    prepare_kernel_write(guest: GuestAddr, len_bytes: u64) -> Result<Held, Error>;
    prepare_unseen_write(guest: GuestAddr, len_bytes: u64) -> Result<Held, Error>;
    maintain();
    stats() -> Stats;
    histograms() -> Histograms;
    hottest_pages(most: usize) -> Vec<HotPage>;
    pages_by_state() -> PagesByState;
    descriptors() -> Vec<i32>;
}

/// A tracker.
pub struct cw_tracker {
    of: Of,
    /// One count for each C object that must be freed before it.
    children: Arc<()>,
}

/// What a tracker belongs to.
pub(crate) enum Of {
    Cache(CodeCache<Owned>),
    Embedder(Codes),
}

/// Held by an object that must be freed before its tracker, and its cache.
pub(crate) struct Child {
    _of: Arc<()>,
}

impl cw_tracker {
    pub(crate) fn of_cache(cache: CodeCache<Owned>) -> Self {
        Self { of: Of::Cache(cache), children: Arc::default() }
    }

    pub(crate) fn of(&self) -> &Of {
        &self.of
    }

    pub(crate) fn any(&self) -> &dyn AnyTracker {
        match &self.of {
            Of::Cache(cache) => cache.tracker(),
            Of::Embedder(codes) => codes.tracker(),
        }
    }

    /// The embedder's, for a call that a cache makes by its tickets.
    pub(crate) fn codes(&self) -> Result<&Codes, Failure> {
        match &self.of {
            Of::Embedder(codes) => Ok(codes),
            Of::Cache(_) => {
                Err(Failure::bad_argument(c"pages of a cache's tracker are claimed by tickets: cw_ticket_claim()"))
            }
        }
    }

    /// Whether the calling thread holds the fork guard. It would wait for itself.
    pub(crate) fn stands_still_here(&self) -> bool {
        match &self.of {
            Of::Cache(cache) => cache.stands_still_here() || cache.tracker().stands_still_here(),
            Of::Embedder(codes) => codes.tracker().stands_still_here(),
        }
    }

    /// The tracker, for a call that has no error in Rust.
    pub(crate) fn moving(&self) -> Result<&dyn AnyTracker, Failure> {
        if self.stands_still_here() { Err(UNDER_GUARD) } else { Ok(self.any()) }
    }

    pub(crate) fn child(&self) -> Child {
        Child { _of: self.children.clone() }
    }

    pub(crate) fn has_children(&self) -> bool {
        Arc::strong_count(&self.children) != 1
    }
}

pub(crate) const UNDER_GUARD: Failure = Failure::bad_argument(
    c"this thread holds the fork guard: give it back first, or call cw_after_fork_child() in the child",
);

/// A tracker without regions, for a cache of your own. Free it with cw_tracker_free().
///
/// CW_BAD_ARGUMENT if told is NULL, or only one of lock and unlock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_new(
    options: *const cw_tracker_options,
    tracker: *mut *mut cw_tracker,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; any bits are options.
        let (new, options) = unsafe { (out_handle(tracker)?, filled_in(options)?) };
        let policy: Arc<dyn Policy> = cw_policy::read(options.policy)?;
        let codes = Codes::new(Embedder::new(&options)?, policy);
        new.give(cw_tracker { of: Of::Embedder(codes), children: Arc::default() });
        Ok(())
    })
}

/// Stops tracking every region, tells CW_TOLD_LOST of every page that was claimed, and frees
/// the tracker. When it has returned none of its functions is called any more, and guest
/// memory may be unmapped. Does nothing for NULL.
///
/// Not under your lock: this takes it, and waits until the library's thread has left it.
///
/// CW_IN_USE while a hold or fork guard of it is alive: free that first; the tracker is
/// unchanged. CW_BAD_ARGUMENT for a cache's tracker, which ends with the cache. Claims of it
/// must not be used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_free(tracker: *mut cw_tracker) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules; NULL is allowed.
        if let Ok(tracker) = unsafe { borrow(tracker) } {
            if matches!(tracker.of, Of::Cache(_)) {
                return Err(Failure::bad_argument(c"a cache's tracker is freed by cw_cache_free()"));
            }
            if tracker.has_children() {
                return Err(Failure::new(
                    cw_status::CW_IN_USE,
                    c"the tracker has holds or fork guards: free them first",
                ));
            }
        }
        // SAFETY: the header's rules.
        if let Some(cw_tracker { of: Of::Embedder(codes), .. }) = unsafe { take_back(tracker) }.map(|tracker| *tracker)
        {
            codes.end();
        }
        Ok(())
    })
}

/// Lets self-checking pages that have cooled be protected again, and checks whether regions
/// are still tracked. Call it some times a second, from a timer. It costs next to
/// nothing if there is nothing to do. If you never call it, pages that have become self-checking
/// stay so, and a lost descriptor is noticed only by the next call that asks the kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_maintain(tracker: *const cw_tracker) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        unsafe { borrow(tracker) }?.moving()?.maintain();
        Ok(())
    })
}
