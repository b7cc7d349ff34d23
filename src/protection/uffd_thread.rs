//! uffd-wp with a handler thread: a fault is a message.
//!
//! A store to a protected page, by user code or by the kernel (`read` into the page), queues a
//! message and sleeps. One thread for each mechanism reads the messages and calls the sink of
//! the range. The sink un-protects, which wakes the writer. The descriptor is non-blocking: an
//! un-protect before the read removes the message, so an empty read is normal.
//!
//! # No writer sleeps for ever
//!
//! After the sink the page is woken in any case: its store is tried again and faults again if
//! the page is protected. The thread itself opens nothing: a message may be old, and the page
//! protected anew under a block. If the sink cannot open the page, or the thread ends without a
//! request, every sink hears [`FaultSink::on_lost`], and then all pages are opened and woken.
//! At the end of the mechanism the thread is stopped first; the release of the ranges wakes
//! writers whose messages were not read.
//!
//! If the kernel refuses even that (a seccomp filter on `close`), the library ends the process.
//!
//! # The embedder's lock
//!
//! Calls of the embedder's wait for this thread: a range is given up when no sink of it runs, and
//! the mechanism ends with its thread. They may hold the lock that the thread takes around each
//! fault ([`FaultLock`]). So the thread takes it before it enters the table of ranges, and
//! never while it is to end: either it sees that, or the end sees that it is at the lock and leaves
//! it to itself.
//!
//! A thread that is killed (a seccomp filter can kill a single thread) runs none of this.
//! [`Protection::check`] asks the kernel whether the thread exists.

use core::ffi::CStr;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::contract::{Access, FaultLock, Inherited, KernelWrites, Opening, Protection};
use super::uffd_ranges::UffdRanges;
use crate::addr::{HostRange, PageSize};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sys::event::{Event, wait};
use crate::sys::ranges::{Delivery, dispatch};
use crate::sys::ranges::{FaultSink, Handled, WriteFault};
use crate::sys::signal::{thread_exists, with_all_blocked};
use crate::sys::thread::{Body, Thread, this_tid};
use crate::sys::uffd::{KernelFaults, MessageBuffer, Uffd};

#[derive(Debug)]
pub(super) struct UffdThread {
    shared: Arc<Shared>,
    kernel_faults: KernelFaults,
    /// Taken by the end.
    thread: Mutex<Option<Thread<Shared>>>,
}

#[derive(Debug)]
struct Shared {
    ranges: UffdRanges,
    page: PageSize,
    /// Readable when the thread is to end, and when the descriptor was given up.
    stop: Event,
    is_stopping: AtomicBool,
    lost: AtomicBool,
    /// Kernel thread id of the thread, 0 before it runs.
    tid: AtomicI32,
    lock: Lock,
    /// Whether the thread waits for the lock, or has it.
    is_at_lock: AtomicBool,
}

/// The embedder's, if there is one.
#[derive(Clone)]
struct Lock(Option<Arc<dyn FaultLock>>);

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lock").field(&self.0.is_some()).finish()
    }
}

impl UffdThread {
    /// Takes a non-blocking descriptor and starts the thread.
    pub(super) fn start(
        uffd: Uffd,
        kernel_faults: KernelFaults,
        page: PageSize,
        lock: Option<Arc<dyn FaultLock>>,
    ) -> Result<Self, Error> {
        let stop = Event::new()?;
        let shared = Arc::new(Shared {
            ranges: UffdRanges::new(uffd, Delivery::Thread),
            page,
            stop,
            is_stopping: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            tid: AtomicI32::new(0),
            lock: Lock(lock),
            is_at_lock: AtomicBool::new(false),
        });
        let thread = with_all_blocked(|| Thread::start(&shared))?;
        Ok(Self { shared, kernel_faults, thread: Mutex::new(Some(thread)) })
    }

