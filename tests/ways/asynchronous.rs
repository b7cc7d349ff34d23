//! Writes into pages that the kernel pinned: buffers registered with io_uring, and aio and
//! `O_DIRECT` operations in progress. A pin from before the protection writes to the page with
//! no event, in every mode. Each test shows that first, then the announced write.
//!
//! A call that begins on a protected page is a kernel write like `read`.
//!
//! # Safety
//!
//! Buffers lie in the fixture's own memory, and the tests wait for every operation.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Error, PipeReader, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use io_uring::{IoUring, opcode, squeue, types};

use crate::expect::in_every_mode;
use crate::kernel_writes::{NEW, in_each_mode_by, is_new};
use crate::release::is_since;
use crate::support::{Fixture, page_bytes, skip, tracking_modes};

fn ring() -> Option<IoUring> {
    IoUring::new(4).inspect_err(|error| skip(&format_args!("io_uring: {error}"))).ok()
}

/// Runs one operation to its end.
fn complete(ring: &mut IoUring, operation: squeue::Entry) -> io::Result<usize> {
    // SAFETY: its buffer stays until it is complete, below.
    unsafe { ring.submission().push(&operation) }.expect("room in an empty ring");
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().expect("it was waited for").result();
    usize::try_from(result).map_err(|_| Error::from_raw_os_error(-result))
}

fn pipe_of_new() -> io::Result<PipeReader> {
    let (from, mut into) = io::pipe()?;
    into.write_all(NEW)?;
    Ok(from)
}

#[test]
fn io_uring_read() {
    if ring().is_none() {
        return;
    }
    let call = |into: *mut u8| {
        let from = pipe_of_new()?;
        let read = opcode::Read::new(types::Fd(from.as_raw_fd()), into, NEW.len() as u32).build();
        complete(&mut ring().expect("as before"), read).map(drop)
    };
    in_each_mode_by(call, is_new);
}

/// A ring with a page of the guest's registered as its buffer 0.
fn registered(guest: &Fixture, page: usize) -> Option<(IoUring, io::Result<()>)> {
    let ring = ring()?;
    let buffer = libc::iovec { iov_base: guest.host(page, 0).cast(), iov_len: page_bytes() };
    // SAFETY: the memory outlives the ring.
    let result = unsafe { ring.submitter().register_buffers(&[buffer]) };
    Some((ring, result))
}

fn read_fixed(guest: &Fixture, ring: &mut IoUring, page: usize) {
    let from = pipe_of_new().unwrap();
    let (fd, into) = (types::Fd(from.as_raw_fd()), guest.host(page, 0));
    let read = opcode::ReadFixed::new(fd, into, NEW.len() as u32, 0).build();
    assert_eq!(complete(ring, read).unwrap(), NEW.len());
    assert!(is_new(&guest.bytes(page, 0, NEW.len())), "{}", guest.mode);
}

#[test]
fn io_uring_registered_buffer() {
    in_every_mode(|guest| {
        // Pinned before it is protected: the library learns nothing.
        let Some((mut ring, result)) = registered(guest, 1) else { return };
        result.unwrap();
        let block = guest.block(1, 0);
        read_fixed(guest, &mut ring, 1);
        guest.expect_reachable(block);
        // Announced after it was complete.
        guest.invalidate(1, 0, NEW.len());
        guest.expect_dead(block);

        // Announced: while the operation is in progress nothing is translated.
        let block = guest.block(1, 0);
        let held = guest.prepare_unseen(1, 0, NEW.len());
        guest.expect_dead(block);
        let key = guest.guest(1, 0);
        let mut ticket = guest.cache.begin(key.into());
        assert!(ticket.claim(key).is_err() || ticket.needs_check(), "{}", guest.mode);
        read_fixed(guest, &mut ring, 1);
        drop(held);
        guest.expect_tracked(1, 0);
    });
}

/// Pinning a protected page for writing is already a write, and announced as one. Before Linux 6.5 a
/// pin waits for no fault, so it is refused in each mode that protects pages.
#[test]
fn io_uring_registering_a_protected_page() {
    in_every_mode(|guest| {
        let block = guest.block(1, 0);
        let Some((_ring, result)) = registered(guest, 1) else { return };
        let waits = is_since(6, 5) || !matches!(guest.mode, Mode::Thread);
        if guest.kernel_writes_pass() && waits {
            result.unwrap();
            guest.expect_learned(block);
        } else {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EFAULT), "{}", guest.mode);
            guest.expect_reachable(block);
        }

        let block = guest.block(2, 0);
        let held = (
            waits.then(|| guest.prepare(2, 0, page_bytes())),
            (!waits).then(|| guest.prepare_unseen(2, 0, page_bytes())),
        );
        let Some((_second_ring, result)) = registered(guest, 2) else { return };
        drop(held);
        result.unwrap();
        guest.expect_learned(block);
        guest.expect_tracked(2, 0);
    });
}

