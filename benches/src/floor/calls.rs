//! The system calls of each mode, bare.
//!
//! # Safety
//!
//! Each ioctl works on the structure that its number encodes, a local of the
//! caller. The memory belongs to the [`super::Floor`] that holds the [`Calls`].
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use codewarden::protection::Mode;
use linux_raw_sys::general as raw;
use linux_raw_sys::ioctl;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u32 = 3 << 30 | (size_of::<raw::pm_scan_arg>() as u32) << 16 | (b'f' as u32) << 8 | 16;

/// `UFFDIO_WRITEPROTECT_MODE_WP`, which linux-raw-sys leaves out.
const WRITEPROTECT_MODE_WP: u64 = 1;

/// Written regions that one scan can report: the pages of a batch.
const SCAN_REGIONS: usize = 128;

/// How a range is tracked.
#[derive(Debug)]
pub(super) enum Calls {
    /// uffd-wp, its faults delivered.
    Uffd(OwnedFd),
    /// uffd-wp asynchronous, and `/proc/self/pagemap`.
    Async { _uffd: OwnedFd, pagemap: OwnedFd },
    /// mprotect.
    Mprotect,
    /// Nothing.
    None,
}

impl Calls {
    /// Starts to track `len` bytes from `start`.
    pub(super) fn open(mode: Mode, start: usize, len: usize) -> Self {
        let extra = match mode {
            Mode::Sigbus => raw::UFFD_FEATURE_SIGBUS,
            Mode::Thread => raw::UFFD_FEATURE_THREAD_ID | raw::UFFD_FEATURE_EXACT_ADDRESS,
            Mode::Deferred => raw::UFFD_FEATURE_WP_ASYNC,
            Mode::Mprotect => return Self::Mprotect,
            _ => return Self::None,
        };
        let fd = open_uffd(mode == Mode::Thread, extra);
        let mut register = raw::uffdio_register {
            range: raw::uffdio_range { start: start as u64, len: len as u64 },
            mode: raw::UFFDIO_REGISTER_MODE_WP.into(),
            ioctls: 0,
        };
        assert_eq!(call(&fd, ioctl::UFFDIO_REGISTER, &mut register), 0, "UFFDIO_REGISTER");
        if mode != Mode::Deferred {
            return Self::Uffd(fd);
        }
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("/proc/self/pagemap").into();
        Self::Async { _uffd: fd, pagemap }
    }

    /// Makes the pages read-only, or, asynchronous, such that a write shows.
    pub(super) fn protect(&self, start: usize, len: usize) -> bool {
        match self {
            Self::Uffd(fd) => write_protect(fd, start, len, WRITEPROTECT_MODE_WP),
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
            Self::Uffd(fd) => write_protect(fd, start, len, 0),
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
            // SAFETY: the kernel wrote as many regions as it says.
            let region = unsafe { region.assume_init_ref() };
            written(region.start as usize, region.end as usize);
        }
    }

    /// Waits for a fault message and gives its address, until `stop` is sent.
    pub(super) fn wait_for_fault(&self, stop: &StopSignal) -> Option<usize> {
        let Self::Uffd(fd) = self else { return None };
        let poll = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        loop {
            let mut fds = [poll(fd), poll(&stop.0)];
            // SAFETY: two elements, as it is told.
            let _ = unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) };
            if fds[1].revents != 0 {
                return None;
            }
            let mut message = std::mem::MaybeUninit::<raw::uffd_msg>::uninit();
            let len = size_of::<raw::uffd_msg>();
            // SAFETY: reads at most one message into the local.
            let read = unsafe { libc::read(fd.as_raw_fd(), message.as_mut_ptr().cast(), len) };
            if read == len as isize {
                // SAFETY: a whole message was read, and no other event than a page fault was asked for.
                return Some(unsafe { message.assume_init().arg.pagefault.address } as usize);
            }
        }
    }
}

/// Tells a handler thread to end.
#[derive(Clone, Debug)]
pub(super) struct StopSignal(Arc<OwnedFd>);

impl StopSignal {
    pub(super) fn new() -> Self {
        // SAFETY: a new descriptor that nobody else has.
        Self(Arc::new(unsafe { OwnedFd::from_raw_fd(checked(libc::eventfd(0, libc::EFD_CLOEXEC))) }))
    }

    pub(super) fn send(&self) {
        let one = 1_u64;
        // SAFETY: writes eight bytes from the local.
        assert_eq!(unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) }, 8, "eventfd");
    }
}

fn open_uffd(kernel_faults: bool, extra: u32) -> OwnedFd {
    let mode = if kernel_faults { 0 } else { raw::UFFD_USER_MODE_ONLY as i32 };
    // SAFETY: makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | mode) };
    // SAFETY: it is new and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(checked(fd as i32)) };
    let features = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP
        | raw::UFFD_FEATURE_WP_UNPOPULATED
        | raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM
        | extra;
    let mut api = raw::uffdio_api { api: raw::UFFD_API.into(), features: features.into(), ioctls: 0 };
    assert_eq!(call(&fd, ioctl::UFFDIO_API, &mut api), 0, "UFFDIO_API");
    fd
}

fn write_protect(fd: &OwnedFd, start: usize, len: usize, mode: u64) -> bool {
    let range = raw::uffdio_range { start: start as u64, len: len as u64 };
    call(fd, ioctl::UFFDIO_WRITEPROTECT, &mut raw::uffdio_writeprotect { range, mode }) == 0
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
