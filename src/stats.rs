//! Counters and histograms that stay on: some relaxed additions where something
//! happens.

mod histogram;

pub use histogram::Histogram;
pub(crate) use histogram::Recording;

use std::sync::atomic::{AtomicU64, Ordering};

/// One counter.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What is counted, shared by all who count.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)+
            pub(crate) histograms: Recordings,
        }

        /// What went on so far, as counts.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.get(),)+ }
            }
        }

        impl Stats {
            /// Every counter with its name, in the order of the fields.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

macro_rules! histograms {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// What goes into histograms, shared by all who record.
        #[derive(Debug, Default)]
        pub(crate) struct Recordings {
            $(pub(crate) $name: Recording,)+
        }

        /// What went on so far, as histograms. Each name ends in its unit.
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
    /// Nanoseconds from fault to resume, as far as this process sees it: from the
    /// handler's entry to its return. The kernel's way to the handler and back is
    /// not in it.
    fault_ns,
    /// Pages that one fault opened: its own, and those ahead of a stream.
    fault_opened_pages,
    /// Pages that one system call protected.
    protect_pages,
    /// Pages that one harvest asked the kernel about.
    harvest_scanned_pages,
    /// Pages that one harvest found written.
    harvest_found_pages,
    /// Nanoseconds that one `sync` of one deferred region took, its invalidations and
    /// the wait for another one with it.
    sync_ns,
}

counters! {
    /// Write faults that were resolved: each hit code or was beside it.
    faults,
    /// Those of them that hit a line with code.
    faults_code,
    /// Those of them that hit no line with code: data.
    faults_beside,
    /// Those of them, of either kind, that the handler thread resolved. It cannot
    /// tell a store of the guest's from a write of the kernel's for it.
    faults_by_thread,
    /// Pages that a fault opened ahead of a stream of writes, beside its own.
    opened_ahead,
    /// Pages that became checked.
    checked,
    /// Checked pages that cooled.
    cooled,
    /// Pages that harvests asked the kernel about.
    pages_scanned,
    /// Pages that a harvest found written.
    pages_harvested,
    /// Harvests: one for each run of pages that a `sync` asked about.
    harvests,
    /// Pages held for announced writes and changed mappings.
    pages_announced,
    /// Those of them that were held for an announced write of the kernel's.
    pages_kernel_written,
    /// Pages that were protected for a translator.
    protects,
    /// System calls that protected pages or took protection away.
    protection_calls,
    /// Translations that could not begin because the page was busy.
    begins_busy,
    /// Translations that became reachable.
    committed,
    /// Translations that became reachable where one had been before.
    retranslated,
    /// Dead blocks that became reachable again, their bytes being the same again.
    revived,
    /// Commits and revivals refused because a write came between.
    refused,
    /// Blocks that a write or an announcement made unreachable.
    invalidated,
    /// Blocks that are entered by a comparison from then on, after a write beside them.
    downgraded,
    /// Blocks removed by hand: found stale by that comparison, as a rule.
    removed,
    /// Blocks evicted: made unreachable because there were too many.
    evicted,
    /// Translations of dead and evicted blocks that are not kept, or not any more.
    given_up,
    /// Translations whose memory was freed.
    freed,
}
