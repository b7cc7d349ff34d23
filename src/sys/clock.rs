//! Clocks for signal handlers.
//!
//! # Safety
//!
//! `clock_gettime` is async-signal-safe by POSIX and touches nothing but the
//! structure that it is given.
#![allow(unsafe_code)]

/// Milliseconds on a coarse monotonic clock: a few nanoseconds to read, several
/// milliseconds apart.
pub(crate) fn coarse_ms() -> u64 {
    let now = read(libc::CLOCK_MONOTONIC_COARSE);
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

/// Nanoseconds on a monotonic clock. It takes tens of nanoseconds to read, without a
/// system call if the kernel trusts the processor's counter.
pub(crate) fn precise_ns() -> u64 {
    let now = read(libc::CLOCK_MONOTONIC);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    now
}
