//! Write-protection on kernels that protect populated pages only (before Linux 6.4).
//!
//! Without `UFFD_FEATURE_WP_UNPOPULATED` a protecting call skips each page of anonymous memory to
//! which the page table does not lead, and reports success. A store to such a page is never
//! noticed. So the page is *populated*: the kernel reads one byte of it, for which it puts the zero
//! page there. Then it is protected, and then `/proc/self/pagemap` is asked. A page that it does not
//! report as protected was not populated, or it vanished between the read and the call. It is
//! populated and protected again.
//!
//! # What may make a page vanish
//!
//! | way | treatment |
//! |---|---|
//! | MADV_DONTNEED, guard pages, another mapping | the contents change, so the embedder announces it; a claim of the page waits |
//! | MADV_FREE, until the page is written again | the same: the kernel may discard the contents at any time, on every kernel |
//! | swap, migration, NUMA balancing, a fork, mprotect | the entry of the page table stays, and has the protection |
//! | a huge page that is formed | no page of it is protected, or the kernel refuses |
//! | same-page merging (KSM) | the page stays, but its protection goes, on every kernel: tracked memory is taken out of it (`protection::uffd_ranges`) |
//!
//! So the check is a second line of defence, and it is the only one against a hole in this list.
//! Linux before 5.14 reports no protection in the pagemap. There the check is that the page is
//! populated before the call and after it: this misses a page that vanished and came back.
//!
//! # Parts smaller than a huge page
//!
//! No call covers a whole huge page. Kernels before a fix of March 2023 protect the huge zero page
//! in one piece, and its pages lose the protection when one of them is opened. A call for a part
//! splits it first.
//!
//! # Safety
//!
//! `process_vm_readv` of this process copies one byte of a page into a buffer of ours. A page that
//! cannot be read is an error, not a fault.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::mmap::{Mapping, is_mapped};
use crate::sys::pagemap::{Pagemap, entry};
use crate::sys::uffd_calls;

/// Limit of host pages of one call. Smaller than a huge page: see the module head.
const BATCH_PAGES: usize = 64;

/// Limit of tries for a page that vanishes each time.
const TRIES: usize = 16;

/// What the entry of a page in the pagemap must say after the page was protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Check {
    /// That it is protected.
    Protected,
    /// That it is populated, as kernels before 5.14 say no more.
    Populated,
}

impl Check {
    fn is_met(self, page: u64) -> bool {
        let bits = match self {
            Self::Protected => entry::UFFD_WP,
            Self::Populated => entry::PRESENT | entry::SWAPPED,
        };
        page & bits != 0
    }
}

/// Populates pages and checks them, for one userfaultfd.
#[derive(Debug)]
pub(crate) struct Populating {
    pub(crate) pagemap: Pagemap,
    check: Check,
}

impl Populating {
    pub(crate) fn new(check: Check) -> Result<Self, Error> {
        Ok(Self { pagemap: Pagemap::open(PageSize::host())?, check })
    }

    /// Protects `range` by `protect`, which skips unmapped pieces and pages that are not populated.
    pub(crate) fn protect(
        &self,
        range: HostRange,
        protect: impl Fn(HostRange) -> Result<(), Error>,
    ) -> Result<(), Error> {
        protect_populated(range, self.check, &ThisKernel { pagemap: &self.pagemap, protect })
    }
}

/// The kernel, as [`protect_populated`] needs it.
trait Kernel {
    /// Protects the populated pages of `range`, and skips the unmapped ones.
    fn protect(&self, range: HostRange) -> Result<(), Error>;
    /// Reads the pagemap's entries from `start` on.
    fn entries(&self, start: HostAddr, into: &mut [u64]) -> Result<(), Error>;
    /// Reads one byte.
    fn read(&self, address: HostAddr) -> Result<(), Errno>;
    fn is_mapped(&self, page_start: HostAddr) -> bool;
}

struct ThisKernel<'a, P> {
    pagemap: &'a Pagemap,
    protect: P,
}

