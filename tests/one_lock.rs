//! One lock of the embedder's around every call of a tracker and around `handle_fault`: the
//! observer runs under it, in every mode, and nothing waits for ever.
//!
//! # Safety
//!
//! Regions outlive their tracker. The table of blocks is used under the lock alone, and no thread
//! stores to tracked memory while it has the lock.
#![allow(unsafe_code)]

#[path = "support/alarm.rs"]
mod alarm;
#[path = "support/limit.rs"]
mod limit;
#[path = "support/modes.rs"]
mod modes;

use core::ffi::{c_int, c_void};
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Access, AltStack, Facility, FaultLock, Handled, Mode, Probe, handle_fault};
use codewarden::tracker::{BeginError, Cause, PageObserver, PageWrite, RegionOptions, Tracker};

use alarm::Alarm;
use modes::{skip, tracking_modes};

const PAGES: u64 = 8;

/// The embedder's lock, with the data that it guards.
struct BigLock {
    owner: AtomicI32,
    /// Threads that want the lock or have it.
    inside: AtomicUsize,
    /// For each page with a block, the byte from which the block was made.
    blocks: UnsafeCell<BTreeMap<u64, u8>>,
    /// Stores that the observer was told of.
    stores: AtomicUsize,
}

// SAFETY: the blocks are used by the owner alone.
unsafe impl Sync for BigLock {}

static LOCK: BigLock = BigLock {
    owner: AtomicI32::new(0),
    inside: AtomicUsize::new(0),
    blocks: UnsafeCell::new(BTreeMap::new()),
    stores: AtomicUsize::new(0),
};

fn this_thread() -> i32 {
    // SAFETY: asks for a number.
    unsafe { libc::gettid() }
}

/// Runs `body` under the lock. Calls of the tracker in it may tell of blocks.
fn locked<R>(body: impl FnOnce() -> R) -> R {
    LOCK.inside.fetch_add(1, SeqCst);
    while LOCK.owner.compare_exchange(0, this_thread(), SeqCst, SeqCst).is_err() {
        std::thread::yield_now();
    }
    let result = body();
    LOCK.owner.store(0, SeqCst);
    LOCK.inside.fetch_sub(1, SeqCst);
    result
}

/// `body` has the lock and calls no tracker.
fn with_blocks<R>(body: impl FnOnce(&mut BTreeMap<u64, u8>) -> R) -> R {
    assert_eq!(LOCK.owner.load(SeqCst), this_thread(), "without the lock");
    // SAFETY: under the lock, and not twice at once.
    body(unsafe { &mut *LOCK.blocks.get() })
}

struct Thread;

impl FaultLock for Thread {
    fn hold(&self, handle: &mut dyn FnMut()) {
        locked(handle);
    }
}

struct Observer;

// SAFETY: it runs under the lock, which guards the table; the thread that stored has no lock and
// is in no allocation.
unsafe impl PageObserver for Observer {
    type Data = ();

    fn written(&self, (): &(), write: &PageWrite) {
        if LOCK.owner.load(SeqCst) != this_thread() {
            eprintln!("told without the lock: {write:?}");
            std::process::abort();
        }
        with_blocks(|blocks| blocks.remove(&write.page.0));
        let is_store = matches!(write.cause, Cause::Store { .. } | Cause::Harvest);
        LOCK.stores.fetch_add(usize::from(is_store), SeqCst);
    }

    fn fault_lock(&self) -> Option<Arc<dyn FaultLock>> {
        Some(Arc::new(Thread))
    }
}

extern "C" fn on_fault(signo: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the arguments are the kernel's.
    if locked(|| unsafe { handle_fault(signo, info, context) }) == Handled::NotOurs {
        // SAFETY: the store faults again and ends the process.
        unsafe { libc::signal(signo, libc::SIG_DFL) };
    }
}

