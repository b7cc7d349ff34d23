//! The observer: the layer above the tracker, which is told of writes.

use crate::addr::{GuestAddr, HostAddr};
use crate::protection::FaultLock;
use crate::sync::Arc;

/// The reason why a page's translations become stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A store hit the protected page and is about to retire.
    Store {
        /// The address that faulted. The extent of the store is not known here.
        byte: GuestAddr,
        /// The host instruction that stored, if known.
        pc: Option<HostAddr>,
        /// Kernel thread id of the storing thread, if another thread reports the store. 0 if
        /// the storing thread itself reports it, or if it is not known.
        tid: u32,
    },
    /// A harvest found the page written.
    Harvest,
    /// An announced write by the kernel, or an announced change of the mapping.
    Announced,
    /// A stream of stores is about to reach the page: it was opened ahead.
    Ahead,
    /// No write: the page was self-checking and has cooled. Translations made from it from now on
    /// need not compare themselves.
    Cooled,
    /// The page is tracked no more.
    Lost,
}

/// One write, as [`PageObserver::written`] gets it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct PageWrite {
    /// First byte of the page.
    pub page: GuestAddr,
    /// How the tracker learned of the write.
    pub cause: Cause,
}

/// The layer that makes translations of a page unreachable.
///
/// # A lock of the embedder's
///
/// One lock of the embedder's may be held around every call of the tracker and around
/// [`handle_fault`](crate::protection::handle_fault). If it always is, `written` and
/// `data_written` run under it, before the page opens, and may use all that it guards. For that:
///
/// - Regions in modes sigbus and mprotect are added with
///   [`embedder_owns_signals`](super::RegionOptions::embedder_owns_signals), and the embedder's handler
///   takes the lock before it calls `handle_fault`.
/// - [`PageObserver::fault_lock`] returns the lock: the handler thread of mode thread takes it.
/// - A thread that holds the lock stores to no tracked page, unless it announced the write
///   ([`Tracker::prepare_kernel_write`](super::Tracker::prepare_kernel_write)): the
///   fault would wait for the lock.
///
/// # Safety
///
/// `written` and `data_written` run in signal handlers, by any number of threads at once: they are
/// async-signal-safe (no lock, no allocation, no thread-local, no panic, no access to tracked
/// memory, errno preserved). If the embedder's lock is held around each fault, they run by one
/// thread at a time, and only the first three may be relaxed: the thread that stored may be
/// interrupted at any store to tracked memory, and no lock may be taken that a thread may hold while it
/// calls the tracker or stores there. They never call the tracker.
#[allow(unsafe_code)]
pub unsafe trait PageObserver: Send + Sync + 'static {
    /// The observer's data for each page.
    type Data: PageData;

    /// The bytes of a page are about to change or have changed. When this returns, no
    /// translation of them can be reached.
    fn written(&self, data: &Self::Data, write: &PageWrite);

    /// [`PageObserver::written`] for many pages, by their first bytes, that a harvest found, outside
    /// signal handlers. Together they may cost less than one by one.
    fn written_all(&self, pages: &[(GuestAddr, &Self::Data)]) {
        for &(page, data) in pages {
            self.written(data, &PageWrite { page, cause: Cause::Harvest });
        }
    }

    /// The page is self-checking from now on: it stays writable, and its bytes change without
    /// further notice. When this returns, each translation of it compares the bytes before each
    /// use, or cannot be reached.
    fn data_written(&self, data: &Self::Data, write: &PageWrite) {
        self.written(data, write);
    }

    /// Whether a thread other than the calling one may be looking at translations now. Asked
    /// between `written` or `data_written` and the opening of the page. A core may run a look ahead
    /// of its own earlier store: the look finds the translation, and the store finds the page open.
    /// If this returns `true`, all threads pass a barrier first, which is a system call.
    ///
    /// `false` is right only if each thread that looks at translations passes a sequentially
    /// consistent fence between this call and its next look.
    fn others_may_look(&self) -> bool {
        true
    }

    /// The embedder's lock around each fault, for the handler thread of mode thread: see the head.
    /// Asked when a region is added. Without a lock the handler thread takes none.
    fn fault_lock(&self) -> Option<Arc<dyn FaultLock>> {
        None
    }
}

/// The data of an observer for one page.
pub trait PageData: Default + Send + Sync + 'static {}

impl<T: Default + Send + Sync + 'static> PageData for T {}
