//! A kernel in software, for tests of the protocol between changes and openers. Each of
//! its calls is a step at which a test may run a handler on the same thread
//! (`sync::interruptible`), or stop and let another thread go on.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;

use super::Kernel;
use crate::addr::{HostAddr, PageSize};
use crate::protection::contract::Access;
use crate::sync::interruptible::step;

type Pause = Box<dyn Fn(Access) + Send + Sync>;

/// See the module head. A clone is the same kernel.
#[derive(Clone)]
pub(crate) struct FakeKernel(Arc<State>);

struct State {
    start: usize,
    page: PageSize,
    /// The pages that are not writable.
    refused: Mutex<BTreeMap<usize, Access>>,
    calls: AtomicUsize,
    /// Called before a call does anything, with its access.
    pause: Pause,
}

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeKernel")
    }
}

impl FakeKernel {
    /// Writable pages from `start` on.
    pub(crate) fn new(start: HostAddr, page: PageSize) -> Self {
        Self::with_pause(start, page, |_| ())
    }

    pub(crate) fn with_pause(start: HostAddr, page: PageSize, pause: impl Fn(Access) + Send + Sync + 'static) -> Self {
        let (refused, calls) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(State { start: start.0, page, refused, calls, pause: Box::new(pause) }))
    }

    fn indices(&self, start: usize, len_bytes: usize) -> Range<usize> {
        let State { start: first, page, .. } = &*self.0;
        (start - first) >> page.shift()..(start + len_bytes - first) >> page.shift()
    }

    /// The allowed access at `page`, counted from the first.
    pub(crate) fn access_of(&self, page: usize) -> Access {
        self.0.refused.lock().unwrap().get(&page).copied().unwrap_or(Access::ReadWrite)
    }

    /// Number of calls.
    pub(crate) fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }
}

impl Kernel for FakeKernel {
    fn set_access(&self, start: usize, len_bytes: usize, access: Access) -> Result<(), Errno> {
        step();
        (self.0.pause)(access);
        self.0.calls.fetch_add(1, SeqCst);
        let mut refused = self.0.refused.lock().unwrap();
        for page in self.indices(start, len_bytes) {
            match access {
                Access::ReadWrite => refused.remove(&page),
                _ => refused.insert(page, access),
            };
        }
        drop(refused);
        step();
        Ok(())
    }

    fn is_mapped(&self, _: HostAddr, _: PageSize) -> bool {
        true
    }
}
