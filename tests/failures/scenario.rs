//! A failure in a process of its own, and the conditions that must hold after it.
//!
//! # Safety
//!
//! Sets a timer. An observer makes a fault wait.
#![allow(unsafe_code)]

use core::ffi::c_int;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use codewarden::addr::GuestAddr;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Facility, Mode, Probe};
use codewarden::tracker::{BeginError, PageObserver, PageWrite};

use crate::alone::{run_alone, task};
use crate::limit::limit_s;
use crate::support::{Fixture, GUEST, PAGES, page_bytes, skip};

/// The modes that protect by a userfaultfd.
pub(crate) const UFFD: [Mode; 3] = [Mode::Sigbus, Mode::Thread, Mode::Deferred];
/// The modes that report a store before it retires.
pub(crate) const SYNCHRONOUS: [Mode; 3] = [Mode::Sigbus, Mode::Thread, Mode::Mprotect];
/// The modes without a userfaultfd.
pub(crate) const OTHERS: [Mode; 2] = [Mode::Mprotect, Mode::None];
/// All that track.
pub(crate) const TRACKING: [Mode; 4] = [Mode::Sigbus, Mode::Thread, Mode::Deferred, Mode::Mprotect];

/// A scenario that takes longer hangs.
const LIMIT_S: u32 = 30;

/// Whether a region of `mode` populates its pages before it protects them.
pub(crate) fn populates(mode: Mode) -> bool {
    matches!(mode, Mode::Sigbus | Mode::Thread) && !Probe::of_this_process().has(Facility::WpUnpopulated)
}

/// How the process must end.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// The scenario comes to its end.
    Well,
    /// The kernel ends it by a signal: defined, if not pleasant.
    Signal(c_int),
}

/// Runs `scenario` in a process of its own for each mode of `modes` that is available
/// here. `name` is the path of the test that calls this.
pub(crate) fn scenario(name: &str, modes: &[Mode], end: End, scenario: impl Fn(Mode)) {
    if let Some(mode) = task() {
        // SAFETY: sets a timer.
        unsafe { libc::alarm(limit_s(LIMIT_S)) };
        scenario(Mode::from_name(&mode).expect("a mode"));
        std::process::exit(0);
    }
    let probe = Probe::of_this_process();
    for mode in modes {
        if let Err(error) = probe.check(*mode) {
            skip(&error);
            continue;
        }
        println!("{mode}");
        // No heaps of single threads: their addresses would escape the limit.
        expect_end(name, mode.name(), &[("MALLOC_ARENA_MAX", "1")], end);
    }
}

/// Runs the test `name` alone for `task` and checks its end.
pub(crate) fn expect_end(name: &str, task: &str, variables: &[(&str, &str)], end: End) {
    let output = run_alone(name, task, variables);
    let as_meant = match end {
        End::Well => output.status.code() == Some(0),
        End::Signal(signo) => output.status.signal() == Some(signo),
    };
    let (said, shown) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(as_meant, "{name}, {task}: {}\n{shown}{said}", output.status);
    shown.lines().filter(|line| line.contains("skipped: ")).for_each(|line| println!("{task}: {line}"));
    // A run without a test also succeeds.
    assert!(shown.contains("running 1 test"), "{name} is not the name of one test");
}

/// The address, and key, of a block of one byte in the middle of a page.
pub(crate) fn byte_of(page: usize) -> u64 {
    GUEST + (page * page_bytes() + 100) as u64
}

pub(crate) fn fixture(mode: Mode) -> Fixture {
    Fixture::new(mode, GuestMemory::anonymous(PAGES * page_bytes()).unwrap())
}

impl Fixture {
    /// Translates the byte of `page`; the error if it cannot.
    pub(crate) fn begin_error(&self, page: usize) -> Option<Error> {
        loop {
            match self.cache.tracker().begin(GuestAddr(byte_of(page))) {
                Ok(_) => return None,
                Err(BeginError::Failed(error)) => return Some(error),
                Err(BeginError::Untrackable) => panic!("page {page} is not attached"),
                Err(BeginError::Busy(_)) => std::thread::yield_now(),
            }
        }
    }

    /// Whether the page is in a region and not attached.
    pub(crate) fn is_untrackable(&self, page: usize) -> bool {
        self.cache.tracker().begin(GuestAddr(byte_of(page))).err() == Some(BeginError::Untrackable)
    }

    /// A block on `page` that can be reached.
    pub(crate) fn block(&self, page: usize) {
        let entry = self.translate(byte_of(page), &[byte_of(page)]).unwrap();
        assert_eq!(self.lookup(byte_of(page)), Some(entry));
    }

    /// A store to the block's byte retires and changes it.
    pub(crate) fn store_to(&self, page: usize) {
        let value = self.read(byte_of(page)).wrapping_add(1);
        self.store(byte_of(page), value);
        assert_eq!(self.read(byte_of(page)), value);
    }

    /// Checks that the block of `page` is not reached after its write. In deferred mode the write
    /// is announced first, and a failed announcement is as good. Mode `none` promises nothing.
    pub(crate) fn expect_dead(&self, page: usize) {
        if self.mode == Mode::None {
            return;
        }
        if self.mode == Mode::Deferred {
            let _ = self.cache.tracker().sync();
        }
        assert_eq!(self.lookup(byte_of(page)), None, "{}: the block of page {page} is stale", self.mode);
    }

    /// A whole life of a block: made, written, gone.
    pub(crate) fn expect_tracked(&self, page: usize) {
        self.block(page);
        self.store_to(page);
        self.expect_dead(page);
    }

    /// After any failure: a page is tracked as ever, or nothing can be translated from it and the
    /// error says that the tracking is lost.
    pub(crate) fn expect_tracked_or_lost(&self, page: usize) {
        match self.begin_error(page) {
            None => self.expect_tracked(page),
            Some(error) => assert_eq!(error, Error::TrackingLost),
        }
    }

    /// Nothing can be translated any more, and the error says that the tracking is lost.
    pub(crate) fn expect_lost(&self) {
        assert_eq!(self.begin_error(PAGES - 1), Some(Error::TrackingLost), "{}", self.mode);
    }
}

/// Holds the first fault of page 1 until it is let go.
#[derive(Default)]
pub(crate) struct Gate {
    inside: AtomicBool,
    open: AtomicBool,
}

// SAFETY: atomics and a spin that the test ends.
unsafe impl PageObserver for Gate {
    type Data = ();

    fn written(&self, (): &(), write: &PageWrite) {
        if write.page == GuestAddr(GUEST + page_bytes() as u64) && !self.inside.swap(true, SeqCst) {
            while !self.open.load(SeqCst) {
                core::hint::spin_loop();
            }
        }
    }
}

impl Gate {
    pub(crate) fn await_fault(&self) {
        while !self.inside.load(SeqCst) {
            std::thread::yield_now();
        }
    }

    pub(crate) fn let_go(&self) {
        self.open.store(true, SeqCst);
    }
}
