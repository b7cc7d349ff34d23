//! The system calls of each mode, bare.
//!
//! # Safety
//!
//! The one ioctl works on the structure that its number encodes, a local of the
//! caller. The memory belongs to the [`super::Floor`] that holds the [`Calls`].
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use codewarden::protection::{Mode, open_uffd};
use linux_raw_sys::general as raw;
use userfaultfd::{Event, RegisterMode, Uffd};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<raw::pm_scan_arg>() as u32) << 16 | (b'f' as u32) << 8 | 16;

/// Written regions that one scan can report: the pages of a batch.
const SCAN_REGIONS: usize = 128;

/// How a range is tracked.
#[derive(Debug)]
pub(super) enum Calls {
    /// uffd-wp, its faults delivered.
    Uffd(Uffd),
    /// uffd-wp asynchronous, and `/proc/self/pagemap`.
    Async { _uffd: Uffd, pagemap: OwnedFd },
    /// mprotect.
    Mprotect,
    /// Nothing.
    None,
}

impl Calls {
    /// Starts to track `len` bytes from `start`.
    pub(super) fn open(mode: Mode, start: usize, len: usize) -> Self {
        match mode {
            Mode::Sigbus | Mode::Thread | Mode::Deferred => {}
            Mode::Mprotect => return Self::Mprotect,
            _ => return Self::None,
        }
        let uffd = open_uffd(mode).expect("a userfaultfd");
        uffd.register_with_mode(start as *mut _, len, RegisterMode::WRITE_PROTECT).expect("UFFDIO_REGISTER");
        if mode != Mode::Deferred {
            return Self::Uffd(uffd);
        }
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("/proc/self/pagemap").into();
        Self::Async { _uffd: uffd, pagemap }
    }

    /// Makes the pages read-only, or, in asynchronous mode, makes the kernel note writes.
    pub(super) fn protect(&self, start: usize, len: usize) -> bool {
        match self {
            Self::Uffd(uffd) => uffd.write_protect(start as *mut _, len).is_ok(),
            Self::Async { .. } => {
                self.harvest(start, len, |_, _| {});
                true
            }
            Self::Mprotect => mprotect(start, len, libc::PROT_READ),
            Self::None => true,
        }
    }

    /// Makes the pages writable. Async-signal-safe.
    pub(super) fn unprotect(&self, start: usize, len: usize) -> bool {
        match self {
            Self::Uffd(uffd) => uffd.remove_write_protection(start as *mut _, len, true).is_ok(),
            Self::Mprotect => mprotect(start, len, libc::PROT_READ | libc::PROT_WRITE),
            Self::Async { .. } | Self::None => true,
        }
    }

    /// Reports the written ranges and protects them again.
    pub(super) fn harvest(&self, start: usize, len: usize, mut written: impl FnMut(usize, usize)) {
        let Self::Async { pagemap, .. } = self else { return };
        let mut regions = [const { std::mem::MaybeUninit::<raw::page_region>::uninit() }; SCAN_REGIONS];
        let mut scan = raw::pm_scan_arg {
            size: size_of::<raw::pm_scan_arg>() as u64,
            flags: (raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC).into(),
            start: start as u64,
            end: (start + len) as u64,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: SCAN_REGIONS as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: raw::PAGE_IS_WRITTEN.into(),
            category_anyof_mask: 0,
            return_mask: raw::PAGE_IS_WRITTEN.into(),
        };
        let count = call(pagemap, PAGEMAP_SCAN, &mut scan);
        assert!(count >= 0 && scan.walk_end == scan.end, "PAGEMAP_SCAN");
        for region in &regions[..count as usize] {
            // SAFETY: the kernel wrote as many regions as it returned.
            let region = unsafe { region.assume_init_ref() };
            written(region.start as usize, region.end as usize);
        }
    }

    /// Waits for a fault message and gives its address, until `stop` is sent.
    pub(super) fn wait_for_fault(&self, stop: &StopSignal) -> Option<usize> {
        let Self::Uffd(uffd) = self else { return None };
        let poll = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        loop {
            let mut fds = [poll(uffd.as_raw_fd()), poll(stop.0.as_raw_fd())];
            // SAFETY: two elements, as the count says.
            let _ = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if fds[1].revents != 0 {
                return None;
            }
            if let Ok(Some(Event::Pagefault { addr, .. })) = uffd.read_event() {
                return Some(addr as usize);
            }
        }
    }
}

/// Tells a handler thread to end.
#[derive(Clone, Debug)]
pub(super) struct StopSignal(Arc<OwnedFd>);

impl StopSignal {
    pub(super) fn new() -> Self {
        // SAFETY: a new descriptor without another owner.
        Self(Arc::new(unsafe { OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_CLOEXEC))) }))
    }

    pub(super) fn send(&self) {
        let one = 1_u64;
        // SAFETY: writes eight bytes from the local.
        assert_eq!(unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) }, 8, "eventfd");
    }
}

fn mprotect(start: usize, len: usize, access: i32) -> bool {
    // SAFETY: the floor's own memory.
    unsafe { libc::mprotect(start as *mut libc::c_void, len, access) == 0 }
}

fn call<T>(fd: &OwnedFd, number: u32, argument: &mut T) -> i32 {
    // SAFETY: number and structure belong together in every caller of this file.
    unsafe { libc::ioctl(fd.as_raw_fd(), number.into(), &raw mut *argument) }
}

fn checked(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}
