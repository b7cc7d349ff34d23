//! mprotect and SIGSEGV: the baseline, for kernels without userfaultfd.
//!
//! A store to a page without PROT_WRITE gives SIGSEGV with `SEGV_ACCERR`. Unlike a
//! userfaultfd this shares one set of bits with the guest's own mprotect. So the guest's
//! access is stored here, and a page that the guest made read-only stays read-only when it
//! is un-protected. Each state of pages is a VMA of its own: the kernel's limit
//! (`vm.max_map_count`) is reached at about 32,750 scattered pages.
//!
//! At that limit protecting fails, and opening may fail too: to open one page in the middle of
//! protected ones takes two more mappings. Opening all of them takes none. So
//! [`Protection::abandon`] un-protects the whole range, and a call that fails at one page goes on
//! behind it.
//!
//! A page has a [`Word`] once its neighbourhood was protected. A page without a word was
//! never protected, so the kernel still allows the guest's access: code that opens pages
//! skips it.
//!
//! # Two threads that change one page
//!
//! A handler opens a page while another thread carries out the guest's mprotect,
//! and the handler cannot wait for a lock.
//!
//! - **Changes** (protect, the guest's mprotect, attach, detach) take turns, under a lock. A change
//!   first writes the words, then waits until no thread is opening one of the pages, since that
//!   thread may use the word of before. Then it calls the kernel with the access that the words
//!   give, reads them again, and starts over if a page was opened meanwhile.
//! - **Opening** takes no lock. The thread enters itself in the word, asks the kernel to let stores
//!   through if the guest may store, and takes itself out of the word. It never takes access away.
//!
//! So the last call to the kernel was made with the last value of the word. Until a change
//! is over the kernel may refuse a store that the word allows. The change notes itself in
//! the word too, and [`Protection::access_changes`] tells the tracker. The tracker then has
//! the store tried again.

#[cfg(all(test, not(loom)))]
pub(crate) mod fake;
#[cfg(all(test, not(loom)))]
mod tests;
mod word;

use core::fmt;
use std::ops::Range;

use rustix::io::Errno;

use super::attached::Attached;
use super::attachments::Attachments;
use super::contract::{Access, Inherited, KernelWrites, Opening, Protection};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::mode::Mode;
use crate::page_table::Permit;
use crate::sparse::Sparse;
use crate::sync::{Arc, Mutex, MutexGuard, lock, yield_now};
use crate::sys::mmap;
use crate::sys::process::Owner;
use crate::sys::ranges::{Delivery, FaultSink};
use crate::sys::split::split_on_error;
use word::{Seen, Word};

/// No address of a process has more bits, on x86-64 and on aarch64.
const ADDRESS_BITS: u32 = 56;

/// Number of words that are made together.
const LEAF_PAGES: usize = 512;

/// The calls to the kernel. Async-signal-safe but for errno.
pub(crate) trait Kernel: fmt::Debug + Send + Sync + 'static {
    /// `mprotect`.
    fn set_access(&self, start: usize, len_bytes: usize, access: Access) -> Result<(), Errno>;

    /// Whether the page at `start` is mapped, as far as is known.
    fn is_mapped(&self, start: HostAddr, page: PageSize) -> bool;
}

/// The kernel of this process.
#[derive(Debug)]
pub(super) struct ThisKernel;

impl Kernel for ThisKernel {
    fn set_access(&self, start: usize, len_bytes: usize, access: Access) -> Result<(), Errno> {
        let access = match access {
            Access::None => region::Protection::NONE,
            Access::Read => region::Protection::READ,
            Access::ReadWrite => region::Protection::READ_WRITE,
        };
        mmap::protect_with_region(start, len_bytes, access)
    }

    fn is_mapped(&self, start: HostAddr, page: PageSize) -> bool {
        mmap::is_mapped(start, page)
    }
}

pub(crate) struct Mprotect<K: Kernel> {
    page: PageSize,
    kernel: K,
    attachments: Attachments,
    /// By the number of the page in this process.
    words: Sparse<Word>,
    /// Changes take turns by its lock.
    attached: Mutex<Attached>,
    owner: Owner,
}

impl<K: Kernel> fmt::Debug for Mprotect<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mprotect").field("attachments", &self.attachments).finish_non_exhaustive()
    }
}

impl<K: Kernel> Mprotect<K> {
    pub(crate) fn new(page: PageSize, kernel: K) -> Result<Self, Error> {
        Ok(Self {
            page,
            kernel,
            attachments: Attachments::new(Delivery::Sigsegv),
            words: Sparse::new(1 << (ADDRESS_BITS - page.shift()), LEAF_PAGES)?,
            attached: Mutex::default(),
            owner: Owner::this_process()?,
        })
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        lock(&self.attached)
    }