    fn thread(&self) -> MutexGuard<'_, Option<Thread<Shared>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the thread and gives the descriptors back, once.
    fn stop(&self) {
        let Some(thread) = self.thread().take() else { return };
        if !self.shared.ranges.is_own() {
            // A fork's child has no such thread. The event is the parent's.
            return;
        }
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        // If another file has the number, the thread cannot be told: it looks within a second.
        self.shared.stop.signal();
        if self.shared.is_at_lock.load(Ordering::SeqCst) {
            // It may wait for the lock that this thread has. Its ranges have been given up, and the
            // descriptors go with it.
            return drop(thread);
        }
        thread.join();
        self.shared.ranges.close();
        self.shared.stop.close();
    }

    fn check_alive(&self) -> Result<(), Error> {
        if self.shared.lost.load(Ordering::SeqCst) { Err(Error::TrackingLost) } else { Ok(()) }
    }
}

impl Body for Shared {
    const NAME: &'static CStr = c"codewarden-uffd";

    fn run(&self) {
        let mut last_will = LastWill { shared: self, was_stopped: false };
        self.tid.store(this_tid(), Ordering::SeqCst);
        let mut messages = MessageBuffer::new();
        loop {
            // Two copies: if another file replaces one of them, the other still has the message.
            let Ok(ready) = wait(self.ranges.copies(), &self.stop) else { return };
            if self.is_stopping.load(Ordering::SeqCst) {
                last_will.was_stopped = true;
                return;
            }
            // Not stopping: the descriptor was given up, or another file has one of our numbers.
            if ready.is_over {
                return;
            }
            let mut resolved = Ok(());
            let mut on_fault = |fault: WriteFault| {
                self.under_the_lock(&mut || resolved = resolved.clone().and(self.resolve(&fault)));
            };
            // A message is read once: through the first copy unless that one is gone.
            if let Some(copy) = ready.readable
                && self.ranges.read_faults(copy, &mut messages, &mut on_fault).is_err()
            {
                return;
            }
            if resolved.is_err() {
                return;
            }
        }
    }
}

impl Shared {
    /// Whether the kernel still has the thread, or it has not begun yet.
    fn thread_exists(&self) -> bool {
        match self.tid.load(Ordering::SeqCst) {
            0 => true,
            tid => thread_exists(tid),
        }
    }

    /// Calls `handle` under the embedder's lock, but not if the thread is to end.
    fn under_the_lock(&self, handle: &mut dyn FnMut()) {
        let Some(lock) = &self.lock.0 else { return handle() };
        self.is_at_lock.store(true, Ordering::SeqCst);
        if !self.is_stopping.load(Ordering::SeqCst) {
            lock.hold(handle);
        }
        self.is_at_lock.store(false, Ordering::SeqCst);
    }

    /// If no range holds the page any more, its release opened it.
    fn resolve(&self, fault: &WriteFault) -> Result<(), Error> {
        match dispatch(Delivery::Thread, fault) {
            Some(Handled::NotOurs) => Err(Error::TrackingLost),
            Some(Handled::Retry) | None => self.ranges.wake(HostRange::page_of(fault.addr, self.page)),
        }
    }
}

/// Runs when the thread ends, for any reason.
struct LastWill<'a> {
    shared: &'a Shared,
    was_stopped: bool,
}

impl Drop for LastWill<'_> {
    fn drop(&mut self) {
        if self.was_stopped {
            return;
        }
        self.shared.lost.store(true, Ordering::SeqCst);
        self.shared.under_the_lock(&mut || {
            if self.shared.ranges.lose().is_err() {
                // No step is left. In the other modes the store's own signal ends the process now.
                // Here its writers would sleep for ever.
                std::process::abort();
            }
        });
    }
}

impl Protection for UffdThread {
    fn mode(&self) -> Mode {
        Mode::Thread
    }

