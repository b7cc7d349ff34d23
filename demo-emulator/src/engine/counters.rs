//! The engine's own counters, in addition to the library's.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Relaxed: they are read at the end.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: AtomicU64,)+
        }

        /// The engine's counts.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct EngineStats {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> EngineStats {
                EngineStats { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl EngineStats {
            /// Translations of any tier.
            pub fn made(&self) -> u64 {
                self.blocks_decoded + self.blocks_compiled + self.regions_compiled
            }

            /// Every counter with its name.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }
        }
    };
}

counters! {
    /// Blocks decoded for tier 0.
    blocks_decoded,
    /// Blocks compiled by the quick compiler.
    blocks_compiled,
    /// Regions compiled.
    regions_compiled,
    /// Barriers that published compiled code.
    publications,
    /// First runs of code, by the interpreter: no block was made.
    first_runs,
    /// Runs handed to the interpreter because a page was busy or a write came.
    interpreter_runs,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
