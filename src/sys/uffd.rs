//! userfaultfd: open, negotiate, register, write-protect, wake, read.
//!
//! The calls themselves are in [`super::uffd_calls`]. Each operation first checks whether this
//! process is a fork's child: the inherited descriptor acts on the parent's memory.
//!
//! Closing the last copy of the descriptor wakes all writers and clears every protection. So
//! the code that drops a [`Uffd`] treats all of its pages as written.
//!
//! # Two copies
//!
//! Any code of the process may close our number, or put another file there. The kernel would then
//! open every page in silence, and stale code would run. So there are two copies of the descriptor
//! under two numbers. While one is there the pages stay protected. A fault handler or a translator
//! may find the other one gone. It first makes everything unreachable, and then calls
//! [`Uffd::abandon`], which gives up both. If both are closed at once (`close_range`), only the
//! next call notices: [`Uffd::check`].
//!
//! # Safety
//!
//! A descriptor is made by the system call, which touches no memory.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use linux_raw_sys::general as raw;
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::mm::UserfaultfdFlags;

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::descriptor;
use crate::sys::guarded_fd::GuardedFd;
use crate::sys::mmap::is_mapped;
use crate::sys::populate::{Check, Populating};
use crate::sys::process::Owner;
use crate::sys::ranges::WriteFault;
use crate::sys::split::split_on_error;
pub(crate) use crate::sys::uffd_calls::MessageBuffer;
use crate::sys::uffd_calls::{self, PageFault};

/// `UFFD_FEATURE_*` bits.
pub(crate) mod feature {
    use linux_raw_sys::general as raw;

    pub(crate) const WP: u64 = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
    pub(crate) const SIGBUS: u64 = raw::UFFD_FEATURE_SIGBUS as u64;
    pub(crate) const THREAD_ID: u64 = raw::UFFD_FEATURE_THREAD_ID as u64;
    pub(crate) const EXACT_ADDRESS: u64 = raw::UFFD_FEATURE_EXACT_ADDRESS as u64;
    pub(crate) const WP_SHMEM: u64 = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
    pub(crate) const WP_UNPOPULATED: u64 = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
    pub(crate) const WP_ASYNC: u64 = raw::UFFD_FEATURE_WP_ASYNC as u64;
}

/// Whether a descriptor gets the faults of the kernel's own writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum KernelFaults {
    /// It does.
    Delivered,
    /// User mode only.
    Refused,
}

/// The way by which a descriptor was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    /// The system call.
    Syscall,
    /// `/dev/userfaultfd`.
    Device,
}

/// A descriptor that is not negotiated yet, and the way by which it was opened.
#[derive(Debug)]
pub(crate) struct Opened {
    fd: OwnedFd,
    door: Door,
    faults: KernelFaults,
}

impl Opened {
    #[cfg(feature = "userfaultfd")]
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a descriptor, not negotiated yet. Kernel faults need privilege
/// (CAP_SYS_PTRACE, `vm.unprivileged_userfaultfd`, or the device).
pub(crate) fn open(door: Door, faults: KernelFaults) -> Result<Opened, Errno> {
    let user_mode_only = match faults {
        KernelFaults::Delivered => 0,
        KernelFaults::Refused => raw::UFFD_USER_MODE_ONLY,
    };
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    let flags = UserfaultfdFlags::from_bits_retain(flags.bits() | user_mode_only);
    let opened = match door {
        // SAFETY: makes a descriptor and touches no memory.
        Door::Syscall => unsafe { rustix::mm::userfaultfd(flags) },
        Door::Device => {
            let device = rustix::fs::open("/dev/userfaultfd", OFlags::RDWR | OFlags::CLOEXEC, FileMode::empty())?;
            uffd_calls::new(device, flags.bits())
        }
    };
    opened.map(|fd| Opened { fd: descriptor::raise(fd), door, faults })
}

/// Limit of tries of an ioctl that returns EAGAIN, with a yield between: changes of the
/// memory map are short.
const AGAIN_LIMIT: u32 = 100_000;

/// A negotiated descriptor for write protection.
#[derive(Debug)]
pub(crate) struct Uffd {
    /// The copy that every call goes through.
    copy: GuardedFd,
    /// Keeps the kernel's object if the other copy is gone and this was not noticed yet.
    spare: GuardedFd,
    /// The way by which it was opened, for a fork's child that opens the same.
    door: Door,
    faults: KernelFaults,
    features: u64,
    /// If the kernel protects populated pages only.
    populating: Option<Populating>,
    owner: Owner,
}

impl Uffd {
    /// Asks `opened` for `features` and takes it over. Without `WP_UNPOPULATED` among them,
    /// `check` says how pages are checked that are populated before they are protected; `None`
    /// leaves those out that are not populated.
    pub(crate) fn new(opened: Opened, features: u64, check: Option<Check>) -> Result<Self, Error> {
        negotiate(opened.as_fd(), features)?;
        Self::negotiated(opened, features, check.map(Populating::new).transpose()?)
    }

