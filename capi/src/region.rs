//! Regions: the guest memory that is tracked.
//!
//! Guest memory is yours (mmap it): the library takes write permission from its pages
//! and gives it back. Use anonymous memory for private memory. Memory that the guest
//! maps at several places is a memfd, with each mapping in a region and declared. If
//! you write through a mapping of your own, it is not tracked: call
//! cw_cache_invalidate().
//!
//! # Safety
//!
//! C promises for a region's memory the requirements of `Tracker::add_region`.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::MaybeUninit;

use engine::addr::{GuestAddr, HostAddr, HostRange};
use engine::guest_memory::BackingId;
use engine::tracker::{RegionOptions, SharedMemory};
use libc::size_t;

use crate::cache::cw_cache;
use crate::handle::{borrow, filled_in, out, read_bool};
use crate::mode::{cw_access, cw_mode};
use crate::status::{Failure, cw_status, guarded};

/// The options of a new region. cw_region_options_default() fills in the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_region_options {
    /// sizeof(cw_region_options).
    pub size_bytes: size_t,
    /// Its address for the guest. A multiple of the page size.
    pub guest: u64,
    /// Its address in this process: mapped, at least with PROT_NONE, on a page
    /// boundary.
    pub host: *mut c_void,
    /// Its length: whole pages.
    pub len_bytes: size_t,
    /// How the library learns of writes to it.
    pub mode: MaybeUninit<cw_mode>,
    /// The guest's rights to it, as it is mapped now.
    pub access: MaybeUninit<cw_access>,
    /// Whether your own handlers of SIGBUS and SIGSEGV call cw_handle_fault(): the
    /// library installs no handler then.
    pub embedder_owns_signals: MaybeUninit<bool>,
    /// The guest's processor may run old bytes until it executes an instruction for that
    /// (FENCE.I on RISC-V, ISB on Arm, isync on POWER), at which you call cw_cache_sync()
    /// on the thread of that vCPU, in every mode. Then a write fault needs no barrier on
    /// all threads while other vCPUs run. Off by default.
    pub explicit_fetch: MaybeUninit<bool>,
}

/// Memory that is mapped at several places: a file or memfd, named by two numbers from
/// fstat.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_shared_memory {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub inode: u64,
    /// The offset in it at which the mapping begins, in bytes.
    pub offset_bytes: u64,
}

impl cw_shared_memory {
    pub(crate) fn read(self) -> SharedMemory {
        SharedMemory { backing: BackingId::of_file(self.device, self.inode), offset: self.offset_bytes }
    }
}

/// Starts to track a region. All of it is writable until it is translated from.
///
/// The memory stays mapped as guest memory until cw_cache_remove_region() or
/// cw_cache_free() has returned. Replace or unmap parts of it only under
/// cw_cache_change_mapping(), and change their protection only by
/// cw_cache_set_access(). A thread that stores to it must not have the mode's signal
/// blocked (SIGBUS for sigbus, SIGSEGV for mprotect): the kernel would end the process
/// there.
///
/// CW_BAD_RANGE if it is not whole pages, overlaps another region or is not mapped.
/// CW_MODE_UNAVAILABLE if the mode is not available. CW_SYSTEM if the mode cannot track
/// this mapping. CW_ALREADY_TRACKED if another userfaultfd tracks it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_add_region(cache: *const cw_cache, options: *const cw_region_options) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (cache, options) = unsafe { (borrow(cache)?, filled_in(options)?) };
        let tracker = cache.cache.tracker();
        let host = HostRange::new(HostAddr::of(options.host), options.len_bytes, tracker.page_size())?;
        let region = RegionOptions::new(GuestAddr(options.guest), host, cw_mode::read(options.mode)?)
            .with_access(cw_access::read(options.access)?)
            .with_embedder_signals(read_bool(options.embedder_owns_signals)?)
            .with_explicit_fetch(read_bool(options.explicit_fetch)?);
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
pub unsafe extern "C" fn cw_cache_remove_region(cache: *const cw_cache, guest: u64) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let cache = unsafe { borrow(cache) }?;
        Ok(cache.cache.tracker().remove_region(GuestAddr(guest))?)
    })
}

/// How the library learns of writes at guest; CW_BAD_RANGE outside every region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_mode_at(cache: *const cw_cache, guest: u64, mode: *mut cw_mode) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (cache, mode) = unsafe { (borrow(cache)?, out(mode)?) };
        let found = cache.cache.tracker().mode_at(GuestAddr(guest));
        mode.write(cw_mode::of(
            found.ok_or(Failure::new(cw_status::CW_BAD_RANGE, c"no tracked region holds this address"))?,
        ));
        Ok(())
    })
}

/// Declares that len_bytes from guest, in a region and mapped already, show memory that
/// may be mapped elsewhere too. Then a store through any declared mapping reaches the
/// blocks of all. If memory has several mappings, declare each of them before the guest
/// can store to it. CW_BAD_RANGE, and nothing is done, if the range or the offset is
/// not whole pages or wraps, or if not all of the range lies in regions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_declare_shared(
    cache: *const cw_cache,
    guest: u64,
    len_bytes: u64,
    memory: cw_shared_memory,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let cache = unsafe { borrow(cache) }?;
        Ok(cache.cache.tracker().declare_shared(GuestAddr(guest), len_bytes, memory.read())?)
    })
}

/// Carries out the guest's own mprotect: sets the guest's rights to len_bytes from
/// guest, with bounds rounded to whole pages. The tracking's protection stays.
/// CW_BAD_RANGE, and nothing is done, if the range wraps or not all of its pages lie in
/// regions.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_set_access(
    cache: *const cw_cache,
    guest: u64,
    len_bytes: u64,
    access: MaybeUninit<cw_access>,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let cache = unsafe { borrow(cache) }?;
        Ok(cache.cache.tracker().set_access(GuestAddr(guest), len_bytes, cw_access::read(access)?)?)
    })
}
