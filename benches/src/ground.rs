//! The memory that is written to, and the threads that run meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use codewarden::VCpu;
use codewarden::addr::PageSize;
use codewarden::guest_memory::GuestMemory;

/// Pages of one batch.
pub const PAGES: usize = 64;

/// The memory behind the guest's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Memory {
    /// Private anonymous memory, populated.
    Anonymous,
    /// A shared mapping of a memfd, populated.
    Memfd,
}

/// The layout of a batch's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Every second page: for mprotect, each is a VMA of its own.
    Alternate,
    /// One after the other: for mprotect, a VMA that grows.
    Neighbouring,
}

/// The threads that run in addition to the measured one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Company {
    /// The process has one running thread.
    Alone,
    /// A second thread spins on another CPU, so that each change of a mapping
    /// pays a TLB shootdown.
    Spinning,
    /// The second thread has a vCPU pinned, as if it ran translated code. `explicit_fetch`: of a
    /// guest that fetches its code explicitly.
    Pinned {
        /// [`RegionOptions::explicit_fetch`](codewarden::tracker::RegionOptions::explicit_fetch).
        explicit_fetch: bool,
    },
    /// Two threads store at once, each to its half of the pages.
    TwoStoring,
}

/// The setting of a batch: memory, layout and company.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setting {
    /// The kind of memory.
    pub memory: Memory,
    /// The layout of the pages.
    pub layout: Layout,
    /// The other threads.
    pub company: Company,
}

impl Setting {
    /// Alternate anonymous pages, one thread: the setting of the headline figures.
    pub const PLAIN: Setting =
        Setting { memory: Memory::Anonymous, layout: Layout::Alternate, company: Company::Alone };
}

/// A batch's pages.
#[derive(Debug)]
pub struct Ground {
    memory: GuestMemory,
    page: PageSize,
    stride: usize,
    company: Company,
    /// Counts the stores to each page, so that no two in a row hit one byte. A byte that
    /// faults again and again makes its page hot in the library.
    round: usize,
}

impl Ground {
    /// Maps and populates the pages.
    pub fn new(setting: Setting) -> Self {
        let page = PageSize::host();
        let stride = match setting.layout {
            Layout::Alternate => 2,
            Layout::Neighbouring => 1,
        };
        let len = PAGES * stride * page.bytes();
        let memory = match setting.memory {
            Memory::Anonymous => GuestMemory::anonymous(len),
            Memory::Memfd => GuestMemory::memfd(len),
        }
        .expect("address space for a batch");
        for offset in (0..len).step_by(page.bytes()) {
            memory.write(offset, &[1]).expect("inside the memory");
        }
        Self { memory, page, stride, company: setting.company, round: 0 }
    }

    /// The memory itself.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The offset of page `index` of the batch in the memory.
    pub fn offset(&self, index: usize) -> usize {
        index * self.stride * self.page.bytes()
    }

    /// The page of the batch that begins at `offset`.
    pub fn index_of(&self, offset: usize) -> usize {
        offset / (self.stride * self.page.bytes())
    }

    /// The next stores go to other bytes.
    pub fn next_round(&mut self) {
        self.round += 1;
    }

    /// One store to page `index`.
    pub fn store(&self, index: usize) {
        let byte = self.round * 8 % self.page.bytes();
        self.memory.write(self.offset(index) + byte, &[self.round as u8]).expect("inside the memory");
    }

    /// One store to each page, by this thread; untimed.
    pub fn store_all(&self) {
        (0..PAGES).for_each(|index| self.store(index));
    }

    /// The time for one store to each page. If two threads store, it is the time that one
    /// of them would take for all pages at its pace.
    pub fn time_stores(&self) -> Duration {
        if self.company != Company::TwoStoring {
            let start = Instant::now();
            self.store_all();
            return start.elapsed();
        }
        let ready = AtomicUsize::new(0);
        let half = |pages: std::ops::Range<usize>| {
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 {
                std::hint::spin_loop();
            }
            let start = Instant::now();
            pages.for_each(|index| self.store(index));
            start.elapsed()
        };
        let slower = std::thread::scope(|scope| {
            let other = scope.spawn(|| half(PAGES / 2..PAGES));
            let own = half(0..PAGES / 2);
            own.max(other.join().expect("a storing thread ends"))
        });
        slower * 2
    }

    /// Runs `body` in that company. The second thread pins `vcpu`, if there is one.
    pub fn in_company<R>(company: Company, mut vcpu: Option<VCpu<()>>, body: impl FnOnce() -> R) -> R {
        if matches!(company, Company::Alone | Company::TwoStoring) {
            return body();
        }
        let (running, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _pin = vcpu.as_mut().map(VCpu::pin);
                running.store(true, Ordering::SeqCst);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            while !running.load(Ordering::SeqCst) {
                std::hint::spin_loop();
            }
            let _stop = StopOnDrop(&stop);
            body()
        })
    }
}

/// Ends the spinning even if a check fails: else the panic would wait for it.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