/// The kernel's `struct iocb` and `struct io_event`.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

/// A context of aio.
struct Aio(usize);

impl Aio {
    fn new() -> Self {
        let mut context = 0_usize;
        // SAFETY: a local to write to.
        assert_eq!(unsafe { libc::syscall(libc::SYS_io_setup, 4, &raw mut context) }, 0);
        Self(context)
    }

    /// Begins to read `len` bytes of `file` into `into`.
    fn submit(&self, file: &File, into: *mut u8, len: usize) -> io::Result<()> {
        const READ: u16 = 0;
        let mut iocb =
            Iocb { opcode: READ, fd: file.as_raw_fd() as u32, buffer: into as u64, len: len as u64, ..Iocb::default() };
        let mut list = [&raw mut iocb];
        // SAFETY: the kernel copies the block; the buffer is the fixture's and is waited for.
        match unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_mut_ptr()) } {
            1 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }

    /// Waits until it is complete.
    fn wait(&self) -> io::Result<usize> {
        let mut event = IoEvent::default();
        let no_limit = core::ptr::null::<libc::timespec>();
        // SAFETY: one event to write to.
        let mut get = || match unsafe { libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, &raw mut event, no_limit) }
        {
            count @ 0.. => Ok(count),
            _ => Err(Error::last_os_error()),
        };
        // A signal ends the wait.
        let interrupted = |end: &io::Result<_>| matches!(end, Err(error) if error.kind() == io::ErrorKind::Interrupted);
        assert_eq!(std::iter::repeat_with(&mut get).find(|end| !interrupted(end)).unwrap()?, 1);
        usize::try_from(event.result).map_err(|_| Error::from_raw_os_error(-event.result as i32))
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: everything that was begun in it was waited for.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// A file of `len` bytes that begins with NEW, open for O_DIRECT, if that is possible.
fn direct_file(len: usize) -> Option<File> {
    let file = crate::files::temporary();
    let bytes: Vec<u8> = NEW.iter().copied().cycle().take(len).collect();
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
    direct.inspect_err(|error| skip(&format_args!("O_DIRECT: {error}"))).ok()
}

#[test]
fn o_direct_read() {
    if direct_file(page_bytes()).is_none() {
        return;
    }
    let call = |into: *mut u8| {
        let file = direct_file(page_bytes()).expect("as before");
        // SAFETY: a page of the fixture's.
        let len = unsafe { libc::read(file.as_raw_fd(), into.cast(), page_bytes()) };
        if len < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    };
    in_each_mode_by(call, is_new);
}

#[test]
fn io_submit() {
    if direct_file(page_bytes()).is_none() {
        return;
    }
    let call = |into: *mut u8| {
        let aio = Aio::new();
        aio.submit(&direct_file(page_bytes()).expect("as before"), into, page_bytes())?;
        aio.wait().map(drop)
    };
    in_each_mode_by(call, is_new);
}

const LONG_READ_BYTES: usize = 16 << 20;
const ATTEMPTS: usize = 20;

/// The read is in progress when its last page is translated from. The page's bytes come later,
/// and the library learns nothing. The device decides whether the read is still in progress
/// then, so the test makes several attempts.
#[test]
fn o_direct_begun_before_the_protection() {
    let Some(file) = direct_file(LONG_READ_BYTES) else { return };
    let aio = Aio::new();
    let last = LONG_READ_BYTES / page_bytes() - 1;
    let end = page_bytes() - NEW.len();
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        let guest = Fixture::new(mode, GuestMemory::anonymous(LONG_READ_BYTES).unwrap());
        let arrived = || is_new(&guest.bytes(last, end, NEW.len()));
        let begin = || {
            // It may still be protected from the attempt before: then pinning would be a write.
            drop(guest.prepare_unseen(last, end, NEW.len()));
            // SAFETY: in the memory.
            unsafe { guest.host(last, end).write_bytes(0, NEW.len()) };
            aio.submit(&file, guest.host(0, 0), LONG_READ_BYTES).unwrap();
        };
        let seen = (0..ATTEMPTS).any(|_| {
            begin();
            let block = guest.block(last, end);
            let was_early = !arrived();
            assert_eq!(aio.wait().unwrap(), LONG_READ_BYTES);
            assert!(arrived());
            if was_early {
                guest.expect_reachable(block);
            }
            guest.invalidate(last, end, NEW.len());
            guest.expect_dead(block);
            was_early
        });
        if !seen {
            println!("{mode}: every read was through before its page was protected");
        }

        let block = guest.block(last, end);
        let held = guest.prepare_unseen(0, 0, LONG_READ_BYTES);
        guest.expect_dead(block);
        begin();
        assert_eq!(aio.wait().unwrap(), LONG_READ_BYTES);
        drop(held);
        assert!(arrived());
        guest.expect_tracked(last, end);
    }
}
