//! Counters and histograms that are always on: each event costs some relaxed additions. A locked
//! addition takes several nanoseconds, so a fault counts no more than it has to.

mod histogram;

pub use histogram::Histogram;
pub(crate) use histogram::Recording;

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

/// One fault in this many is timed.
const FAULTS_PER_TIMED: u64 = 16;

impl Counters {
    /// Whether to time the fault that begins now.
    #[inline]
    pub(crate) fn times_fault(&self) -> bool {
        (self.faults_code.get() + self.faults_data.get()).is_multiple_of(FAULTS_PER_TIMED)
    }

    /// All histograms. A fault that opened its own page alone is in the counters only.
    pub(crate) fn histograms(&self) -> Histograms {
        let mut histograms = self.histograms.snapshot();
        let opened = &mut histograms.fault_opened_pages;
        opened.add(1, self.snapshot().faults.saturating_sub(opened.count()));
        histograms
    }
}

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    (
        sums { $($(#[doc = $sum_doc:literal])+ $sum:ident = $first:ident + $second:ident,)+ }
        $($(#[doc = $doc:literal])+ $name:ident,)+
    ) => {
        /// All counters, shared by the threads that count.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            pub(crate) histograms: Recordings,
        }

        /// Counts of events so far.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $sum_doc])+ pub $sum: u64,)+
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                let mut stats = Stats { $($sum: 0,)+ $($name: self.$name.get(),)+ };
                $(stats.$sum = stats.$first + stats.$second;)+
                stats
            }
        }

        impl Stats {
            /// Every counter with its name, in the order of the fields.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($sum), self.$sum),)+ $((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

macro_rules! histograms {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// All recordings, shared by the threads that record.
        #[derive(Debug, Default)]
        pub(crate) struct Recordings {
            $(pub(crate) $name: Recording,)+
        }

        /// Histograms of events so far. Each name ends in its unit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Histograms {
            $($(#[doc = $doc])+ pub $name: Histogram,)+
        }

        impl Recordings {
            pub(crate) fn snapshot(&self) -> Histograms {
                Histograms { $($name: self.$name.snapshot(),)+ }
            }
        }

        impl Histograms {
            /// Every histogram with its name, in the order of the fields.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, Histogram)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

histograms! {
    /// Nanoseconds from fault to resume, as far as this process sees it: from the handler's entry
    /// to its return. The kernel's path to the handler and back is not included. Only the first of
    /// about 16 faults is timed: reading the clock would be a tenth of the library's own time.
    fault_ns,
    /// Pages that one fault opened: its own, and those ahead of a stream.
    fault_opened_pages,
    /// Pages that one system call protected.
    protect_pages,
    /// Pages that one harvest asked the kernel about, with data pages between pages with code.
    harvest_scanned_pages,
    /// Pages with code that one harvest found written.
    harvest_found_pages,
    /// Nanoseconds that one `sync` of one deferred region took, including its invalidations and the
    /// wait for another `sync`.
    sync_ns,
}

counters! {
    sums {
        /// Write faults that were resolved: each hit code or data.
        faults = faults_code + faults_data,
    }
    /// Write faults that hit a line with code.
    faults_code,
    /// Write faults that hit no line with code: data.
    faults_data,
    /// Write faults of either kind that the handler thread resolved. It cannot tell a store by the
    /// guest from a write that the kernel makes for it.
    faults_by_thread,
    /// Pages that a fault opened ahead of a stream of writes, in addition to its own.
    opened_ahead,
    /// Pages that became self-checking.
    self_checking,
    /// Self-checking pages that cooled.
    cooled,
    /// Pages that harvests asked the kernel about, with data pages between pages with code.
    pages_scanned,
    /// Pages with code that a harvest found written.
    pages_harvested,
    /// Harvests: one for each span of pages that a `sync` asked about in one call.
    harvests,
    /// Pages held for announced writes and changed mappings.
    pages_announced,
    /// Held pages whose hold was for an announced write by the kernel.
    pages_kernel_written,
    /// Pages that were protected for a translator.
    protects,
    /// System calls that protected pages or took protection away.
    protection_calls,
    /// Translations that could not begin because the page was busy.
    begins_busy,
    /// Translations that became reachable.
    committed,
    /// Translations that replaced an earlier one of the same key.
    retranslated,
    /// Dead blocks that became reachable again because their bytes are the same again.
    revived,
    /// Commits and revivals refused because a write came between.
    refused,
    /// Blocks that a write or an announcement made unreachable.
    invalidated,
    /// Blocks that became self-checking because data on their page was written.
    downgraded,
    /// Blocks that the embedder removed, usually because their comparison failed.
    removed,
    /// Blocks evicted: made unreachable because there were too many.
    evicted,
    /// Translations of dead and evicted blocks that are not retained, or no longer retained.
    discarded,
    /// Translations whose memory was freed.
    freed,
}
