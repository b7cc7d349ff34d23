//! Parts of the kernel that a mode lacks on older kernels, though it is available there.

use codewarden::protection::{Facility, Mode, Probe};

/// Whether `mode` has `facility`, or works without it as well. Otherwise reports a skip, or fails
/// if a skip is not allowed.
pub(crate) fn has_or_skips(mode: Mode, facility: Facility) -> bool {
    let needs = match facility {
        // In the other modes the signal names the byte. Without it a fault is at the page's start.
        Facility::ExactAddress => mode == Mode::Thread,
        // Without it memfds and shared memory cannot be tracked.
        Facility::WpShmem => matches!(mode, Mode::Sigbus | Mode::Thread),
        _ => true,
    };
    let Some(why) = Probe::of_this_process().why_missing(facility).filter(|_| needs) else { return true };
    assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{mode}: {why}");
    println!("skipped: {mode}: {why}");
    false
}
