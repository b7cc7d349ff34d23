//! The floor: the bare system calls of each mode and the smallest handler that can work, on
//! the same pages as the library.
//!
//! It knows one block for each page. The blocks are a separate array of words, and one store to a
//! block's word kills it. The floor has no states, no generations and no lists. It counts nothing
//! and could not serve two translators.

mod bulk;
mod calls;
mod handler;
mod tracked;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use codewarden::addr::{HostRange, PageSize};
use codewarden::protection::Mode;

use crate::ground::{Ground, PAGES, Setting};
use crate::side::{Case, Side};
use calls::{Calls, StopSignal};
use tracked::Tracked;

pub(crate) use bulk::BareBulk;

/// Bare protection, for runs that take no fault.
#[derive(Debug)]
pub(crate) struct BareProtection(Calls);

impl BareProtection {
    /// Opens the kernel's tracking of `mode` on `range`.
    pub(crate) fn new(mode: Mode, range: HostRange) -> Self {
        Self(Calls::open(mode, range.start().0, range.len()))
    }

    /// Protects `range`, or returns the errno.
    pub(crate) fn protect(&self, range: HostRange) -> Result<(), i32> {
        if self.0.protect(range.start().0, range.len()) {
            return Ok(());
        }
        Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    /// Reports the parts of `range` that were written and protects them again, in
    /// one call: few parts.
    pub(crate) fn harvest(&self, range: HostRange, written: impl FnMut(usize, usize)) {
        self.0.harvest(range.start().0, range.len(), written);
    }
}

/// Bare protection with the floor's handler, for threads that fault at once.
#[derive(Debug)]
pub(crate) struct BareFaults(Arc<Tracked>);

impl BareFaults {
    /// Opens the kernel's tracking of `mode` on `range`.
    pub(crate) fn new(mode: Mode, range: HostRange, page: PageSize) -> Self {
        Self(Arc::new(Tracked::new(mode, range, page)))
    }

    /// Handles the faults until the result is dropped. One floor at a time.
    pub(crate) fn handle(&self) -> impl Sized + use<> {
        handler::install(&self.0)
    }

    /// Protects the page at `offset`, and makes its block reachable.
    pub(crate) fn commit(&self, offset: usize) {
        assert!(self.0.calls.protect(self.0.start + offset, self.0.page_bytes), "{} protects", self.0.mode);
        self.entry(offset).store(1, Ordering::SeqCst);
    }

    /// Whether the block of the page at `offset` is dead.
    pub(crate) fn is_dead(&self, offset: usize) -> bool {
        self.entry(offset).load(Ordering::SeqCst) == 0
    }

    fn entry(&self, offset: usize) -> &AtomicUsize {
        &self.0.entries[offset / self.0.page_bytes]
    }
}

/// The floor's side: see the module.
#[derive(Debug)]
pub struct Floor {
    tracked: Arc<Tracked>,
    page: PageSize,
    ground: Ground,
    thread: Option<(StopSignal, JoinHandle<()>)>,
}

impl Floor {
    /// Opens the kernel's tracking of `mode` on fresh memory.
    pub fn new(mode: Mode, setting: Setting) -> Self {
        let ground = Ground::new(setting);
        let (page, range) = (PageSize::host(), ground.memory().range());
        let tracked = Arc::new(Tracked::new(mode, range, page));
        let thread = (mode == Mode::Thread).then(|| handler::start_thread(tracked.clone()));
        Self { tracked, page, ground, thread }
    }

    fn host(&self, index: usize) -> usize {
        self.tracked.start + self.ground.offset(index)
    }

    fn entry(&self, index: usize) -> &AtomicUsize {
        &self.tracked.entries[self.ground.offset(index) / self.page.bytes()]
    }

    fn protect(&self, index: usize) {
        assert!(self.tracked.calls.protect(self.host(index), self.page.bytes()), "{} protects", self.tracked.mode);
    }

    fn commit(&self, index: usize) {
        self.protect(index);
        self.entry(index).store(1, Ordering::SeqCst);
    }

    fn commit_all(&self) {
        (0..PAGES).for_each(|index| self.commit(index));
    }

    fn announce(&self) {
        if self.tracked.mode == Mode::Deferred {
            self.tracked.harvest(self.tracked.start, self.tracked.len);
        }
    }

    fn dead(&self) -> usize {
        (0..PAGES).filter(|&index| self.entry(index).load(Ordering::SeqCst) == 0).count()
    }

    /// Writes to every page, which opens it, and to its neighbours.
    fn open_all(&mut self) {
        for offset in (0..self.tracked.len).step_by(self.page.bytes()) {
            self.ground.memory().write(offset, &[2]).expect("inside the memory");
        }
        self.ground.next_round();
    }

    fn check_dead(&self) {
        assert_eq!(self.dead(), if self.tracked.mode == Mode::None { 0 } else { PAGES }, "{}", self.tracked.mode);
    }

    fn run_commit(&mut self, commit: impl Fn(&Self, usize)) -> Duration {
        self.open_all();
        let start = Instant::now();
        for index in 0..PAGES {
            commit(self, index);
        }
        let time = start.elapsed();
        for index in 0..PAGES {
            self.entry(index).store(1, Ordering::SeqCst);
        }
        self.ground.store_all();
        self.announce();
        self.check_dead();
        time
    }

    fn run_fault(&mut self) -> Duration {
        self.open_all();
        self.commit_all();
        let time = self.ground.time_stores();
        self.announce();
        self.check_dead();
        time
    }

    fn run_cycle(&mut self) -> Duration {
        let deferred = self.tracked.mode == Mode::Deferred;
        let mut dead = 0;
        let start = Instant::now();
        for index in 0..PAGES {
            if deferred {
                // The previous harvest has protected it.
                self.entry(index).store(1, Ordering::SeqCst);
            } else {
                self.commit(index);
            }
            self.ground.store(index);
            if deferred {
                self.tracked.harvest(self.host(index), self.page.bytes());
            }
            dead += usize::from(self.entry(index).load(Ordering::SeqCst) == 0);
        }
        let time = start.elapsed();
        assert_eq!(dead, if self.tracked.mode == Mode::None { 0 } else { PAGES }, "{}", self.tracked.mode);
        time
    }

    fn run_sync(&mut self) -> Duration {
        self.open_all();
        self.commit_all();
        self.ground.store_all();
        let start = Instant::now();
        self.announce();
        let time = start.elapsed();
        self.check_dead();
        time
    }
}

impl Side for Floor {
    fn run(&mut self, case: Case) -> Duration {
        self.ground.next_round();
        let _handler = handler::install(&self.tracked);
        match case {
            Case::Protect => self.run_commit(Self::protect),
            Case::Commit => self.run_commit(Self::commit),
            Case::Fault => self.run_fault(),
            Case::Cycle => self.run_cycle(),
            Case::Sync => self.run_sync(),
        }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            stop.send();
            thread.join().expect("the handler thread ends");
        }
    }
}
