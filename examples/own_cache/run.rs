//! The tracker alone, under a cache of one's own: a table of blocks behind one lock, from which
//! the observer unlinks the blocks that a store has made stale. Two threads: one runs the guest's code, the
//! other one patches it.
//!
//! The guest's code is one instruction a page, "the
//! result is N"; a block is the N that was read.
//!
//! # Safety
//!
//! The table is used under the lock alone. No thread stores to guest memory while it holds that.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use codewarden::addr::GuestAddr;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{AltStack, FaultLock, Handled, Mode, handle_fault};
use codewarden::tracker::{BeginError, PageObserver, PageWrite, RegionOptions, Tracker};

const PAGES: usize = 16;
/// The least rounds, and the least time. A fast machine rewrites its pages so often that the policy
/// soon interprets them. A slow one, emulated for instance, takes at least a fault in each round.
const ROUNDS: u32 = 500;
const TIME: Duration = Duration::from_millis(200);

/// The blocks by their pc, which is the start of a page here.
type Table = BTreeMap<u64, u32>;

/// The emulator's cache, and the one lock around it and around each call of the library.
struct Cache {
    lock: Mutex<()>,
    table: UnsafeCell<Table>,
}

// SAFETY: the table is used under the lock.
unsafe impl Sync for Cache {}

static CACHE: Cache = Cache { lock: Mutex::new(()), table: UnsafeCell::new(Table::new()) };

impl Cache {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a thread that holds the lock. `body` calls nothing of the library.
    fn with_table<R>(&self, body: impl FnOnce(&mut Table) -> R) -> R {
        // SAFETY: under the lock, once at a time.
        body(unsafe { &mut *self.table.get() })
    }
}

/// Unlinks the blocks of a page. Without self-checking pages that is all.
struct Invalidate;

// SAFETY: it runs under the lock, which guards the table. The thread that stored was running the
// guest: it holds no lock, and is in no allocation.
unsafe impl PageObserver for Invalidate {
    type Data = ();

    fn written(&self, (): &(), write: &PageWrite) {
        CACHE.with_table(|table| table.remove(&write.page.0));
    }

    fn fault_lock(&self) -> Option<Arc<dyn FaultLock>> {
        Some(Arc::new(Invalidate))
    }
}

/// The library's thread of mode thread takes the lock around each fault.
impl FaultLock for Invalidate {
    fn hold(&self, handle: &mut dyn FnMut()) {
        let _lock = CACHE.lock();
        handle();
    }
}

/// In the other modes the emulator's own handler does.
extern "C" fn on_fault(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let lock = CACHE.lock();
    // SAFETY: the kernel's arguments.
    let handled = unsafe { handle_fault(signo, info, context) };
    drop(lock);
    if handled == Handled::NotOurs {
        // SAFETY: the store faults again, and ends the process. An emulator hands it to its guest.
        unsafe { libc::signal(signo, libc::SIG_DFL) };
    }
}

struct Emulator {
    tracker: Tracker<()>,
    /// Dropped after the tracker.
    memory: GuestMemory,
    page: usize,
}

impl Emulator {
    fn new(mode: Mode) -> Result<Self, Error> {
        for signo in [libc::SIGBUS, libc::SIGSEGV] {
            // SAFETY: zeros are an action, and the handler keeps the rules of handlers.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signo, &action, std::ptr::null_mut());
            }
        }
        let tracker = Tracker::new(Arc::new(Invalidate));
        let page = tracker.page_size().bytes();
        let memory = GuestMemory::anonymous(PAGES * page)?;
        let region = RegionOptions::new(GuestAddr(0), memory.range(), mode).with_embedder_signals(true);
        // SAFETY: the memory is dropped after the tracker.
        unsafe { tracker.add_region(region)? };
        Ok(Self { tracker, memory, page })
    }

    /// Under the lock, which every fault takes: no write comes between the claim and the table.
    fn translate(&self, pc: u64) -> Result<u32, BeginError> {
        let claim = self.tracker.begin(GuestAddr(pc))?;
        let mut bytes = [0; 4];
        self.tracker.read(&claim, GuestAddr(pc), &mut bytes)?; // once, and only after the claim
        claim.add_code(0..bytes.len());
        let block = u32::from_le_bytes(bytes); // stands for code
        CACHE.with_table(|table| table.insert(pc, block));
        Ok(block)
    }

    /// The guest's instruction at the start of a page.
    fn run(&self, page: usize) -> Result<u32, Error> {
        let pc = (page * self.page) as u64;
        let _lock = CACHE.lock();
        if let Some(block) = CACHE.with_table(|table| table.get(&pc).copied()) {
            return Ok(block);
        }
        match self.translate(pc) {
            Err(BeginError::Failed(error)) => Err(error),
            Err(_) => {
                let mut bytes = [0; 4]; // busy: interpret, or translate for one run
                self.memory.read(page * self.page, &mut bytes).map(|()| u32::from_le_bytes(bytes))
            }
            Ok(block) => Ok(block),
        }
    }

    /// A guest store, and the guest's fence.
    fn patch(&self, page: usize, value: u32) -> Result<(), Error> {
        self.memory.write(page * self.page, &value.to_le_bytes())?;
        let _lock = CACHE.lock();
        self.tracker.sync() // needed by deferred regions alone
    }
}

/// How often a thread ran stale code.
pub(crate) fn stale_runs(mode: Mode) -> Result<u32, Error> {
    let emulator = &Emulator::new(mode)?;
    let least = &[const { AtomicU32::new(0) }; PAGES];
    let is_over = &AtomicBool::new(false);
    let stale = std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            // The observer's own code runs in the handler too. Std's stack for that has no room for it.
            let _stack = AltStack::for_this_thread()?;
            let started = Instant::now();
            let (mut stale, mut round) = (0, 0);
            while round < ROUNDS || started.elapsed() < TIME {
                round += 1;
                let page = round as usize % PAGES;
                emulator.patch(page, round)?;
                least[page].store(round, SeqCst);
                stale += u32::from(emulator.run(page)? != round);
            }
            is_over.store(true, SeqCst);
            Ok(stale)
        });
        let (mut stale, mut runs) = (0, 0);
        while !is_over.load(SeqCst) && !writer.is_finished() {
            let expected = least[runs % PAGES].load(SeqCst);
            stale += u32::from(emulator.run(runs % PAGES)? < expected);
            runs += 1;
        }
        let own: Result<u32, Error> = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(stale + own?)
    });
    CACHE.with_table(Table::clear);
    stale
}