    fn pages_of(&self, range: HostRange) -> Range<usize> {
        range.start().0 >> self.page.shift()..range.end().0 >> self.page.shift()
    }

    fn check_addresses(&self, range: HostRange) -> Result<(), Error> {
        if self.pages_of(range).end > self.words.len() {
            let why = "this process has no such addresses";
            return Err(Error::BadRange { start: range.start().0 as u64, len: range.len() as u64, why });
        }
        Ok(())
    }

    fn not_attached(&self, page: usize, end: usize) -> Error {
        Error::BadRange {
            start: (page << self.page.shift()) as u64,
            len: ((end - page) << self.page.shift()) as u64,
            why: "it is not attached",
        }
    }

    /// The longest run of pages from `at` on that need equal access from the kernel, and
    /// that access. Pages without a word have `others`; `None` says that the kernel need
    /// not be asked.
    fn run(&self, at: usize, end: usize, others: Option<Access>) -> (usize, Option<Access>) {
        let mut next = at;
        let mut wanted = None;
        for (page, word) in self.words.existing(at..end) {
            if page > next {
                if *wanted.get_or_insert(others) != others {
                    return (next, wanted.flatten());
                }
                next = page;
            }
            let access = word.load().kernel_access();
            if *wanted.get_or_insert(access) != access {
                return (next, wanted.flatten());
            }
            next = page + 1;
        }
        if next < end && *wanted.get_or_insert(others) != others {
            return (next, wanted.flatten());
        }
        (end, wanted.flatten())
    }

    /// mprotect, over holes: ENOMEM on one page is a hole, or the VMA limit. After a
    /// refusal it goes on with the next pages, and returns the first errno.
    fn apply(&self, pages: Range<usize>, access: Access) -> Result<(), Errno> {
        let (start, len_bytes) = (pages.start << self.page.shift(), pages.len() << self.page.shift());
        // One call is enough in nearly every fault, and takes less of a signal stack.
        match self.kernel.set_access(start, len_bytes, access) {
            Ok(()) => Ok(()),
            Err(_) => self.apply_in_parts(pages, access),
        }
    }

    #[cold]
    #[inline(never)]
    fn apply_in_parts(&self, pages: Range<usize>, access: Access) -> Result<(), Errno> {
        let start = HostAddr(pages.start << self.page.shift());
        let mut done = Ok(());
        split_on_error(
            HostRange::of_pages(start, pages.len(), self.page),
            self.page,
            &[Errno::NOMEM],
            |start, len_bytes| self.kernel.set_access(start, len_bytes, access),
            |at, errno| {
                if done.is_ok() && self.kernel.is_mapped(at, self.page) {
                    done = Err(errno);
                }
                Ok(())
            },
        )
        .and(done)
    }

    /// Changes the words of `pages`, then the kernel's access to match, run by run of equal
    /// pages; to pages without a word the kernel gives `others`. After a refusal it goes on
    /// with the next pages, and returns the first errno.
    fn change(
        &self,
        _turn: &MutexGuard<'_, Attached>,
        pages: Range<usize>,
        others: Option<Access>,
        next: impl Fn(Seen) -> Seen,
    ) -> Result<(), Error> {
        self.for_words(&pages, |word| word.begin_change(&next));
        // In a fork's child the counted threads may not exist.
        if self.owner.is_current() {
            self.for_words(&pages, |word| {
                while word.is_being_opened() {
                    yield_now();
                }
            });
        }
        let mut done = Ok(());
        let mut at = pages.start;
        while at < pages.end {
            let (end, access) = self.run(at, pages.end, others);
            let applied = access.map_or(Ok(()), |access| self.apply(at..end, access));
            let is_settled = |(_, word): (usize, &Word)| word.load().kernel_access() == access;
            if self.words.existing(at..end).all(is_settled) {
                at = end;
                done = done.and(applied);
            }
        }
        self.for_words(&pages, Word::end_change);
        done.map_err(|errno| self.refused(&pages, errno))
    }

    /// Handlers call this, and their stack may be small: the loop over words ends before
    /// the kernel is called.
    fn for_words(&self, pages: &Range<usize>, each: impl Fn(&Word)) {
        self.words.existing(pages.clone()).for_each(|(_, word)| each(word));
    }

    /// Lets stores to `pages` through, if the guest may store there.
    fn open_entered(&self, pages: &Range<usize>) -> Result<(), Errno> {
        let mut done = Ok(());
        let mut at = pages.start;
        while at < pages.end {
            let (end, access) = self.run(at, pages.end, None);
            // The protection took nothing away from other pages.
            if access == Some(Access::ReadWrite) {
                done = done.and(self.apply(at..end, Access::ReadWrite));
            }
            at = end;
        }
        done
    }

    fn refused(&self, pages: &Range<usize>, errno: Errno) -> Error {
        Error::system("mprotect", pages.start << self.page.shift(), pages.len() << self.page.shift(), errno)
    }
}

