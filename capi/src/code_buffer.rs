//! Executable memory, for embedders that have no allocator for it.
//!
//! The memory is mapped twice: write code through one address, run it at another. No
//! mapping is writable and executable, and none changes its protection.
//!
//! ```c
//! cw_code_buffer_alloc(buffer, len, 16, &code);         // CW_FULL: evict, try again
//! memcpy(cw_allocation_rw(code), ...);                  // runs at cw_allocation_rx()
//! cw_allocation_publish(code);                          // before any other code gets the address
//! cw_ticket_keep_allocation(ticket, code);              // freed with its block
//! ```
//!
//! Any thread may use a buffer. Any thread may free an allocation, when no thread runs
//! in it.
//!
//! # Safety
//!
//! Pointers are used as the header's rules say.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;

use engine::code_buffer::{Allocation, CodeBuffer};
use libc::size_t;

use crate::handle::{borrow, fill_in, out_handle, take_back};
use crate::status::{Failure, cw_status, guarded};

/// Executable memory of bounded size.
pub struct cw_code_buffer(pub(crate) CodeBuffer);

/// A piece of it.
pub struct cw_allocation(pub(crate) Allocation);

/// The use of a code buffer. May get more fields at its end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct cw_code_buffer_stats {
    /// sizeof(cw_code_buffer_stats); afterwards the number of bytes that were filled
    /// in.
    pub size_bytes: size_t,
    /// The bytes that it can hold.
    pub limit_bytes: size_t,
    /// The bytes allocated now, rounded up to the allocator's unit.
    pub used_bytes: size_t,
    /// The most bytes that may have memory behind them now.
    pub resident_bytes: size_t,
    /// The largest allocation that would succeed now.
    pub largest_free_bytes: size_t,
    /// Allocations that are alive.
    pub allocations: size_t,
    /// The bytes given back to the system so far.
    pub given_back_bytes: u64,
}

/// A buffer for limit_bytes of code, rounded up to whole pages. It takes twice as much
/// address space, and memory as code is put into it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_code_buffer_new(limit_bytes: size_t, buffer: *mut *mut cw_code_buffer) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let new = unsafe { out_handle(buffer) }?;
        new.give(cw_code_buffer(CodeBuffer::new(limit_bytes)?));
        Ok(())
    })
}

/// Frees the handle. The memory is freed with its last allocation. Does nothing for
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_code_buffer_free(buffer: *mut cw_code_buffer) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(buffer) });
}

/// Memory for len_bytes of code at a multiple of align_bytes, a power of two up to the
/// page size. Its contents are undefined.
///
/// CW_FULL if no free range is large enough: cw_cache_evict(), and try again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_code_buffer_alloc(
    buffer: *const cw_code_buffer,
    len_bytes: size_t,
    align_bytes: size_t,
    allocation: *mut *mut cw_allocation,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, buffer) = unsafe { (out_handle(allocation)?, borrow(buffer)?) };
        new.give(cw_allocation(buffer.0.alloc(len_bytes, align_bytes)?));
        Ok(())
    })
}

/// Fills in the buffer's use. Set stats->size_bytes before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_code_buffer_get_stats(
    buffer: *const cw_code_buffer,
    stats: *mut cw_code_buffer_stats,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let buffer = unsafe { borrow(buffer) }?;
        let now = buffer.0.stats();
        let found = cw_code_buffer_stats {
            size_bytes: 0,
            limit_bytes: now.limit_bytes,
            used_bytes: now.used_bytes,
            resident_bytes: now.resident_bytes,
            largest_free_bytes: now.largest_free_bytes,
            allocations: now.allocations,
            given_back_bytes: now.given_back_bytes,
        };
        // SAFETY: the header's rules; words without padding.
        unsafe { fill_in(stats, &found) }
    })
}

/// The address to write the code to. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_allocation_rw(allocation: *const cw_allocation) -> *mut c_void {
    // SAFETY: the header's rules.
    unsafe { borrow(allocation) }.map_or(ptr::null_mut(), |allocation| allocation.0.rw().cast())
}

/// The address at which the code runs. NULL for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_allocation_rx(allocation: *const cw_allocation) -> *const c_void {
    // SAFETY: the header's rules.
    unsafe { borrow(allocation) }.map_or(ptr::null(), |allocation| allocation.0.rx().cast())
}

/// The number of bytes that were asked for. 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_allocation_len_bytes(allocation: *const cw_allocation) -> size_t {
    // SAFETY: the header's rules.
    unsafe { borrow(allocation) }.map_or(0, |allocation| allocation.0.len())
}

/// Makes every thread fetch the bytes written there as code. Call it after the last
/// write and before any other code gets the address: processors may have fetched the
/// old bytes. If it fails, the code must not be run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_allocation_publish(allocation: *const cw_allocation) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        Ok(unsafe { borrow(allocation) }?.0.publish()?)
    })
}

/// Publishes allocation_count allocations, of any buffers, by one interruption of the other
/// processors. It costs more than to compile a small block quickly: so write many blocks,
/// publish them together, then commit each. If it fails, none of the code must be run.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_allocation_publish_all(
    allocations: *const *const cw_allocation,
    allocation_count: size_t,
) -> cw_status {
    guarded(|| {
        if allocations.is_null() && allocation_count != 0 {
            return Err(Failure::bad_argument(c"allocations is NULL and allocation_count is not 0"));
        }
        // SAFETY: C's array has allocation_count elements, and the header's rules.
        let one = |at| Ok(&unsafe { borrow(*allocations.add(at)) }?.0);
        let all = (0..allocation_count).map(one).collect::<Result<Vec<&Allocation>, Failure>>()?;
        Ok(Allocation::publish_all(all.iter().copied())?)
    })
}

/// Frees it. No thread may be running in it, or come to it. Does nothing for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_allocation_free(allocation: *mut cw_allocation) {
    // SAFETY: the header's rules.
    drop(unsafe { take_back(allocation) });
}
