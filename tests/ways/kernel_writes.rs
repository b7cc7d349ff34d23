//! System calls that write to the guest's memory.
//!
//! An unannounced call on a protected page passes and is learned of (thread, deferred), or
//! gives EFAULT and changes nothing (sigbus, mprotect). An announced one passes in every mode.
//! An EFAULT loses no bytes that `read` takes from a pipe.
//!
//! # Safety
//!
//! The kernel writes to the fixture's own memory, or to locals.
#![allow(unsafe_code)]

use core::ffi::{c_int, c_long, c_void};
use core::mem::{MaybeUninit, offset_of};
use std::io::{self, Error, Read as _, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use codewarden::protection::Mode;

use crate::alone::run_alone;
use crate::child::{Ended, in_child};
use crate::expect::in_every_mode;
use crate::support::{Fixture, in_modes, page_bytes, skip, tracking_modes};

/// The byte that a page holds before, and the bytes that calls bring.
const OLD: u8 = 0xee;
pub(crate) const NEW: &[u8; 16] = b"written by Linux";

/// Bytes of a page that a call may write to.
const ROOM: usize = 256;

/// A system call that writes at the given address.
type Call = fn(*mut u8) -> io::Result<()>;
/// Whether the present bytes came from the call.
type Arrived = fn(&[u8]) -> bool;

fn checked(result: c_long) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| Error::last_os_error())
}

pub(crate) fn is_new(bytes: &[u8]) -> bool {
    bytes.starts_with(NEW)
}

fn fault<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(error) if error.raw_os_error() == Some(libc::EFAULT))
}

/// The call on a protected page, unannounced and announced.
pub(crate) fn in_each_mode_by(call: Call, arrived: Arrived) {
    in_every_mode(|guest| {
        // SAFETY: in the memory.
        let fill = |page| unsafe { guest.host(page, 0).write_bytes(OLD, ROOM) };
        fill(1);
        let block = guest.block(1, 0);
        let result = call(guest.host(1, 0));
        if guest.kernel_writes_pass() {
            result.unwrap();
            assert!(arrived(&guest.bytes(1, 0, ROOM)), "{}", guest.mode);
            guest.expect_learned(block);
        } else {
            assert!(fault(&result), "{}: {result:?}", guest.mode);
            assert_eq!(guest.bytes(1, 0, ROOM), [OLD; ROOM], "{}", guest.mode);
            guest.expect_reachable(block);
        }

        fill(2);
        let block = guest.block(2, 0);
        let held = guest.prepare(2, 0, ROOM);
        call(guest.host(2, 0)).unwrap();
        drop(held);
        assert!(arrived(&guest.bytes(2, 0, ROOM)), "{}", guest.mode);
        guest.expect_learned(block);
        guest.expect_tracked(2, 0);
    });
}

/// A call that takes its bytes from a pipe; after an EFAULT they are still there.
fn from_pipe(call: impl FnOnce(c_int) -> c_long) -> io::Result<()> {
    let (mut from, mut into) = io::pipe()?;
    into.write_all(NEW)?;
    let result = checked(call(from.as_raw_fd()));
    if result.is_err() {
        let mut left = [0; NEW.len()];
        from.read_exact(&mut left)?;
        assert_eq!(&left, NEW, "the pipe lost what the call refused");
    }
    result.map(|len| assert_eq!(len, NEW.len()))
}

#[test]
fn read() {
    let call = |into: *mut u8| {
        // SAFETY: see the head.
        from_pipe(|from| unsafe { libc::read(from, into.cast(), NEW.len()) as c_long })
    };
    in_each_mode_by(call, is_new);
}

#[test]
fn readv() {
    let call = |into: *mut u8| {
        from_pipe(|from| {
            let part = |at: usize, len| libc::iovec { iov_base: into.wrapping_add(at).cast(), iov_len: len };
            let parts = [part(0, 3), part(3, 0), part(3, NEW.len() - 3)];
            // SAFETY: see the head.
            unsafe { libc::readv(from, parts.as_ptr(), 3) as c_long }
        })
    };
    in_each_mode_by(call, is_new);
}

/// A regular file of NEW in the directory for tests' files.
fn file() -> std::fs::File {
    let mut file = crate::files::temporary();
    file.write_all(NEW).unwrap();
    file
}