/// The table and the handlers are the process's: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    static HANDLERS: Once = Once::new();
    HANDLERS.call_once(|| {
        for signo in [libc::SIGBUS, libc::SIGSEGV] {
            // SAFETY: an action of zeros is one, and the handler is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = on_fault as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(signo, &action, core::ptr::null_mut()), 0);
            }
        }
    });
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Guest {
    tracker: Tracker<()>,
    memory: GuestMemory,
    mode: Mode,
    page: u64,
}

impl Guest {
    fn new(mode: Mode) -> Self {
        let page = PageSize::host().bytes() as u64;
        let memory = GuestMemory::anonymous((PAGES * page) as usize).unwrap();
        let guest = Self { tracker: Tracker::new(Arc::new(Observer)), memory, mode, page };
        guest.add();
        guest
    }

    fn add(&self) {
        let options = RegionOptions::new(GuestAddr(0), self.memory.range(), self.mode).with_embedder_signals(true);
        // SAFETY: the memory is dropped after the tracker.
        locked(|| unsafe { self.tracker.add_region(options) }).unwrap();
    }

    fn byte(&self, page: u64) -> u8 {
        let mut byte = [0];
        self.memory.read((page * self.page) as usize, &mut byte).unwrap();
        byte[0]
    }

    fn store(&self, page: u64, value: u8) {
        self.memory.write((page * self.page) as usize, &[value]).unwrap();
    }

    /// Under the lock, claim, read and enter is all: no write comes between.
    fn translate(&self, page: u64) -> Result<(), BeginError> {
        let guest = GuestAddr(page * self.page);
        let claim = self.tracker.begin(guest)?;
        let byte = self.byte(page);
        assert!(claim.is_current(), "a write came although the lock is held");
        with_blocks(|blocks| blocks.insert(guest.0, byte));
        Ok(())
    }
}

/// E6: every call, by one thread, while another stores and looks for stale blocks.
#[test]
fn every_call_may_be_made_under_it() {
    let _alone = alone();
    for mode in tracking_modes() {
        let _alarm = Alarm::while_waiting_for("a thread with the lock, or without it");
        let guest = &Guest::new(mode);
        LOCK.stores.store(0, SeqCst);
        let over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // The observer runs in the handler.
                let _stack = AltStack::for_this_thread().unwrap();
                let mut stored = 0_u64;
                while !over.load(SeqCst) {
                    stored += 1;
                    let page = stored % PAGES;
                    guest.store(page, stored as u8);
                    locked(|| {
                        if mode == Mode::Deferred {
                            // An error while the region is removed.
                            let _ = guest.tracker.sync_range(GuestAddr(page * guest.page), 1);
                        }
                        let block = with_blocks(|blocks| blocks.get(&(page * guest.page)).copied());
                        assert!(block.is_none_or(|made_from| made_from == stored as u8), "{mode}: a stale block");
                    });
                }
            });
            let whole = PAGES * guest.page;
            for round in 0..400_u64 {
                let page = round % PAGES;
                let start = GuestAddr(page * guest.page);
                let translated = locked(|| guest.translate(page));
                assert!(matches!(translated, Ok(()) | Err(BeginError::Busy(_))), "{mode}: {translated:?}");
                locked(|| guest.tracker.sync()).unwrap();
                match round % 16 {
                    1 => locked(|| guest.tracker.sync_range(start, 1)).unwrap(),
                    3 => locked(|| guest.tracker.invalidate(start, 1)).unwrap(),
                    5 => drop(locked(|| guest.tracker.prepare_kernel_write(start, 1)).unwrap()),
                    7 => locked(|| drop(guest.tracker.prepare_unseen_write(start, 1).unwrap())),
                    9 => locked(|| drop(guest.tracker.change_mapping(start, 1).unwrap())),
                    11 => locked(|| guest.tracker.set_access(start, 1, Access::ReadWrite)).unwrap(),
                    13 => locked(|| guest.tracker.maintain()),
                    15 => {
                        locked(|| {
                            guest.tracker.remove_region(GuestAddr(0)).unwrap();
                            with_blocks(|blocks| assert!(blocks.is_empty(), "not told of the end: {blocks:?}"));
                        });
                        guest.add();
                    }
                    _ => {}
                }
                let _ = locked(|| (guest.tracker.stats(), guest.tracker.hottest_pages(4)));
                if round % 64 == 0 {
                    locked(|| drop(guest.tracker.before_fork()));
                }
            }
            // Until a store was seen: the other thread may have had no processor yet.
            while LOCK.stores.load(SeqCst) == 0 {
                for page in 0..PAGES {
                    let _ = locked(|| guest.translate(page));
                }
                locked(|| guest.tracker.sync_range(GuestAddr(0), whole)).unwrap();
            }
            over.store(true, SeqCst);
        });
        locked(|| guest.tracker.remove_region(GuestAddr(0))).unwrap();
        locked(|| with_blocks(BTreeMap::clear));
    }
}

