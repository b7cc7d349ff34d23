//! A mechanism, its sink and its memory, in a form that the cases share.
//!
//! # Safety
//!
//! Stores and loads go to the rig's own mapping, by raw pointers.
#![allow(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::super::choice::open_with;
use super::super::contract::{Access, Opening, Options, Protection};
use super::super::model::Model;
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sys::mmap::{Mapping, memfd, set_access};
use crate::sys::populate;
use crate::sys::probe::Probe;
use crate::sys::ranges::{FaultSink, Handled, WriteFault};

/// Pages of a rig's memory.
pub(super) const PAGES: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    Kernel(Mode),
    /// A kernel without these facilities (names of `CODEWARDEN_HIDE`).
    Without(&'static str, Mode),
    /// The same as `Kernel` with pages four times as large as this kernel's, to show that no code takes
    /// their size for granted.
    LargerPages(Mode),
    Model(Mode),
}

impl Backend {
    pub(super) fn mode(self) -> Mode {
        match self {
            Self::Kernel(mode) | Self::Without(_, mode) | Self::LargerPages(mode) | Self::Model(mode) => mode,
        }
    }

    pub(super) fn probe(self) -> Probe {
        match self {
            Self::Without(hidden, _) => Probe::with_hidden(hidden),
            _ => Probe::of_this_process(),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Memory {
    Anonymous,
    Memfd,
}

/// A sink that opens the page of every fault and records its calls.
pub(super) struct Recorder {
    range: HostRange,
    page: PageSize,
    protection: OnceLock<Arc<dyn Protection>>,
    /// One bit for each page.
    written: AtomicU64,
    pub(super) faults: AtomicU64,
    /// Calls that are not over.
    inside: AtomicU64,
    pub(super) last_addr: AtomicUsize,
    pub(super) last_pc: AtomicUsize,
    pub(super) last_tid: AtomicU32,
    /// The byte at the address, as the sink saw it.
    pub(super) last_byte: AtomicU64,
    /// Returns `NotOurs` for everything.
    pub(super) refuses: AtomicBool,
    pub(super) lost: AtomicBool,
    /// Told of the loss while its pages could still be protected.
    pub(super) is_told_in_time: AtomicBool,
}

// SAFETY: atomics, a load of a byte (reads never fault), and `unprotect`, which is
// async-signal-safe.
unsafe impl FaultSink for Recorder {
    fn on_write(&self, fault: &WriteFault) -> Handled {
        self.inside.fetch_add(1, SeqCst);
        let handled = self.record(fault);
        self.inside.fetch_sub(1, SeqCst);
        handled
    }

    /// As the tracker's sinks: a deferred region promises nothing to a core that looks ahead, and no
    /// process is registered for the barrier by it.
    fn others_may_look(&self) -> bool {
        self.protection.get().is_some_and(|protection| protection.mode().is_synchronous())
    }

    fn on_lost(&self) -> Permit<'_> {
        if !self.lost.swap(true, SeqCst) {
            self.is_told_in_time.store(self.can_protect(), SeqCst);
        }
        Permit::for_test()
    }
}

impl Recorder {
    fn new(range: HostRange, page: PageSize) -> Arc<Self> {
        Arc::new(Self {
            range,
            page,
            protection: OnceLock::new(),
            written: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            inside: AtomicU64::new(0),
            last_addr: AtomicUsize::new(0),
            last_pc: AtomicUsize::new(0),
            last_tid: AtomicU32::new(0),
            last_byte: AtomicU64::new(0),
            refuses: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            is_told_in_time: AtomicBool::new(false),
        })
    }

    /// Whether its pages can still be protected: the mechanism was not given up yet.
    fn can_protect(&self) -> bool {
        self.protection.get().is_some_and(|protection| match protection.mode() {
            Mode::Deferred => protection.harvest(self.range, &mut |_| ()).is_ok(),
            _ => protection.protect(self.range).is_ok(),
        })
    }

    fn record(&self, fault: &WriteFault) -> Handled {
        self.faults.fetch_add(1, SeqCst);
        self.last_addr.store(fault.addr.0, SeqCst);
        self.last_pc.store(fault.pc.map_or(0, |pc| pc.0), SeqCst);
        self.last_tid.store(fault.tid, SeqCst);
        // SAFETY: the fault lies in the rig's mapping.
        self.last_byte.store(u64::from(unsafe { fault.addr.as_ptr().read_volatile() }), SeqCst);
        if self.refuses.load(SeqCst) {
            return Handled::NotOurs;
        }
        let index = (fault.addr.0 - self.range.start().0) >> self.page.shift();
        self.written.fetch_or(1 << index, SeqCst);
        match self.protection.get() {
            Some(protection) => {
                match protection.unprotect(HostRange::page_of(fault.addr, self.page), Opening::for_test()) {
                    Ok(()) => Handled::Retry,
                    Err(_) => Handled::NotOurs,
                }
            }
            None => Handled::NotOurs,
        }
    }
}

pub(super) struct Rig {
    pub(super) backend: Backend,
    pub(super) kind: Memory,
    pub(super) page: PageSize,
    pub(super) sink: Arc<Recorder>,
    pub(super) protection: Arc<dyn Protection>,
    model: Option<Arc<Model>>,
    range: HostRange,
    /// Unmapped after the rig's own drop detached it. A rig beside it has the second half.
    memory: Arc<Mapping>,
    pub(super) file: Option<Arc<OwnedFd>>,
}

/// Memory far below all other, so that the kernel puts no mapping of another test into a hole that a
/// case makes in it.
fn far_below(len: usize, page: PageSize) -> Mapping {
    const FAR_BYTES: usize = 64 << 30;
    static NEXT: OnceLock<AtomicUsize> = OnceLock::new();
    let next = NEXT.get_or_init(|| {
        let near = Mapping::anonymous(len, page).unwrap();
        AtomicUsize::new(near.range().start().0 - FAR_BYTES)
    });
    let start = HostAddr(next.fetch_sub(len, SeqCst) - len);
    Mapping::anonymous_at(start, len, page).unwrap()
}

impl Rig {
    /// Memory that was never touched, attached and not protected. A page table leads to it.
    pub(super) fn new(backend: Backend, kind: Memory) -> Self {
        let page = match backend {
            Backend::LargerPages(_) => PageSize::from_shift(PageSize::host().shift() + 2),
            _ => PageSize::host(),
        };
        // With a page of the kernel at each end, and room to align the rest.
        let (host, len) = (PageSize::host(), (2 * PAGES + 2) * page.bytes());
        let memory = far_below(len, host);
        let file = (kind == Memory::Memfd).then(|| Arc::new(memfd("conformance", len).unwrap()));
        if let Some(file) = &file {
            let start = memory.range().start().as_ptr().cast();
            // SAFETY: replaces a mapping of our own that was never used.
            let mapped = unsafe {
                mmap(start, len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED, file, 0)
            };
            assert_eq!(mapped.unwrap(), start);
        }
        // A harvest by Linux 6.17 passes over pages to which no page table leads, and then reports more than was
        // written: a kernel fact shows it. The cases count exactly. No other memory is so near that it shares
        // a page table, so the pages at the ends get one.
        for end in [memory.range().start(), HostAddr(memory.range().end().0 - host.bytes())] {
            populate::read_byte(end).unwrap();
        }
        let start = page.ceil(memory.range().start().0 + host.bytes()).unwrap();
        let range = HostRange::of_pages(HostAddr(start), PAGES, page);
        let (protection, model): (Arc<dyn Protection>, _) = match backend {
            Backend::Kernel(mode) | Backend::Without(_, mode) | Backend::LargerPages(mode) => {
                (open_with(&backend.probe(), mode, page, Options::default(), None).unwrap(), None)
            }
            Backend::Model(mode) => {
                let all = HostRange::of_pages(HostAddr(start), 2 * PAGES, page);
                let model = Arc::new(Model::new(mode, all, page));
                (model.clone(), Some(model))
            }
        };
        Self::of(Self {
            backend,
            kind,
            page,
            sink: Recorder::new(range, page),
            protection,
            model,
            range,
            memory: Arc::new(memory),
            file,
        })
    }

    /// A range of another sink on the same mechanism.
    pub(super) fn beside(&self) -> Self {
        let Self { backend, kind, page, model, file, .. } = self;
        let (protection, memory) = (self.protection.clone(), self.memory.clone());
        let range = HostRange::of_pages(self.range.end(), PAGES, *page);
        let sink = Recorder::new(range, *page);
        let (backend, kind, model, file) = (*backend, *kind, model.clone(), file.clone());
        Self::of(Self { backend, kind, page: *page, sink, protection, model, range, memory, file })
    }

    /// Attaches its range.
    fn of(rig: Self) -> Self {
        assert!(rig.sink.protection.set(rig.protection.clone()).is_ok());
        rig.protection.attach(rig.range(), &rig.as_sink(), Access::ReadWrite, Permit::for_test()).unwrap();
        rig
    }

    /// Another rig of the same kind.
    pub(super) fn twin(&self) -> Self {
        Self::new(self.backend, self.kind)
    }

    pub(super) fn as_sink(&self) -> Arc<dyn FaultSink> {
        self.sink.clone()
    }

    pub(super) fn mode(&self) -> Mode {
        self.protection.mode()
    }

    pub(super) fn range(&self) -> HostRange {
        self.range
    }

    pub(super) fn pages(&self, first: usize, count: usize) -> HostRange {
        HostRange::of_pages(self.at(first, 0), count, self.page)
    }

    pub(super) fn at(&self, page: usize, offset: usize) -> HostAddr {
        HostAddr(self.range.start().0 + page * self.page.bytes() + offset)
    }

    /// From here on stores to these pages are noticed. Forgets earlier writes, as far as the
    /// mechanism lets it.
    pub(super) fn arm(&self, first: usize, count: usize) {
        if self.mode() == Mode::Deferred {
            self.protection.harvest(self.pages(first, count), &mut |_| ()).unwrap();
        } else {
            self.protection.protect(self.pages(first, count)).unwrap();
        }
    }

    /// The same, but writers may open a page again before the mechanism has checked that it is
    /// protected: then it gives up.
    pub(super) fn arm_beside_writers(&self, first: usize, count: usize) {
        match self.mode() {
            Mode::Deferred => self.arm(first, count),
            _ => match self.protection.protect(self.pages(first, count)) {
                Ok(()) | Err(Error::System { errno: libc::EAGAIN, .. }) => {}
                Err(error) => panic!("{error}"),
            },
        }
    }

    /// Waits until no call of the sink is under way. A handler thread may still be at a message
    /// of a store that went through long ago, and would open a page that is protected
    /// meanwhile. The tracker counts un-protects in flight for this; a case that counts faults
    /// waits instead.
    pub(super) fn settle(&self) {
        while self.sink.inside.load(SeqCst) != 0 {
            std::thread::yield_now();
        }
    }

    /// Arms all pages, with no write noticed yet.
    pub(super) fn rearm(&self) {
        self.learned();
        self.settle();
        self.arm(0, PAGES);
    }

    /// The pages with writes noticed since the last call, in order. Arms the pages again in a
    /// deferred mechanism.
    pub(super) fn learned(&self) -> Vec<usize> {
        let mut written = self.sink.written.swap(0, SeqCst);
        if self.mode() == Mode::Deferred {
            let start = self.range().start().0;
            let mut note = |part: HostRange| {
                for index in 0..part.len() >> self.page.shift() {
                    written |= 1 << (((part.start().0 - start) >> self.page.shift()) + index);
                }
            };
            self.protection.harvest(self.range(), &mut note).unwrap();
        }
        (0..PAGES).filter(|page| written & 1 << page != 0).collect()
    }

    pub(super) fn store(&self, page: usize, offset: usize, value: u8) {
        let address = self.at(page, offset);
        // SAFETY: in the rig's mapping; a fault is resolved by the sink.
        let retire = || unsafe { address.as_ptr().write_volatile(value) };
        match &self.model {
            None => retire(),
            Some(model) => assert_eq!(model.store(address, gettid(), retire), Handled::Retry),
        }
    }

    /// Eight bytes, half of them on page `page` and half on the next.
    pub(super) fn store_over_boundary(&self, page: usize, value: u64) {
        let address = HostAddr(self.at(page + 1, 0).0 - 4);
        // SAFETY: as in `store`.
        let retire = || unsafe { address.as_ptr().cast::<u64>().write_unaligned(value) };
        match &self.model {
            None => retire(),
            Some(model) => {
                assert_eq!(model.store(address, gettid(), || ()), Handled::Retry);
                assert_eq!(model.store(self.at(page + 1, 0), gettid(), retire), Handled::Retry);
            }
        }
    }

    pub(super) fn load(&self, page: usize, offset: usize) -> u8 {
        // SAFETY: in the rig's mapping; reads never fault.
        unsafe { self.at(page, offset).as_ptr().read_volatile() }
    }

    pub(super) fn load_u64(&self, address: HostAddr) -> u64 {
        // SAFETY: as in `load`.
        unsafe { address.as_ptr().cast::<u64>().read_unaligned() }
    }

    /// Puts fresh memory of the same kind over one page, as a guest's MAP_FIXED does.
    pub(super) fn replace(&self, page: usize) {
        let (start, len) = (self.at(page, 0).as_ptr().cast(), self.page.bytes());
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces a page of the rig's own mapping.
        let mapped = unsafe {
            match &self.file {
                None => mmap_anonymous(start, len, access, MapFlags::PRIVATE | MapFlags::FIXED),
                Some(file) => mmap(start, len, access, MapFlags::SHARED | MapFlags::FIXED, file, 0),
            }
        };
        assert_eq!(mapped.unwrap(), start);
    }

    /// Leaves a hole at one page.
    pub(super) fn unmap(&self, page: usize) {
        self.unmap_bytes(page, self.page.bytes());
    }

    /// Leaves a hole at the first bytes of a page.
    pub(super) fn unmap_bytes(&self, page: usize, len: usize) {
        // SAFETY: a part of the rig's own mapping, which no code touches any more.
        unsafe { rustix::mm::munmap(self.at(page, 0).as_ptr().cast(), len) }.unwrap();
    }

    /// Makes a mapping of its own of a part of a page, read-only.
    pub(super) fn split(&self, page: usize, len: usize) {
        let part = HostRange::new(self.at(page, 0), len, PageSize::host()).unwrap();
        set_access(part, true, false).unwrap();
    }

    /// Lets the kernel write one byte to the page, by `read` from a pipe.
    pub(super) fn kernel_store(&self, page: usize, value: u8) -> rustix::io::Result<usize> {
        let (from, into) = rustix::pipe::pipe().unwrap();
        rustix::io::write(into, &[value]).unwrap();
        // SAFETY: the kernel writes one byte to the rig's mapping, or nothing.
        match unsafe { libc::read(std::os::fd::AsRawFd::as_raw_fd(&from), self.at(page, 0).as_ptr().cast(), 1) } {
            -1 => Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error()).unwrap()),
            count => Ok(count as usize),
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let detached = self.protection.detach(self.range(), Permit::for_test());
        assert!(detached.is_ok() || self.sink.lost.load(SeqCst), "{detached:?}");
    }
}

pub(super) fn gettid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get() as u32
}