    /// Takes over a descriptor that the embedder has opened and asked for `features`. `check` as in
    /// [`Uffd::new`].
    #[cfg(feature = "userfaultfd")]
    pub(crate) fn of_embedder(fd: OwnedFd, features: u64, check: Option<Check>) -> Result<Self, Error> {
        let flags =
            rustix::fs::fcntl_getfl(&fd).and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK));
        let flags = flags.and_then(|()| rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC));
        flags.map_err(|errno| Error::system("fcntl", 0, 0, errno))?;
        let opened = Opened { fd: descriptor::raise(fd), door: Door::Syscall, faults: KernelFaults::Refused };
        Self::negotiated(opened, features, check.map(Populating::new).transpose()?)
    }

    fn negotiated(opened: Opened, features: u64, populating: Option<Populating>) -> Result<Self, Error> {
        let Opened { fd, door, faults } = opened;
        let owner = Owner::this_process()?;
        let spare = duplicate(&fd)?;
        let (copy, spare) = (GuardedFd::new(fd), GuardedFd::new(spare));
        Ok(Self { copy, spare, door, faults, features, populating, owner })
    }

    /// In a fork's child, with no other thread inside: closes every descriptor that it inherited.
    /// [`Uffd::open_in_child`] follows. Returns whether they were those that its parent had opened: then
    /// every page that was protected when the process forked had been protected up to then.
    pub(crate) fn close_inherited(&self) -> bool {
        let was_intact = self.copy.is_ours() && self.spare.is_ours();
        self.copy.close_inherited();
        self.spare.close_inherited();
        if let Some(populating) = &self.populating {
            populating.pagemap.close_inherited();
        }
        was_intact
    }

    /// Opens the same for this process. Nothing is registered. The kernel is not probed again: that
    /// takes more descriptors, and the environment, which a lock guards.
    pub(crate) fn open_in_child(&self) -> Result<(), Error> {
        if let Some(populating) = &self.populating {
            populating.pagemap.open_in_child()?;
        }
        let Opened { fd, .. } =
            open(self.door, self.faults).map_err(|errno| Error::system("userfaultfd", 0, 0, errno))?;
        negotiate(fd.as_fd(), self.features)?;
        let spare = duplicate(&fd)?;
        self.copy.renew(fd);
        self.spare.renew(spare);
        self.owner.take_over()
    }

    /// Closes every descriptor, when none is used any more.
    pub(crate) fn close(&self) {
        self.copy.close();
        self.spare.close();
        if let Some(populating) = &self.populating {
            populating.pagemap.close();
        }
    }

    /// Whether this process, not a parent of it, made the descriptor.
    #[inline]
    pub(crate) fn is_own(&self) -> bool {
        self.owner.is_current()
    }

    /// Whether both copies are still the descriptor that was opened, and the pagemap too.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.check_own()?;
        if !self.copy.is_ours() || !self.spare.is_ours() {
            return Err(Error::TrackingLost);
        }
        self.populating.as_ref().map_or(Ok(()), |populating| populating.pagemap.check())
    }

    /// Its numbers in this process.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        if !self.is_own() {
            return Vec::new();
        }
        let pagemap = self.populating.as_ref().and_then(|populating| populating.pagemap.descriptor());
        [&self.copy, &self.spare].iter().filter_map(|copy| copy.number()).chain(pagemap).collect()
    }

    /// Lets go of the kernel's object, which opens every page and wakes every writer: calls on
    /// the descriptor may no longer be able to. Call it when every translation of the pages is
    /// unreachable. Async-signal-safe but for errno.
    pub(crate) fn abandon(&self) -> Result<(), Error> {
        self.check_own()?;
        let given_up = self.copy.give_up();
        given_up.and(self.spare.give_up()).map_err(|errno| Error::system("close", 0, 0, errno))
    }

    #[inline]
    fn check_own(&self) -> Result<(), Error> {
        if self.is_own() { Ok(()) } else { Err(Error::InForkChild) }
    }

    /// Registers `range` for write protection; pages keep their contents and
    /// stay writable.
    pub(crate) fn register(&self, range: HostRange) -> Result<(), Error> {
        self.check_own()?;
        match again(|| uffd_calls::register(self.copy.as_fd(), range.start().0, range.len())) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(Error::AlreadyTracked { start: range.start().0, len: range.len() }),
            Err(errno) => Err(system("UFFDIO_REGISTER", range, errno)),
        }
    }

    /// Ends the registration. Does not wake writers: see [`Uffd::wake`].
    pub(crate) fn unregister(&self, range: HostRange) -> Result<(), Error> {
        self.check_own()?;
        // EINVAL and ENOMEM: a piece is unmapped, or its new mapping cannot be registered.
        self.in_parts(
            "UFFDIO_UNREGISTER",
            range,
            &[Errno::INVAL, Errno::NOMEM],
            |start, len| again(|| uffd_calls::unregister(self.copy.as_fd(), start, len)),
            |_, _| Ok(()),
        )
    }

    /// Write-protects `range`. An unmapped piece is skipped; a piece that is mapped and not
    /// registered is an error, ENOENT.
    #[inline]
    pub(crate) fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.check_own()?;
        match &self.populating {
            None => self.write_protect(range),
            Some(populating) => populating.protect(range, |part| self.write_protect(part)),
        }
    }

    #[inline]
    fn write_protect(&self, range: HostRange) -> Result<(), Error> {
        match uffd_calls::protect(self.copy.as_fd(), range.start().0, range.len()) {
            Ok(()) => Ok(()),
            Err(_) => self.protect_in_parts(range),
        }
    }

    #[cold]
    #[inline(never)]
    fn protect_in_parts(&self, range: HostRange) -> Result<(), Error> {
        self.in_parts(
            "UFFDIO_WRITEPROTECT",
            range,
            &[Errno::NOENT],
            |start, len| again(|| uffd_calls::protect(self.copy.as_fd(), start, len)),
            |page, errno| if is_mapped(page, PageSize::host()) { Err(errno) } else { Ok(()) },
        )
    }

    /// Lets stores to `range` through and wakes the threads that wait for it; a piece that is
    /// not registered has nothing to undo. Async-signal-safe but for errno.
    #[inline]
    pub(crate) fn unprotect(&self, range: HostRange) -> Result<(), Error> {
        self.check_own()?;
        // One call is enough in nearly every fault, and takes less of a signal stack.
        match uffd_calls::unprotect(self.copy.as_fd(), range.start().0, range.len()) {
            Ok(()) => Ok(()),
            Err(_) => self.unprotect_in_parts(range),
        }
    }

    #[cold]
    #[inline(never)]
    fn unprotect_in_parts(&self, range: HostRange) -> Result<(), Error> {
        self.in_parts(
            "UFFDIO_WRITEPROTECT",
            range,
            &[Errno::NOENT],
            |start, len| again(|| uffd_calls::unprotect(self.copy.as_fd(), start, len)),
            |_, _| Ok(()),
        )
    }

    /// Wakes all writers that wait for `range`, registered or not.
    pub(crate) fn wake(&self, range: HostRange) -> Result<(), Error> {
        self.check_own()?;
        again(|| uffd_calls::wake(self.copy.as_fd(), range.start().0, range.len()))
            .map_err(|errno| system("UFFDIO_WAKE", range, errno))
    }

    /// Un-protects, unregisters and wakes, in this order: an unregister leaves
    /// the writers of a write-protect registration asleep.
    pub(crate) fn release(&self, range: HostRange) -> Result<(), Error> {
        let unprotected = self.unprotect(range);
        let unregistered = self.unregister(range);
        self.wake(range)?;
        unprotected.and(unregistered)
    }

    /// Both copies: a message makes either readable.
    pub(crate) fn copies(&self) -> [BorrowedFd<'_>; 2] {
        [self.copy.as_fd(), self.spare.as_fd()]
    }

    /// Reads a batch of messages without waiting, from copy `which` of `copies`, and gives each
    /// write fault to `on_fault`. An empty batch is normal: an un-protect took the message
    /// away. A copy that was replaced is not read: its content belongs to other code.
    pub(crate) fn read_faults(
        &self,
        which: usize,
        buffer: &mut MessageBuffer,
        mut on_fault: impl FnMut(WriteFault),
    ) -> Result<(), Error> {
        let copy = if which == 0 { &self.copy } else { &self.spare };
        if !copy.is_ours() {
            return Err(Error::TrackingLost);
        }
        let faults = buffer.read(copy.as_fd()).map_err(|errno| Error::system("read", 0, 0, errno))?;
        faults.for_each(|PageFault { address, tid }| on_fault(WriteFault { addr: address, pc: None, tid }));
        Ok(())
    }

    /// In parts down to one page of the kernel's. A page of the guest may be larger, and consist of
    /// several mappings.
    fn in_parts(
        &self,
        call: &'static str,
        range: HostRange,
        split_on: &[Errno],
        apply: impl FnMut(usize, usize) -> Result<(), Errno>,
        leaf: impl FnMut(HostAddr, Errno) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        split_on_error(range, PageSize::host(), split_on, apply, leaf).map_err(|errno| system(call, range, errno))
    }
}