impl<P: Fn(HostRange) -> Result<(), Error>> Kernel for ThisKernel<'_, P> {
    fn protect(&self, range: HostRange) -> Result<(), Error> {
        (self.protect)(range)
    }

    fn entries(&self, start: HostAddr, into: &mut [u64]) -> Result<(), Error> {
        self.pagemap.entries(start, into)
    }

    fn read(&self, address: HostAddr) -> Result<(), Errno> {
        read_byte(address)
    }

    fn is_mapped(&self, page_start: HostAddr) -> bool {
        is_mapped(page_start, PageSize::host())
    }
}

fn protect_populated(range: HostRange, check: Check, kernel: &impl Kernel) -> Result<(), Error> {
    let page = PageSize::host();
    let pages = range.len() >> page.shift();
    for first in (0..pages).step_by(BATCH_PAGES) {
        let start = HostAddr(range.start().0 + (first << page.shift()));
        protect_batch(HostRange::of_pages(start, BATCH_PAGES.min(pages - first), page), check, kernel)?;
    }
    Ok(())
}

fn protect_batch(batch: HostRange, check: Check, kernel: &impl Kernel) -> Result<(), Error> {
    let page = PageSize::host();
    let at = |index: usize| HostAddr(batch.start().0 + (index << page.shift()));
    let mut entries = [u64::MAX; BATCH_PAGES];
    let entries = &mut entries[..batch.len() >> page.shift()];
    if check == Check::Populated {
        kernel.entries(batch.start(), entries)?;
    }
    for _ in 0..TRIES {
        let missing = entries.iter().enumerate().filter(|(_, entry)| !check.is_met(**entry));
        for (index, _) in missing {
            if let Err(errno) = kernel.read(at(index))
                && kernel.is_mapped(at(index))
            {
                return Err(Error::system("process_vm_readv", at(index).0, page.bytes(), errno));
            }
        }
        kernel.protect(batch)?;
        kernel.entries(batch.start(), entries)?;
        let mut missing = entries.iter().enumerate().filter(|(_, entry)| !check.is_met(**entry));
        if missing.all(|(index, _)| !kernel.is_mapped(at(index))) {
            return Ok(());
        }
    }
    Err(Error::system("UFFDIO_WRITEPROTECT", batch.start().0, batch.len(), Errno::AGAIN))
}

/// Whether this process can populate pages and read the pagemap; if not, the call that was refused.
pub(crate) fn ask() -> Result<(), (&'static str, Errno)> {
    let byte = 1_u8;
    read_byte(HostAddr::of(&raw const byte)).map_err(|errno| ("process_vm_readv", errno))?;
    Pagemap::ask_entry(HostAddr::of(&raw const byte))
        .map_or_else(|errno| Err(("/proc/self/pagemap", errno)), |_| Ok(()))
}

/// The check for pages that `uffd`, which is negotiated, protects.
#[cfg(feature = "userfaultfd")]
pub(crate) fn check_on(uffd: BorrowedFd<'_>) -> Result<Check, Error> {
    ask().map_err(|(call, errno)| Error::system(call, 0, 0, errno))?;
    Ok(if pagemap_tells(uffd) { Check::Protected } else { Check::Populated })
}

/// Whether the pagemap reports the protection of a page by `uffd`, which is negotiated.
pub(crate) fn pagemap_tells(uffd: BorrowedFd<'_>) -> bool {
    let page = PageSize::host();
    let Ok(memory) = Mapping::anonymous(page.bytes(), page) else { return false };
    let (start, len) = (memory.range().start(), memory.range().len());
    let told = read_byte(start)
        .and_then(|()| uffd_calls::register(uffd, start.0, len))
        .and_then(|()| uffd_calls::protect(uffd, start.0, len))
        .and_then(|()| Pagemap::ask_entry(start));
    told.is_ok_and(|entry| Check::Protected.is_met(entry))
}

