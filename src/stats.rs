//! Counters that stay on: one relaxed addition where something happens.

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

counters! {
    /// Write faults that were resolved.
    faults,
    /// Those of them that hit no line with code.
    faults_beside,
    /// Pages that a fault opened ahead of a stream of writes, beside its own.
    opened_ahead,
    /// Pages that became checked.
    checked,
    /// Checked pages that cooled.
    cooled,
    /// Pages that a harvest found written.
    pages_harvested,
    /// Harvests: one for each run of pages that a `sync` asked about.
    harvests,
    /// Pages held for announced writes and changed mappings.
    pages_announced,
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
    /// Translations whose memory was freed.
    freed,
}