#[test]
fn pread() {
    let call = |into: *mut u8| {
        let file = file();
        // SAFETY: see the head.
        checked(unsafe { libc::pread(file.as_raw_fd(), into.cast(), NEW.len(), 0) as c_long }).map(drop)
    };
    in_each_mode_by(call, is_new);
}

fn receive(from: BorrowedFd<'_>, into: *mut u8) -> io::Result<usize> {
    let mut part = libc::iovec { iov_base: into.cast(), iov_len: NEW.len() };
    // SAFETY: an empty header is a valid one; its buffers live until the call is over.
    let received = unsafe {
        let mut header = MaybeUninit::<libc::msghdr>::zeroed().assume_init();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        libc::recvmsg(from.as_raw_fd(), &raw mut header, 0)
    };
    checked(received as c_long)
}

#[test]
fn recvmsg() {
    let call = |into: *mut u8| {
        let (mut from, mut peer) = UnixStream::pair()?;
        peer.write_all(NEW)?;
        let result = receive(std::os::fd::AsFd::as_fd(&from), into);
        if result.is_err() {
            let mut left = [0; NEW.len()];
            from.read_exact(&mut left)?;
            assert_eq!(&left, NEW, "the socket lost what the call refused");
        }
        result.map(drop)
    };
    in_each_mode_by(call, is_new);
}

/// An EFAULT does lose a datagram, outside the library's power.
#[test]
fn a_datagram_is_lost_unless_announced() {
    in_modes(tracking_modes().into_iter().chain([Mode::None]), |guest| {
        let block = guest.block(1, 0);
        let (from, peer) = UnixDatagram::pair().unwrap();
        from.set_nonblocking(true).unwrap();
        peer.send(NEW).unwrap();
        if !guest.kernel_writes_pass() {
            assert!(fault(&receive(std::os::fd::AsFd::as_fd(&from), guest.host(1, 0))), "{}", guest.mode);
            assert!(from.recv(&mut [0; 16]).is_err(), "{}: the datagram is still there", guest.mode);
            peer.send(NEW).unwrap();
        }
        let held = guest.prepare(1, 0, NEW.len());
        receive(std::os::fd::AsFd::as_fd(&from), guest.host(1, 0)).unwrap();
        drop(held);
        assert!(is_new(&guest.bytes(1, 0, NEW.len())));
        guest.expect_learned(block);
        guest.expect_tracked(1, 0);
    });
}

#[test]
fn fstat() {
    let call = |into: *mut u8| {
        let file = file();
        // SAFETY: see the head; the raw call, as a C library may fill in the structure itself.
        checked(unsafe { libc::syscall(libc::SYS_fstat, file.as_raw_fd(), into) }).map(drop)
    };
    in_each_mode_by(call, |bytes| {
        let at = offset_of!(libc::stat, st_size);
        bytes[at..at + 8] == (NEW.len() as u64).to_ne_bytes()
    });
}

#[test]
fn clock_gettime() {
    let call = |into: *mut u8| {
        // SAFETY: see the head; the raw call, as the vDSO writes from user mode.
        checked(unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, into) }).map(drop)
    };
    in_each_mode_by(call, |bytes| !bytes[..16].contains(&OLD) || bytes[8..16] != [OLD; 8]);
}

#[test]
fn pipe2() {
    let call = |into: *mut u8| {
        // SAFETY: see the head.
        checked(unsafe { libc::syscall(libc::SYS_pipe2, into, libc::O_CLOEXEC) }).map(drop)
    };
    in_each_mode_by(call, |bytes| {
        let fds = [0, 4].map(|at| c_int::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()));
        // SAFETY: the call made them, and they have no other owner.
        let [mut from, mut into] = fds.map(|fd| std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
        let mut got = [0; NEW.len()];
        into.write_all(NEW).and_then(|()| from.read_exact(&mut got)).is_ok() && &got == NEW
    });
}

fn write_to_process(pid: c_int, into: *mut u8) -> c_long {
    let local = libc::iovec { iov_base: NEW.as_ptr().cast_mut().cast(), iov_len: NEW.len() };
    let remote = libc::iovec { iov_base: into.cast(), iov_len: NEW.len() };
    // SAFETY: see the head.
    unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) as c_long }
}