    fn kernel_writes(&self) -> KernelWrites {
        match self.kernel_faults {
            KernelFaults::Delivered if self.shared.lock.0.is_some() => KernelWrites::WaitForTheLock,
            KernelFaults::Delivered => KernelWrites::Tracked,
            KernelFaults::Refused => KernelWrites::Refused,
        }
    }

    fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.check_alive()?;
        self.shared.ranges.reserve(range, sink)
    }

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, _: Access, leave: Permit<'_>) -> Result<(), Error> {
        self.check_alive()?;
        self.shared.ranges.attach(range, sink, leave)
    }

    fn detach(&self, range: HostRange, leave: Permit<'_>) -> Result<(), Error> {
        self.shared.ranges.detach(range, leave)
    }

    fn give_up(&self, range: HostRange) {
        self.shared.ranges.give_up(range);
    }

    fn is_own(&self) -> bool {
        self.shared.ranges.is_own()
    }

    fn descriptors(&self) -> Vec<RawFd> {
        let ranges = &self.shared.ranges;
        let stop = self.shared.stop.number().filter(|_| ranges.is_own());
        ranges.descriptors().into_iter().chain(stop).collect()
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.check_alive()?;
        self.shared.ranges.protect(range)?;
        // Meanwhile the thread may have died, and opened all pages.
        self.check_alive()
    }

    fn unprotect(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.shared.ranges.unprotect(range, opening)
    }

    fn check(&self) -> Result<(), Error> {
        self.check_alive()?;
        self.shared.ranges.check()?;
        if self.shared.thread_exists() { Ok(()) } else { Err(Error::TrackingLost) }
    }

    /// A sleeping `poll` keeps the kernel's userfaultfd open, even if its numbers name other
    /// files by then: writers sleep until the thread leaves the `poll`. So this wakes the
    /// thread, which then ends as after any loss.
    fn abandon(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        let given_up = self.shared.ranges.abandon(range, opening);
        if self.shared.ranges.is_own() {
            self.shared.stop.signal();
        }
        given_up
    }

    fn end(&self) {
        self.stop();
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(()) // every write was reported when it was made
    }

    fn open_in_child(&self) -> Result<Inherited, Error> {
        let Shared { ranges, stop, lost, tid, is_at_lock, .. } = &*self.shared;
        let was_intact = ranges.close_inherited();
        stop.close_inherited();
        // Until the thread runs no writer would be woken.
        let was_lost = lost.swap(true, Ordering::SeqCst);
        ranges.open_in_child()?;
        stop.open_in_child()?;
        tid.store(0, Ordering::SeqCst);
        is_at_lock.store(false, Ordering::SeqCst);
        // The parent's thread is not here: its handle only gives its reference up.
        *self.thread() = None;
        let thread = with_all_blocked(|| Thread::start(&self.shared))?;
        lost.store(false, Ordering::SeqCst);
        *self.thread() = Some(thread);
        Ok(Inherited::if_intact(was_intact && !was_lost))
    }

    fn take_over(&self, range: HostRange) -> Result<(), Error> {
        self.shared.ranges.take_over(range)
    }

    fn attach_again(
        &self,
        range: HostRange,
        sink: &Arc<dyn FaultSink>,
        _: Access,
        leave: Permit<'_>,
    ) -> Result<(), Error> {
        self.shared.ranges.attach_again(range, sink, leave)
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.shared.ranges.set_access(range, access)
    }
}

impl Drop for UffdThread {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    //! # Safety
    //! A store to a mapping that outlives it; a duplicate over the descriptor under test, which
    //! is the tested case.
    #![allow(unsafe_code)]

    use core::sync::atomic::AtomicU64;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;
    use crate::protection::choice;
    use crate::protection::contract::Options;
    use crate::sys::mmap::Mapping;
    use crate::sys::probe::Probe;

    /// Opens nothing.
    #[derive(Default)]
    struct Losses(AtomicU64, AtomicU64);

