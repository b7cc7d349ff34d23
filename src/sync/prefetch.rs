//! Asks the processor to bring a cache line near.
//!
//! # Safety
//!
//! A prefetch reads nothing that the program sees, and raises no fault at any address.
#![allow(unsafe_code)]

/// Brings the line at `at` near. A later load of it then waits for less, and other loads do not wait
/// for it. Any address is right.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: see the module's head.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(all(target_arch = "aarch64", not(miri)))]
    // SAFETY: see the module's head.
    unsafe {
        core::arch::asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    let _ = at;
}