#[test]
fn process_vm_writev() {
    // SAFETY: asks for a number.
    let call = |into: *mut u8| checked(write_to_process(unsafe { libc::getpid() }, into)).map(drop);
    in_each_mode_by(call, is_new);
}

#[test]
fn process_vm_writev_from_another_process() {
    let call = |into: *mut u8| {
        // SAFETY: asks for a number.
        let parent = unsafe { libc::getpid() };
        let ended = in_child(|| match write_to_process(parent, into) {
            16 => 0,
            // SAFETY: the thread's own errno.
            _ => unsafe { *libc::__errno_location() as u8 },
        });
        match ended {
            Ended::Returned(0) => Ok(()),
            Ended::Returned(errno) => Err(Error::from_raw_os_error(errno.into())),
            ended => panic!("{ended:?}"),
        }
    };
    let mut local = [0; ROOM];
    if let Err(error) = call(local.as_mut_ptr()) {
        return skip(&format_args!("process_vm_writev to the parent: {error}"));
    }
    in_each_mode_by(call, is_new);
}

/// The first byte of the word arrives.
const WORD: usize = 4;

#[test]
fn futex_wake_op() {
    let call = |into: *mut u8| {
        let mut other = 0_u32;
        // Sets the second word to 0x123, then compares its earlier value with 0.
        // FUTEX_OP(FUTEX_OP_SET, 0x123, FUTEX_OP_CMP_EQ, 0), as futex(2) has it.
        let operation = 0x123 << 12;
        // SAFETY: see the head; aligned.
        let result = unsafe {
            let woken: *mut c_void = core::ptr::without_provenance_mut(1);
            libc::syscall(libc::SYS_futex, &raw mut other, libc::FUTEX_WAKE_OP, 1, woken, into, operation)
        };
        checked(result).map(drop)
    };
    in_each_mode_by(call, |bytes| bytes[..WORD] == 0x123_u32.to_ne_bytes());
}

/// The kernel writes the locking thread into the word, and clears it at the unlock.
#[test]
fn futex_lock_pi() {
    in_every_mode(|guest| {
        let word = |page| guest.host(page, 8).cast::<u32>();
        let call = |page, operation: c_int| {
            // SAFETY: see the head; aligned.
            checked(unsafe {
                libc::syscall(libc::SYS_futex, word(page), operation, 0, core::ptr::null::<libc::timespec>())
            })
        };
        let block = guest.block(1, 8);
        let locked = call(1, libc::FUTEX_LOCK_PI);
        if guest.kernel_writes_pass() {
            locked.unwrap();
            assert_ne!(guest.bytes(1, 8, WORD), [0; WORD]);
            guest.expect_learned(block);
            let block = guest.block(1, 8);
            call(1, libc::FUTEX_UNLOCK_PI).unwrap();
            assert_eq!(guest.bytes(1, 8, WORD), [0; WORD]);
            guest.expect_learned(block);
        } else {
            assert!(fault(&locked), "{}: {locked:?}", guest.mode);
            guest.expect_reachable(block);
        }
        let block = guest.block(2, 8);
        let held = guest.prepare(2, 8, WORD);
        call(2, libc::FUTEX_LOCK_PI).unwrap();
        call(2, libc::FUTEX_UNLOCK_PI).unwrap();
        drop(held);
        guest.expect_learned(block);
    });
}

/// The kernel looks for a shared futex's page as if to write to it, even if the call does not
/// write. In anonymous memory it makes the page writable, or the call fails.
#[test]
fn a_shared_futex() {
    in_every_mode(|guest| {
        if guest.memory.file().is_some() {
            return;
        }
        let wake = |page| {
            // SAFETY: see the head; aligned. The call writes nothing.
            checked(unsafe { libc::syscall(libc::SYS_futex, guest.host(page, 8), libc::FUTEX_WAKE, 1) })
        };
        let block = guest.block(1, 8);
        let woken = wake(1);
        if guest.kernel_writes_pass() {
            assert_eq!(woken.unwrap(), 0);
            guest.expect_learned(block);
        } else {
            assert!(fault(&woken), "{}: {woken:?}", guest.mode);
            guest.expect_reachable(block);
        }
        let held = guest.prepare(2, 8, WORD);
        assert_eq!(wake(2).unwrap(), 0);
        drop(held);
        guest.expect_tracked(2, 8);
    });
}

