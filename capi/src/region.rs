//! Regions: the guest memory that is tracked.
//!
//! Guest memory is yours (mmap it): the library takes write permission from its pages
//! and gives it back. Use anonymous memory for private memory, not of MAP_HUGETLB. Memory that the guest
//! maps at several places is a memfd, with each mapping in a region and declared. If
//! you write through a mapping of your own, it is not tracked: call
//! cw_tracker_invalidate(). Never leave tracked memory to MADV_FREE or MADV_MERGEABLE by a call of
//! your own: the kernel changes it, or forgets its protection, later and without notice.
//!
//! # Safety
//!
//! C promises for a region's memory the requirements of `Tracker::add_region`.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use engine::addr::{GuestAddr, HostAddr, HostRange};
use engine::guest_memory::BackingId;
use engine::protection::Mode;
use engine::tracker::{RegionOptions, SharedMemory};
use libc::size_t;

use crate::cache::cw_cache;
use crate::handle::{borrow, filled_in, out, read_bool};
use crate::mode::{cw_access, cw_mode};
use crate::status::{Failure, cw_status, guarded};
use crate::tracker::{Of, cw_tracker};

/// The options of a new region. cw_region_options_default() fills in the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_region_options {
    /// sizeof(cw_region_options).
    pub size_bytes: size_t,
    /// Its address for the guest. A multiple of the page size.
    pub guest: u64,
    /// Its address in this process, on a page boundary: mapped, at least with PROT_NONE,
    /// unless it is reserved. Not NULL: if guest addresses are your own, begin at the lowest
    /// that can be mapped.
    pub host: *mut c_void,
    /// Its length: whole pages.
    pub len_bytes: size_t,
    /// How the library learns of writes to it.
    pub mode: MaybeUninit<cw_mode>,
    /// The guest's rights to it, as it is mapped now.
    pub access: MaybeUninit<cw_access>,
    /// Whether your own handlers of SIGBUS and SIGSEGV call cw_handle_fault(): the
    /// library installs no handler then. Modes thread and deferred use no signal.
    pub embedder_owns_signals: MaybeUninit<bool>,
    /// The guest's processor may run old bytes until it executes an instruction for that
    /// (FENCE.I on RISC-V, ISB on Arm, isync on POWER), at which you call cw_tracker_sync()
    /// on the thread of that vCPU, in every mode. Then a write fault needs no barrier on
    /// all threads while other vCPUs run. Off by default.
    pub explicit_fetch: MaybeUninit<bool>,
    /// Address space without a mapping of the guest's yet: cw_tracker_map() each that comes.
    /// Only what was mapped so is touched, and holes and memory of your own may lie between. It
    /// may be as large as the guest's address space: its size costs nothing. access is of no
    /// meaning then. Off by default.
    pub reserved: MaybeUninit<bool>,
}

/// The device of memory that has no file: see cw_shared_memory.
pub const CW_NO_DEVICE: u64 = u64::MAX;

/// Memory that is mapped at several places. Two mappings with one device and one number show
/// the same memory. cw_shared_file() and cw_shared_number() make one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_shared_memory {
    /// st_dev of the file or memfd, from fstat. CW_NO_DEVICE for memory without a file (shared
    /// anonymous memory).
    pub device: u64,
    /// st_ino. For memory without a file a number of yours, another one for each memory.
    pub number: u64,
    /// The offset in it at which the mapping begins, in bytes.
    pub offset_bytes: u64,
}

impl cw_shared_memory {
    pub(crate) fn read(self) -> SharedMemory {
        let backing = match self.device {
            CW_NO_DEVICE => BackingId::numbered(self.number),
            device => BackingId::of_file(device, self.number),
        };
        SharedMemory { backing, offset: self.offset_bytes }
    }
}

/// The tracker of a cache, valid until the cache is freed: for regions, mappings and writes.
/// NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_tracker(cache: *const cw_cache) -> *const cw_tracker {
    // SAFETY: the header's rules.
    unsafe { borrow(cache) }.map_or(ptr::null(), |cache| ptr::from_ref(&cache.tracker))
}

/// Starts to track a region. All of it is writable until it is translated from.
///
/// The memory stays mapped as guest memory until cw_tracker_remove_region() or the _free of
/// the tracker or its cache has returned. If you replace or unmap parts of it, or change
/// their protection, use the functions of the section about mappings. A thread that stores to it must not have the mode's signal
/// blocked (SIGBUS for sigbus, SIGSEGV for mprotect): the kernel would end the process
/// there.
///
/// CW_BAD_RANGE if it is not whole pages, overlaps another region or is not mapped.
/// CW_MODE_UNAVAILABLE if the mode is not available. CW_SYSTEM if the mode cannot track
/// this mapping. CW_ALREADY_TRACKED if another userfaultfd tracks it. CW_BAD_ARGUMENT if the
/// tracker has a lock, the mode is sigbus or mprotect, and the signals are not yours: the
/// library's handler takes no lock.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_add_region(
    tracker: *const cw_tracker,
    options: *const cw_region_options,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (of, options) = unsafe { (borrow(tracker)?, filled_in(options)?) };
        let tracker = of.any();
        if options.host.is_null() {
            return Err(Failure::bad_argument(
                c"host must not be NULL: begin at the lowest address that can be mapped",
            ));
        }
        let host = HostRange::new(HostAddr::of(options.host), options.len_bytes, tracker.page_size())?;
        let region = RegionOptions::new(GuestAddr(options.guest), host, cw_mode::read(options.mode)?)
            .with_access(cw_access::read(options.access)?)
            .with_embedder_signals(read_bool(options.embedder_owns_signals)?)
            .with_explicit_fetch(read_bool(options.explicit_fetch)?)
            .with_reserved(read_bool(options.reserved)?);
        let has_signal = matches!(region.mode, Mode::Sigbus | Mode::Mprotect) && !region.embedder_owns_signals;
        if has_signal && matches!(of.of(), Of::Embedder(codes) if codes.has_lock()) {
            return Err(Failure::bad_argument(
                c"the tracker has a lock, which the library's signal handler does not take: own the signals, and take the lock before cw_handle_fault()",
            ));
        }
        // SAFETY: this function asks the same of its caller.
        Ok(unsafe { tracker.add_region(region) }?)
    })
}

/// Stops tracking the region that starts at guest: its translations are unreachable,
/// its pages are writable, and the memory is yours alone.
///
/// CW_BAD_ARGUMENT if no region starts there: nothing was done. After any other failure
/// the region is gone all the same, and its translations are unreachable, but pages of
/// it may have been left protected: map the memory anew before you store to it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_remove_region(tracker: *const cw_tracker, guest: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let tracker = unsafe { borrow(tracker) }?.any();
        Ok(tracker.remove_region(GuestAddr(guest))?)
    })
}

/// How the library learns of writes at guest; CW_BAD_RANGE outside every region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_tracker_mode_at(tracker: *const cw_tracker, guest: u64, mode: *mut cw_mode) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (tracker, mode) = unsafe { (borrow(tracker)?, out(mode)?) };
        let found = tracker.any().mode_at(GuestAddr(guest));
        mode.write(cw_mode::of(
            found.ok_or(Failure::new(cw_status::CW_BAD_RANGE, c"no tracked region holds this address"))?,
        ));
        Ok(())
    })
}
