//! mprotect and SIGSEGV: the baseline that every kernel has.
//!
//! A store to a page without PROT_WRITE gives SIGSEGV with `SEGV_ACCERR`. Unlike
//! a userfaultfd this shares one set of bits with the guest's own mprotect, so
//! what the guest may do is kept here, a byte a page, and a page that the guest
//! made read-only is read-only when it is un-protected. Each state of pages is a
//! VMA of its own: the kernel's limit (`vm.max_map_count`) ends this at about
//! 32,750 scattered pages.
//!
//! At that limit not only protecting fails: to open one page in the middle of
//! protected ones takes two more mappings. Opening all of them takes none, so
//! [`Protection::abandon`] is the un-protect of the whole range, and a call that
//! fails at one page goes on behind it.
//!
//! # Two that change one page
//!
//! A handler un-protects while another thread carries out the guest's mprotect,
//! and the handler cannot wait for a lock. Each changes the page's byte first,
//! then calls the kernel with what the byte says, then looks at the byte again
//! and starts over if it moved. So the last call to the kernel was made with the
//! last value of the byte.
//!
//! # Safety
//!
//! The bytes are allocated as zeroes, which are valid atomics.
#![allow(unsafe_code)]

use core::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};

use region::Protection as RegionAccess;
use rustix::io::Errno;

use super::attachments::Attachments;
use super::{Access, FaultSink, KernelWrites, Mode, Protection};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::{Error, room_for};
use crate::sys::fault::Delivery;
use crate::sys::fork::Generation;
use crate::sys::mmap;
use crate::sys::pieces::for_each_piece;
use crate::sys::range_table::{InsertError, Lookup, RangeTable, SlotId};

/// Most ranges of one mechanism.
const MAX_RANGES: usize = 256;

/// The library holds the page read-only.
const PROTECTED: u8 = 0x80;
/// The low bits: what the guest may do.
const ACCESS: u8 = 0x03;

/// One byte for each page of a range. A page that was never asked about costs
/// no memory: the bytes differ from `fresh` in the bits that are set.
struct PageBytes {
    start: HostAddr,
    page: PageSize,
    fresh: u8,
    bytes: Box<[AtomicU8]>,
}

pub(super) struct Mprotect {
    page: PageSize,
    attachments: Attachments,
    pages: RangeTable<PageBytes, MAX_RANGES>,
    known: Mutex<Vec<(HostRange, SlotId)>>,
    generation: Generation,
}

impl core::fmt::Debug for Mprotect {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Mprotect").field("attachments", &self.attachments).finish_non_exhaustive()
    }
}

fn encode(access: Access) -> u8 {
    match access {
        Access::ReadWrite => 0,
        Access::Read => 1,
        Access::None => 2,
    }
}

/// What the kernel is told for a page's byte.
fn kernel_access(byte: u8) -> RegionAccess {
    match (byte & ACCESS, byte & PROTECTED) {
        (0, 0) => RegionAccess::READ_WRITE,
        (2, _) => RegionAccess::NONE,
        _ => RegionAccess::READ,
    }
}

impl PageBytes {
    fn new(range: HostRange, page: PageSize, access: Access) -> Result<Self, Error> {
        room_for::<AtomicU8>(range.len() >> page.shift(), "the pages' access")?;
        let bytes = Box::<[AtomicU8]>::new_zeroed_slice(range.len() >> page.shift());
        // SAFETY: zero is a valid atomic byte.
        let bytes = unsafe { bytes.assume_init() };
        Ok(Self { start: range.start(), page, fresh: encode(access), bytes })
    }

    fn access_of(&self, byte: &AtomicU8) -> RegionAccess {
        kernel_access(byte.load(SeqCst) ^ self.fresh)
    }

    fn index_of(&self, address: usize) -> usize {
        (address - self.start.0) >> self.page.shift()
    }

    /// Changes the bytes of `range`, then the kernel's access to match, run by
    /// run of equal pages. Goes on behind what the kernel refuses and gives the
    /// first errno. Takes no lock: see the module for who else does this.
    fn update(&self, range: HostRange, change: impl Fn(u8) -> u8) -> Result<(), Errno> {
        let bytes = &self.bytes[self.index_of(range.start().0)..self.index_of(range.end().0)];
        for byte in bytes {
            let changed = |value| Some(change(value ^ self.fresh) ^ self.fresh).filter(|new| *new != value);
            let _ = byte.fetch_update(SeqCst, SeqCst, changed);
        }
        let mut first = 0;
        let mut done = Ok(());
        while first < bytes.len() {
            let access = self.access_of(&bytes[first]);
            let run = bytes[first..].iter().take_while(|byte| self.access_of(byte) == access).count();
            if run == 0 {
                continue; // it moved between the two loads
            }
            let start = range.start().0 + (first << self.page.shift());
            let applied = apply(HostRange::of_pages(HostAddr(start), run, self.page), self.page, access);
            if bytes[first..first + run].iter().all(|byte| self.access_of(byte) == access) {
                first += run;
                done = done.and(applied);
            }
        }
        done
    }
}

