//! An alarm for a test that waits: a test that could wait for ever detects nothing.

use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::limit::limit_s;

/// A test that waits longer waits for ever.
const LIMIT_S: u32 = 120;

/// Ends when it is dropped.
pub(crate) struct Alarm {
    _over: Sender<()>,
}

impl Alarm {
    /// From now on the test waits. After the limit the process reports the wait and ends.
    pub(crate) fn while_waiting_for(what: &'static str) -> Self {
        let (over, end) = channel();
        let limit_s = limit_s(LIMIT_S);
        std::thread::spawn(move || {
            if end.recv_timeout(Duration::from_secs(limit_s.into())) == Err(RecvTimeoutError::Timeout) {
                // Not by a macro: the harness holds a test's output back until the test ends.
                let _ = writeln!(std::io::stderr(), "waited {limit_s} s for {what}");
                std::process::abort();
            }
        });
        Self { _over: over }
    }
}
