//! The bare system calls of a program that overwrites all of its pages, front to back.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use codewarden::addr::PageSize;
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::Limits;
use codewarden::protection::Mode;

use super::calls::StopSignal;
use super::handler;
use super::tracked::{Ahead, Tracked};

/// Protected pages, and a handler that opens pages ahead of a stream of stores.
#[derive(Debug)]
pub(crate) struct BareBulk {
    tracked: Arc<Tracked>,
    memory: GuestMemory,
    batch_pages: usize,
    thread: Option<(StopSignal, JoinHandle<()>)>,
}

impl BareBulk {
    /// `pages` populated pages, protected in `mode`. A fault opens as many pages, and a call protects
    /// as many, as `limits` say.
    pub(crate) fn new(mode: Mode, pages: usize, limits: Limits) -> Self {
        let page = PageSize::host();
        let memory = GuestMemory::anonymous(pages * page.bytes()).expect("address space");
        (0..pages).for_each(|index| memory.write(index * page.bytes(), &[1]).expect("inside the memory"));
        let ahead = Some(Ahead::new(limits.open_ahead_pages));
        let tracked = Arc::new(Tracked { ahead, ..Tracked::new(mode, memory.range(), page) });
        let thread = (mode == Mode::Thread).then(|| handler::start_thread(tracked.clone()));
        let bulk = Self { tracked, memory, batch_pages: limits.protect_batch_pages, thread };
        bulk.protect();
        bulk
    }

    fn protect(&self) {
        let batch = self.batch_pages * self.tracked.page_bytes;
        for offset in (0..self.tracked.len).step_by(batch) {
            let len = batch.min(self.tracked.len - offset);
            assert!(self.tracked.calls.protect(self.tracked.start + offset, len), "{} protects", self.tracked.mode);
        }
    }

    /// Overwrites all pages. Then they are protected again.
    pub(crate) fn run(&self) -> Duration {
        let _handler = handler::install(&self.tracked);
        let bytes = vec![0x93; self.tracked.page_bytes];
        let start = Instant::now();
        for offset in (0..self.tracked.len).step_by(bytes.len()) {
            self.memory.write(offset, &bytes).expect("inside the memory");
        }
        if self.tracked.mode == Mode::Deferred {
            self.tracked.harvest(self.tracked.start, self.tracked.len);
        } else {
            self.protect();
        }
        start.elapsed()
    }
}

impl Drop for BareBulk {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            stop.send();
            thread.join().expect("the handler thread ends");
        }
    }
}