/// E6: a thread has the lock while a store of another one waits for it: the call that ends the
/// region, and the end of the tracker with its handler thread, wait for neither.
#[test]
fn a_fault_waits_for_it_while_its_region_is_removed() {
    let _alone = alone();
    for mode in tracking_modes().into_iter().filter(|mode| mode.is_synchronous()) {
        for drops in [false, true] {
            let _alarm = Alarm::while_waiting_for("a fault that waits for the lock");
            let Guest { tracker, memory, .. } = Guest::new(mode);
            let memory = &memory;
            std::thread::scope(|scope| {
                locked(|| {
                    let claim = tracker.begin(GuestAddr(0)).unwrap();
                    let others = LOCK.inside.load(SeqCst);
                    scope.spawn(move || {
                        let _stack = AltStack::for_this_thread().unwrap();
                        memory.write(0, &[7]).unwrap();
                    });
                    while LOCK.inside.load(SeqCst) == others {
                        std::thread::yield_now();
                    }
                    // It tells, and the fault still waits.
                    tracker.invalidate(GuestAddr(0), 1).unwrap();
                    assert!(!claim.is_current());
                    drop(claim);
                    if drops {
                        drop(tracker);
                    } else {
                        tracker.remove_region(GuestAddr(0)).unwrap();
                    }
                });
            });
            let mut byte = [0];
            memory.read(0, &mut byte).unwrap();
            assert_eq!(byte, [7], "{mode}");
            while LOCK.inside.load(SeqCst) != 0 {
                std::thread::yield_now(); // the handler thread is on its way out
            }
        }
    }
}

/// A thread announces a write and makes it under the lock, itself and by a system call.
#[test]
fn an_announced_write_does_not_wait_for_it() {
    let _alone = alone();
    for mode in tracking_modes() {
        if mode == Mode::Thread
            && let Some(why) = Probe::of_this_process().why_missing(Facility::KernelFaults)
        {
            // Then an announcement opens the pages for the kernel's sake.
            skip(&why);
        }
        let _alarm = Alarm::while_waiting_for("a store under the lock, which was announced");
        let _stack = AltStack::for_this_thread().unwrap();
        let guest = &Guest::new(mode);
        for page in 0..PAGES {
            let host = guest.memory.range().start().as_ptr().wrapping_add((page * guest.page) as usize);
            locked(|| {
                guest.translate(page).unwrap();
                let held = guest.tracker.prepare_kernel_write(GuestAddr(page * guest.page), 1).unwrap();
                if page % 2 == 0 {
                    guest.store(page, 7);
                } else {
                    let zeros = std::fs::File::open("/dev/zero").unwrap();
                    // SAFETY: one byte of the guest's memory.
                    let read = unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&zeros), host.cast(), 1) };
                    assert_eq!(read, 1, "{mode}: {}", std::io::Error::last_os_error());
                }
                drop(held);
                guest.tracker.sync().unwrap();
                with_blocks(|blocks| assert!(!blocks.contains_key(&(page * guest.page)), "{mode}: a stale block"));
            });
        }
        locked(|| guest.tracker.remove_region(GuestAddr(0))).unwrap();
    }
}