    // SAFETY: two atomic additions. If the test fails, it ends the process: a sink may not panic.
    unsafe impl FaultSink for Losses {
        fn on_write(&self, _: &WriteFault) -> Handled {
            if self.1.fetch_add(1, Ordering::SeqCst) != 0 {
                eprintln!("a page that cannot be opened is asked about again");
                std::process::abort();
            }
            Handled::NotOurs
        }

        fn on_lost(&self) -> Permit<'_> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Permit::for_test()
        }
    }

    fn open_thread_mode() -> UffdThread {
        let probe = Probe::of_this_process();
        let page = PageSize::host();
        choice::prepare(Mode::Thread, Options::default()).unwrap();
        let (fd, kernel_faults) = probe.open_uffd(KernelFaults::Delivered).unwrap();
        let features = choice::uffd_features(&probe, Mode::Thread);
        let uffd = Uffd::new(fd, features, probe.check_of_populated()).unwrap();
        UffdThread::start(uffd, kernel_faults, page, None).unwrap()
    }

    /// Two pages, protected, with a sink that opens nothing.
    fn protected_pages() -> (UffdThread, Mapping, Arc<Losses>) {
        let page = PageSize::host();
        let protection = open_thread_mode();
        let memory = Mapping::anonymous(2 * page.bytes(), page).unwrap();
        let losses = Arc::new(Losses::default());
        let sink: Arc<dyn FaultSink> = losses.clone();
        protection.attach(memory.range(), &sink, Access::ReadWrite, Permit::for_test()).unwrap();
        protection.protect(memory.range()).unwrap();
        (protection, memory, losses)
    }

    /// Our descriptor is closed and another file takes its number: the thread's next read is of
    /// that file.
    #[test]
    fn a_lost_descriptor_leaves_no_writer_asleep_and_nothing_believed() {
        let (protection, memory, losses) = protected_pages();
        assert!(!protection.shared.lost.load(Ordering::SeqCst));

        let other = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        // SAFETY: never dropped: only names the number for the call.
        let mut ours = unsafe { OwnedFd::from_raw_fd(protection.shared.ranges.copies()[0].as_raw_fd()) };
        rustix::io::dup2(&other, &mut ours).unwrap();
        core::mem::forget(ours);

        // SAFETY: in the mapping. It sleeps until the thread notices.
        unsafe { memory.range().start().as_ptr().write_volatile(1) };
        while !protection.shared.lost.load(Ordering::SeqCst) || losses.0.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        assert_eq!(protection.protect(memory.range()), Err(Error::TrackingLost));
        let sink: Arc<dyn FaultSink> = losses.clone();
        assert_eq!(
            protection.attach(memory.range(), &sink, Access::ReadWrite, Permit::for_test()),
            Err(Error::TrackingLost)
        );
        // SAFETY: in the mapping.
        unsafe { memory.range().start().as_ptr().write_volatile(2) };
    }

    /// The thread opens no page by itself, and no writer faults for ever.
    #[test]
    fn a_page_that_its_sink_does_not_open_is_lost_first() {
        let (protection, memory, losses) = protected_pages();
        // SAFETY: in the mapping. It sleeps until the page is open.
        unsafe { memory.range().start().as_ptr().write_volatile(1) };
        let [lost, asked] = [&losses.0, &losses.1].map(|count| count.load(Ordering::SeqCst));
        assert!(lost > 0 && asked == 1, "told of the loss {lost} times, asked {asked} times");
        assert_eq!(protection.protect(memory.range()), Err(Error::TrackingLost));
    }

    #[test]
    fn a_thread_ends_with_its_mechanism() {
        let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        // Other tests of this process open descriptors too: many rounds against a few of theirs.
        let before = count();
        for _ in 0..200 {
            let protection = choice::open(Mode::Thread, PageSize::host(), Options::default(), None).unwrap();
            drop(protection);
        }
        assert!(count() < before + 200, "descriptors are left over");
    }
}