/// Locking brings the pages of a private mapping in as if to write to them. If they may not be
/// written, as in mprotect mode, it only reads.
#[test]
fn mlock() {
    in_every_mode(|guest| {
        if guest.memory.file().is_some() {
            return;
        }
        let lock = |page| {
            // SAFETY: changes no byte.
            checked(unsafe { libc::mlock(guest.host(page, 0).cast(), page_bytes()) }.into())
        };
        guest.block(1, 0);
        let locked = lock(1).map_err(|error| error.raw_os_error());
        let passes = guest.kernel_writes_pass() || guest.mode == Mode::Mprotect;
        assert_eq!(locked, if passes { Ok(0) } else { Err(Some(libc::ENOMEM)) }, "{}", guest.mode);
        let held = guest.prepare(2, 0, 1);
        lock(2).unwrap();
        drop(held);
        for page in [1, 2] {
            guest.expect_tracked(page, 0);
        }
    });
}

/// Begins on an open page and reaches a protected one: the call is short or fails, and the rest
/// is still in the pipe.
#[test]
fn a_read_over_two_pages_loses_nothing() {
    in_every_mode(|guest| {
        let block = guest.block(2, 0);
        let (from, mut into) = io::pipe().unwrap();
        into.write_all(NEW).unwrap();
        let at = page_bytes() - 6;
        let read = |done: usize| {
            // SAFETY: see the head.
            checked(unsafe { libc::read(from.as_raw_fd(), guest.host(1, at + done).cast(), NEW.len() - done) } as c_long)
        };
        let done = match read(0) {
            Ok(done) => done,
            refused => {
                assert!(fault(&refused), "{refused:?}");
                0
            }
        };
        if guest.kernel_writes_pass() {
            assert_eq!(done, NEW.len());
        } else {
            assert!(done <= 6);
            guest.expect_reachable(block);
            let _held = guest.prepare(1, at + done, NEW.len() - done);
            assert_eq!(read(done).unwrap(), NEW.len() - done);
        }
        assert_eq!(guest.bytes(1, at, NEW.len()), NEW);
        guest.expect_learned(block);
    });
}

/// Two threads announce. Whichever hold ends first, the call passes while one is left. Without
/// any it is refused.
#[test]
fn announcements_nest() {
    in_every_mode(|guest: &Fixture| {
        let call = |into: *mut u8| {
            // SAFETY: see the head.
            from_pipe(|from| unsafe { libc::read(from, into.cast(), NEW.len()) as c_long })
        };
        guest.block(1, 0);
        let unannounced = call(guest.host(1, 0));
        assert_eq!(fault(&unannounced), !guest.kernel_writes_pass(), "{}: {unannounced:?}", guest.mode);
        for first_ends_first in [true, false] {
            let block = guest.block(1, 0);
            let first = guest.prepare(1, 0, 1);
            let second = std::thread::scope(|scope| scope.spawn(|| guest.prepare(1, 8, 8)).join().unwrap());
            let mut held = [Some(first), Some(second)];
            held[usize::from(!first_ends_first)] = None;
            call(guest.host(1, 0)).unwrap();
            drop(held);
            guest.expect_learned(block);
            guest.expect_tracked(1, 0);
        }
    });
}

/// Through the host's own view nothing faults, in any mode; it is announced afterwards.
#[test]
fn a_read_through_the_hosts_view() {
    in_every_mode(|guest| {
        let Some(view) = guest.memory.host_view() else { return };
        let block = guest.block(1, 0);
        let into = view.as_ptr().wrapping_add(page_bytes());
        // SAFETY: see the head.
        from_pipe(|from| unsafe { libc::read(from, into.cast(), NEW.len()) as c_long }).unwrap();
        assert!(is_new(&guest.bytes(1, 0, NEW.len())));
        guest.expect_reachable(block);
        guest.invalidate(1, 0, NEW.len());
        guest.expect_dead(block);
        guest.expect_tracked(1, 0);
    });
}

/// Thread mode without delivery of the kernel's faults works as sigbus. The test above runs
/// again, in a process that hides the facility.
#[test]
fn thread_mode_without_kernel_faults() {
    for name in ["kernel_writes::read", "kernel_writes::futex_wake_op"] {
        let output = run_alone(name, "without kernel faults", &[("CODEWARDEN_HIDE", "kernel_faults")]);
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{name}: {told}");
    }
}
