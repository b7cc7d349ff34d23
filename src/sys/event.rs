//! An event that wakes a thread, and the call that waits for it and for two copies of a descriptor.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, shutdown};

use crate::error::Error;
use crate::sys::descriptor;
use crate::sys::guarded_fd::{GuardedFd, silent_socket};

/// A socket to which nothing is sent. The event is signalled when the socket takes no messages any
/// more. An eventfd has no inode of its own: a foreign one in its place would be taken for it.
#[derive(Debug)]
pub(crate) struct Event(GuardedFd);

impl Event {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self(GuardedFd::new(open()?)))
    }

    /// In a fork's child, with no other thread inside: closes what it inherited.
    /// [`Event::open_in_child`] follows.
    pub(crate) fn close_inherited(&self) {
        self.0.close_inherited();
    }

    /// Makes it an event of this process, not signalled.
    pub(crate) fn open_in_child(&self) -> Result<(), Error> {
        self.0.renew(open()?);
        Ok(())
    }

    /// Ends the [`wait`] of every thread. Returns whether the event is now signalled, which it is
    /// not if another file has its number. Async-signal-safe but for errno.
    pub(crate) fn signal(&self) -> bool {
        self.0.is_ours() && shutdown(&self.0, Shutdown::Read).is_ok()
    }

    /// See [`GuardedFd::number`].
    pub(crate) fn number(&self) -> Option<RawFd> {
        self.0.number()
    }

    /// See [`GuardedFd::close`].
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

fn open() -> Result<OwnedFd, Error> {
    silent_socket().map(descriptor::raise).map_err(|errno| Error::system("socket", 0, 0, errno))
}

/// The result of a [`wait`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ready {
    /// The first copy with something to read.
    pub(crate) readable: Option<usize>,
    /// The event is signalled, or the kernel reports an error of one of the numbers: another
    /// file may have it.
    pub(crate) is_over: bool,
}

/// Sleeps until a copy of the descriptor has something to read or the event is signalled. A
/// signal's handler may end it without either, and a second ends it: if another file has the
/// event's number, nothing else would.
pub(crate) fn wait(copies: [BorrowedFd<'_>; 2], event: &Event) -> Result<Ready, Errno> {
    let [first, second] = copies.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    let mut fds = [first, second, PollFd::new(&event.0, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(errno),
    }
    let [first, second, event] = fds.map(|fd| fd.revents());
    let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
    Ok(Ready {
        readable: [first, second].iter().position(|events| events.contains(PollFlags::IN)),
        is_over: event.contains(PollFlags::IN) || (first | second | event).intersects(broken),
    })
}