fn negotiate(fd: BorrowedFd<'_>, features: u64) -> Result<(), Error> {
    uffd_calls::api(fd, features).map(drop).map_err(|errno| Error::system("UFFDIO_API", 0, 0, errno))
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd, Error> {
    descriptor::duplicate(fd.as_fd()).map_err(|errno| Error::system("fcntl(F_DUPFD_CLOEXEC)", 0, 0, errno))
}

fn system(call: &'static str, range: HostRange, errno: Errno) -> Error {
    match errno {
        // The descriptor was closed, or its number is another file's: every protection is gone.
        Errno::BADF | Errno::NOTTY => Error::TrackingLost,
        _ => Error::system(call, range.start().0, range.len(), errno),
    }
}

/// Tries again while the kernel says EAGAIN (the memory map is changing) or
/// EINTR. Async-signal-safe but for errno.
fn again(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    for _ in 0..AGAIN_LIMIT {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => rustix::thread::sched_yield(),
            done => return done,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For user mode only, if the kernel has that.
    fn any_descriptor() -> Opened {
        open(Door::Syscall, KernelFaults::Refused).or_else(|_| open(Door::Syscall, KernelFaults::Delivered)).unwrap()
    }

    /// While a `madvise` waits for its event to be read, every write-protect call gives EAGAIN:
    /// it is tried again, and given up in the end.
    #[test]
    fn an_event_that_is_pending_is_waited_for_and_not_for_ever() {
        const EVENT_REMOVE: u64 = raw::UFFD_FEATURE_EVENT_REMOVE as u64;
        let page = PageSize::host();
        let uffd = Uffd::new(any_descriptor(), feature::WP | EVENT_REMOVE, None).unwrap();
        let memory = crate::sys::mmap::Mapping::anonymous(4 * page.bytes(), page).unwrap();
        uffd.register(memory.range()).unwrap();
        std::thread::scope(|scope| {
            // SAFETY: throws the contents of our own memory away.
            let advise = || unsafe {
                let start = memory.range().start().as_ptr().cast();
                libc::madvise(start, page.bytes(), libc::MADV_DONTNEED)
            };
            let adviser = scope.spawn(advise);
            // Until the event is there the call goes through.
            let refused = std::iter::repeat_with(|| uffd.protect(memory.range())).find_map(Result::err).unwrap();
            assert!(matches!(refused, Error::System { errno: libc::EAGAIN, .. }), "{refused}");
            let protector = scope.spawn(|| uffd.protect(memory.range()));
            uffd.read_faults(0, &mut MessageBuffer::new(), |_| ()).unwrap();
            assert_eq!(adviser.join().unwrap(), 0);
            assert_eq!(protector.join().unwrap(), Ok(()));
        });
        uffd.release(memory.range()).unwrap();
    }

    #[test]
    fn a_second_api_call_on_one_descriptor_is_refused() {
        let fd = any_descriptor();
        assert_ne!(uffd_calls::api(fd.as_fd(), 0).unwrap() & feature::WP, 0);
        assert_eq!(uffd_calls::api(fd.as_fd(), feature::WP), Err(Errno::INVAL));
    }
}
