//! The thread that maintains the tracker.
//!
//! - **Cooling.** A page that was written to all the time became self-checking. Once the writes are
//!   over, `maintain` lets it be protected again.
//! - **Deferred mode: unannounced writes.** RISC-V application processors promise that a store
//!   reaches instruction fetch at some time, even if no hart executes a FENCE.I (Ziccid). A guest
//!   may wait for that in a loop that never leaves compiled code. So the thread harvests 50 times a
//!   second.
//!
//! This host thread takes no signal of the guest's. A fork's child needs a thread of its own.

use std::thread::Builder;
use std::time::Duration;

use codewarden::CodeCache;
use codewarden::protection::Mode;

use super::payload::Payload;
use crate::linux::host_signals::set_mask;

/// How long a store may stay unseen. A harvest that finds nothing costs a few microseconds.
const HARVEST_PERIOD: Duration = Duration::from_millis(20);

/// How often self-checking pages are looked at.
const MAINTENANCE_PERIOD: Duration = Duration::from_millis(100);

/// Starts the thread of this process, if `mode` needs one.
pub(super) fn start(cache: &'static CodeCache<Payload>, mode: Mode) {
    let work: fn(&CodeCache<Payload>) -> ! = match mode {
        Mode::None => return,
        Mode::Deferred => harvest_and_maintain,
        _ => maintain,
    };
    let before = set_mask(!0);
    let thread = Builder::new().name("maintenance".to_owned()).spawn(move || work(cache));
    set_mask(before);
    // Without the thread pages stay self-checking, and the guest must announce its writes, as the
    // base ISA demands.
    drop(thread);
}

fn maintain(cache: &CodeCache<Payload>) -> ! {
    loop {
        std::thread::sleep(MAINTENANCE_PERIOD);
        cache.tracker().maintain();
    }
}

fn harvest_and_maintain(cache: &CodeCache<Payload>) -> ! {
    let harvests = MAINTENANCE_PERIOD.as_millis() / HARVEST_PERIOD.as_millis();
    loop {
        for _ in 0..harvests {
            std::thread::sleep(HARVEST_PERIOD);
            // A page that could not be harvested counts as written.
            let _ = cache.tracker().sync();
        }
        cache.tracker().maintain();
    }
}