impl<K: Kernel> Protection for Mprotect<K> {
    fn mode(&self) -> Mode {
        Mode::Mprotect
    }

    fn kernel_writes(&self) -> KernelWrites {
        KernelWrites::Refused
    }

    fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.check_addresses(range)?;
        self.attachments.reserve(range, sink)
    }

    fn attach(&self, range: HostRange, sink: &Arc<dyn FaultSink>, access: Access, _: Permit<'_>) -> Result<(), Error> {
        self.check_addresses(range)?;
        let pages = self.pages_of(range);
        self.attachments.add(range, sink, || {
            let mut attached = self.attached();
            attached.set(pages.clone(), access);
            self.change(&attached, pages, None, |seen| seen.with_access(Some(access)).open())
        })
    }

    /// No word gives an access to the kernel any more, so no call is made.
    fn forget(&self, range: HostRange) {
        let mut attached = self.attached();
        attached.remove(self.pages_of(range));
        let _ = self.change(&attached, self.pages_of(range), None, |seen| seen.with_access(None).open());
    }

    fn give_up(&self, range: HostRange) {
        self.attachments.give_up(range);
    }

    fn detach(&self, range: HostRange, _: Permit<'_>) -> Result<(), Error> {
        self.attachments.remove(range, || {
            let mut attached = self.attached();
            let mut done = Ok(());
            for part in attached.within(self.pages_of(range)) {
                let open = self.change(&attached, part.clone(), None, Seen::open);
                // After an error `abandon` tries once more, by the words.
                if open.is_ok() {
                    done = done.and(self.change(&attached, part, None, |seen| seen.with_access(None)));
                }
                done = done.and(open);
            }
            attached.remove(self.pages_of(range));
            done
        })
    }

    fn protect(&self, range: HostRange) -> Result<(), Error> {
        let pages = self.pages_of(range);
        let attached = self.attached();
        if let Some(missing) = attached.first_missing(pages.clone()) {
            return Err(self.not_attached(missing, pages.end));
        }
        let mut at = pages.start;
        while at < pages.end {
            self.words.make(at, |page| Word::new(attached.access_of(page)))?;
            at = (at / LEAF_PAGES + 1) * LEAF_PAGES;
        }
        self.change(&attached, pages, None, Seen::protected)
    }

    fn unprotect(&self, range: HostRange, _: Opening<'_>) -> Result<(), Error> {
        let pages = self.pages_of(range);
        self.for_words(&pages, Word::enter);
        let done = self.open_entered(&pages);
        self.for_words(&pages, Word::leave);
        done.map_err(|errno| self.refused(&pages, errno))
    }

    fn access_changes(&self, address: HostAddr) -> Option<u64> {
        self.words.get(address.0 >> self.page.shift()).map_or(Some(0), |word| word.load().changes())
    }

    fn harvest(&self, _: HostRange, _: &mut dyn FnMut(HostRange)) -> Result<(), Error> {
        Ok(()) // every write was reported when it was made
    }

    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Error> {
        let pages = self.pages_of(range);
        let mut attached = self.attached();
        if let Some(missing) = attached.first_missing(pages.clone()) {
            return Err(self.not_attached(missing, pages.end));
        }
        attached.set(pages.clone(), access);
        self.change(&attached, pages, Some(access), |seen| seen.with_access(Some(access)))
    }

    /// The words and the kernel's access are the child's already.
    fn open_in_child(&self) -> Result<Inherited, Error> {
        self.owner.take_over()?;
        Ok(Inherited::Protected)
    }

    /// Threads that were opening pages do not exist here. A page that one of them had entered is open by
    /// its word; the tracker opens it.
    fn take_over(&self, range: HostRange) -> Result<(), Error> {
        self.for_words(&self.pages_of(range), Word::forget_openers);
        self.attachments.take_over(range)
    }

    /// It was never detached, unless a move of it has begun.
    fn attach_again(
        &self,
        range: HostRange,
        sink: &Arc<dyn FaultSink>,
        access: Access,
        leave: Permit<'_>,
    ) -> Result<(), Error> {
        let missing = self.attached().first_missing(self.pages_of(range));
        if missing.is_none() { Ok(()) } else { self.attach(range, sink, access, leave) }
    }

    fn protect_again(&self, _: HostRange) -> Result<(), Error> {
        Ok(())
    }

    fn open_again(&self, range: HostRange, opening: Opening<'_>) -> Result<(), Error> {
        self.unprotect(range, opening)
    }
}

impl<K: Kernel> Drop for Mprotect<K> {
    fn drop(&mut self) {
        self.attachments.clear(|range| {
            // If the kernel refuses nothing more can be done.
            let _ = self.change(&self.attached(), self.pages_of(range), None, Seen::open);
        });
    }
}