/// Reads one byte of this process, which populates its page. A page without access is an error.
pub(crate) fn read_byte(address: HostAddr) -> Result<(), Errno> {
    let mut byte = 0_u8;
    let local = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let remote = libc::iovec { iov_base: address.as_ptr().cast(), iov_len: 1 };
    // SAFETY: the kernel writes one byte to `byte`.
    match unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) } {
        1 => Ok(()),
        0 => Err(Errno::FAULT),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::FAULT)),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const START: HostAddr = HostAddr(0x10_0000);

    /// A page of [`Injected`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct Page {
        mapped: bool,
        readable: bool,
        populated: bool,
        protected: bool,
    }

    const UNTOUCHED: Page = Page { mapped: true, readable: true, populated: false, protected: false };

    /// A kernel before 6.4, in which pages vanish at chosen steps. A step is one page of one call.
    struct Injected {
        pages: RefCell<Vec<Page>>,
        /// The same at the last look at each page.
        looked_at: RefCell<Vec<Page>>,
        /// Whether the pagemap reports a protection.
        tells: bool,
        step: Cell<usize>,
        /// At which step which page vanishes.
        vanish: Vec<(usize, usize)>,
        /// At which step the guest reads which page.
        touch: Vec<(usize, usize)>,
        /// A page that vanishes before each step.
        never_there: Option<usize>,
        reads: Cell<usize>,
        longest_call: Cell<usize>,
    }

    impl Injected {
        fn new(pages: Vec<Page>, check: Check) -> Self {
            Self {
                looked_at: RefCell::new(pages.clone()),
                pages: RefCell::new(pages),
                tells: check == Check::Protected,
                step: Cell::new(0),
                vanish: Vec::new(),
                touch: Vec::new(),
                never_there: None,
                reads: Cell::new(0),
                longest_call: Cell::new(0),
            }
        }

        fn range(&self) -> HostRange {
            HostRange::of_pages(START, self.pages.borrow().len(), PageSize::host())
        }

        /// The next step, at the page of `address`.
        fn at(&self, address: HostAddr) -> (usize, Page) {
            let step = self.step.replace(self.step.get() + 1);
            let mut pages = self.pages.borrow_mut();
            let now = self.vanish.iter().filter(|(at, _)| *at == step).map(|(_, page)| *page);
            for page in now.chain(self.never_there) {
                (pages[page].populated, pages[page].protected) = (false, false);
            }
            for (_, page) in self.touch.iter().filter(|(at, _)| *at == step) {
                pages[*page].populated = true;
            }
            let index = (address.0 - START.0) >> PageSize::host().shift();
            (index, pages[index])
        }

        fn addresses(range: HostRange) -> impl Iterator<Item = HostAddr> {
            (range.start().0..range.end().0).step_by(PageSize::host().bytes()).map(HostAddr)
        }
    }

    impl Kernel for Injected {
        fn protect(&self, range: HostRange) -> Result<(), Error> {
            self.longest_call.set(self.longest_call.get().max(range.len()));
            for address in Self::addresses(range) {
                let (index, page) = self.at(address);
                self.pages.borrow_mut()[index].protected |= page.populated;
            }
            Ok(())
        }

        fn entries(&self, start: HostAddr, into: &mut [u64]) -> Result<(), Error> {
            let range = HostRange::of_pages(start, into.len(), PageSize::host());
            for (address, into) in Self::addresses(range).zip(into) {
                let (index, page) = self.at(address);
                self.looked_at.borrow_mut()[index] = page;
                let told = if page.protected && self.tells { entry::UFFD_WP } else { 0 };
                *into = told | if page.populated { entry::PRESENT } else { 0 };
            }
            Ok(())
        }

        fn read(&self, address: HostAddr) -> Result<(), Errno> {
            self.reads.set(self.reads.get() + 1);
            let (index, page) = self.at(address);
            if !page.mapped || !page.readable {
                return Err(Errno::FAULT);
            }
            self.pages.borrow_mut()[index].populated = true;
            Ok(())
        }

        fn is_mapped(&self, page_start: HostAddr) -> bool {
            self.at(page_start).1.mapped
        }
    }

    const CHECKS: [Check; 2] = [Check::Protected, Check::Populated];

    /// Two pages vanish, each at any step: between the populating read and the protecting call,
    /// between that and the look, or in the next try. When the call has returned, each page was
    /// protected at the last look at it.
    #[test]
    fn a_page_that_vanishes_is_populated_and_protected_again() {
        const STEPS: usize = 24;
        for check in CHECKS {
            for (first, second) in (0..STEPS).flat_map(|first| (first..STEPS).map(move |second| (first, second))) {
                for (page, other) in [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1)] {
                    let mut kernel = Injected::new(vec![UNTOUCHED; 3], check);
                    kernel.vanish = vec![(first, page), (second, other)];
                    assert_eq!(protect_populated(kernel.range(), check, &kernel), Ok(()));
                    let seen = kernel.looked_at.borrow();
                    assert!(seen.iter().all(|page| page.protected), "{check:?} {:?}: {seen:?}", kernel.vanish);
                }
            }
        }
    }

    /// A page that the guest reads between the protecting call and the look is populated at the look,
    /// and the call has skipped it. So pages are populated before the first call, unless the look
    /// tells whether they are protected.
    #[test]
    fn a_page_that_the_guest_reads_meanwhile_is_protected() {
        for check in CHECKS {
            // Alone: if another page is missing, a further call protects both.
            for step in 0..8 {
                let mut kernel = Injected::new(vec![UNTOUCHED], check);
                kernel.touch = vec![(step, 0)];
                assert_eq!(protect_populated(kernel.range(), check, &kernel), Ok(()));
                assert!(kernel.pages.borrow().iter().all(|page| page.protected), "{check:?}, step {step}");
            }
        }
    }

    #[test]
    fn a_page_that_is_never_there_is_an_error_in_the_end() {
        for check in CHECKS {
            let mut kernel = Injected::new(vec![UNTOUCHED; 2], check);
            kernel.never_there = Some(1);
            let error = protect_populated(kernel.range(), check, &kernel).unwrap_err();
            assert!(matches!(error, Error::System { errno: libc::EAGAIN, .. }), "{error}");
        }
    }

    #[test]
    fn a_page_without_access_is_an_error_unless_it_is_populated() {
        for check in CHECKS {
            let secret = Page { readable: false, ..UNTOUCHED };
            let kernel = Injected::new(vec![UNTOUCHED, Page { populated: true, ..secret }], check);
            assert_eq!(protect_populated(kernel.range(), check, &kernel), Ok(()));
            assert!(kernel.pages.borrow().iter().all(|page| page.protected));

            let kernel = Injected::new(vec![UNTOUCHED, secret], check);
            let error = protect_populated(kernel.range(), check, &kernel).unwrap_err();
            assert!(matches!(error, Error::System { errno: libc::EFAULT, .. }), "{error}");
            assert!(error.to_string().contains("6.4"), "{error}");
        }
    }

    #[test]
    fn an_unmapped_page_is_nothing_to_protect() {
        for check in CHECKS {
            let hole = Page { mapped: false, ..UNTOUCHED };
            let kernel = Injected::new(vec![hole, UNTOUCHED, hole], check);
            assert_eq!(protect_populated(kernel.range(), check, &kernel), Ok(()));
            assert!(kernel.pages.borrow()[1].protected);
        }
    }

    /// A huge page has 512 pages on most processors.
    #[test]
    fn no_call_covers_a_huge_page_and_none_reads_what_is_populated() {
        for check in CHECKS {
            let mut pages = vec![Page { populated: true, ..UNTOUCHED }; 1200];
            pages[700] = UNTOUCHED;
            let kernel = Injected::new(pages, check);
            assert_eq!(protect_populated(kernel.range(), check, &kernel), Ok(()));
            assert!(kernel.pages.borrow().iter().all(|page| page.protected));
            assert!(kernel.longest_call.get() < 512 * PageSize::host().bytes());
            assert_eq!(kernel.reads.get(), 1);
        }
    }
}
