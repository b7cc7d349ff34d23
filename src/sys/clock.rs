//! Clocks for signal handlers: rustix reads them by the kernel's function in the vDSO.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Milliseconds on a coarse monotonic clock: a few nanoseconds to read, several
/// milliseconds apart.
pub(crate) fn coarse_ms() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::MonotonicCoarse);
    tv_sec as u64 * 1_000 + tv_nsec as u64 / 1_000_000
}

/// Nanoseconds on a monotonic clock. It takes tens of nanoseconds to read, without a
/// system call if the kernel trusts the processor's counter.
pub(crate) fn precise_ns() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::Monotonic);
    tv_sec as u64 * 1_000_000_000 + tv_nsec as u64
}
