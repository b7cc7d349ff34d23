//! Deferred mode: what the guest wrote and never announced is seen in the end.
//!
//! Application processors promise that a store reaches instruction fetch at
//! some time even if nobody executes a FENCE.I (Ziccid), and a guest may wait
//! for that in a loop that never leaves compiled code. A thread harvests for it,
//! some times a second. It is the host's: it takes no signal of the guest's, and
//! a fork's child needs one of its own.

use std::thread::Builder;
use std::time::Duration;

use codewarden::CodeCache;

use super::Payload;
use crate::linux::host_signals::set_mask;

/// How long a store may stay unseen. A harvest that finds nothing costs some
/// microseconds.
const PERIOD: Duration = Duration::from_millis(20);

/// Starts the thread of this process.
pub(super) fn harvest_now_and_then(cache: &'static CodeCache<Payload>) {
    let before = set_mask(!0);
    let thread = Builder::new().name("harvest".to_owned()).spawn(move || {
        loop {
            std::thread::sleep(PERIOD);
            // What could not be harvested counts as written.
            let _ = cache.tracker().sync();
        }
    });
    set_mask(before);
    // Without it the guest has to announce its writes, as the base ISA has it.
    drop(thread);
}