/// mprotect, over holes: ENOMEM on one page is a hole, or the VMA limit.
fn apply(range: HostRange, page: PageSize, access: RegionAccess) -> Result<(), Errno> {
    let mut done = Ok(());
    for_each_piece(
        range,
        page,
        &[Errno::NOMEM],
        |start, len| mmap::protect_with_region(start, len, access),
        |at, errno| {
            if done.is_ok() && mmap::is_mapped(at, page) {
                done = Err(errno);
            }
            Ok(())
        },
    )
    .and(done)
}

impl Mprotect {
    pub(super) fn new(page: PageSize) -> Result<Self, Error> {
        Ok(Self {
            page,
            attachments: Attachments::new(Delivery::Sigsegv),
            pages: RangeTable::new(),
            known: Mutex::new(Vec::new()),
            generation: Generation::of_this_process()?,
        })
    }

    /// Changes all pages of `range`, which may lie in several attached ranges.
    fn update(&self, range: HostRange, change: impl Fn(u8) -> u8 + Copy) -> Result<(), Error> {
        let (mut at, end) = (range.start(), range.end());
        while at < end {
            let outcome = self.pages.with(at, |pages| {
                let pages_end = pages.start.0 + (pages.bytes.len() << self.page.shift());
                let count = (pages_end.min(end.0) - at.0) >> self.page.shift();
                let part = HostRange::of_pages(at, count, self.page);
                pages.update(part, change).map(|()| part.end())
            });
            at = match outcome {
                Lookup::Found(Ok(next)) => next,
                Lookup::Found(Err(errno)) => {
                    return Err(Error::system("mprotect", range.start().0, range.len(), errno));
                }
                Lookup::Retired | Lookup::Missing => {
                    return Err(Error::BadRange {
                        start: at.0 as u64,
                        len: (end.0 - at.0) as u64,
                        why: "it is not attached",
                    });
                }
            };
        }
        Ok(())
    }

    /// Enters what is new of `range`, mapped with `access`; gives the rest.
    fn insert_missing(&self, range: HostRange, access: Access) -> Result<Vec<HostRange>, Error> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing = vec![range];
        let old = known.iter().filter_map(|(part, _)| part.intersection(range)).collect();
        for (part, _) in known.iter() {
            missing = missing.into_iter().flat_map(|piece| piece.without(*part)).flatten().collect();
        }
        for part in missing {
            let id =
                self.pages.insert(part, PageBytes::new(part, self.page, access)?).map_err(|error| match error {
                    InsertError::Overlap => Error::AlreadyTracked { start: part.start().0, len: part.len() },
                    InsertError::Full => Error::Full { what: "tracked range", limit: MAX_RANGES },
                })?;
            known.push((part, id));
        }
        Ok(old)
    }

    /// The attached parts of `range`.
    fn parts_of(&self, range: HostRange) -> Vec<HostRange> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter_map(|(part, _)| part.intersection(range)).collect()
    }

    fn forget(&self, range: HostRange) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (gone, kept) = known.drain(..).partition(|(part, _)| range.contains_range(*part));
        *known = kept;
        let gone: Vec<(HostRange, SlotId)> = gone;
        for (_, id) in gone {
            self.pages.remove(id, !self.generation.is_current());
        }
    }
}

impl Protection for Mprotect {
    fn mode(&self) -> Mode {
        Mode::Mprotect
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
    }

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, access: Access) -> Result<(), Error> {
        self.attachments.add(range, sink, || {
            let old = self.insert_missing(range, access)?;
            old.into_iter().try_for_each(|part| self.update(part, |_| encode(access)))
        })
    }

    fn detach(&self, range: HostRange) -> Result<(), Error> {
        self.attachments.remove(range, || {
            self.parts_of(range).into_iter().try_for_each(|part| self.update(part, |byte| byte & ACCESS))
        })?;
        self.forget(range);
        Ok(())
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        self.update(range, |byte| byte | PROTECTED).inspect_err(|_| {
            // At the VMA limit this fails as well, and leaves what is harmless: protected pages.
            let _ = self.unprotect(range);
        })
    }

    fn unprotect(&self, range: HostRange) -> Result<(), Error> {
        self.update(range, |byte| byte & !PROTECTED)
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(()) // every write was told when it was made
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        self.update(range, move |byte| byte & PROTECTED | encode(access))
    }

    /// The pages' bytes and what the kernel makes of them are the child's already.
    fn continue_in_child(
        self: Arc<Self>,
        range: HostRange,
        sink: &mut dyn FnMut(Arc<dyn Protection>) -> Result<Arc<dyn FaultSink>, Error>,
    ) -> Result<(), Error> {
        self.attachments.remove(range, || Ok(()))?;
        self.attachments.add(range, &sink(self.clone())?, || Ok(()))
    }
}

impl Drop for Mprotect {
    fn drop(&mut self) {
        self.attachments.clear(|range| {
            let _ = self.update(range, |byte| byte & ACCESS);
        });
    }
}
