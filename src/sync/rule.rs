//! The rules of the protocol, by name. `guide::protocol` has the reason for each fence.

use super::primitives::{Ordering, memory_fence};

/// A rule of the protocol. A model leaves one out, to prove that it would notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    /// No translator begins while an un-protect is in flight.
    CountUnprotects,
    /// A thread that learned of a write fences before it walks the page's blocks.
    FenceBeforeWalk,
    /// An announcement of changed bytes fences before it looks at their pages.
    FenceBeforeLook,
    /// A commit fences between entering its block and asking for generations.
    FenceBeforeGenerations,
    /// A translator fences between its claim of a page's word and its look for a stop of the
    /// region.
    FenceBeforeStopCheck,
    /// A thread that stops a region fences before it looks at the pages' words.
    FenceBehindStop,
    /// A vCPU fences between its pin and its reads.
    FenceBehindPin,
    /// A handler fences between its kills and its look for the pins of other threads.
    FenceBeforeOthers,
    /// A `sync` fences, for regions that are fetched explicitly.
    FenceAtSync,
    /// The epoch fences between the end of its garbage's reach and its look at pins and walkers, and
    /// before it reads the garbage's epoch.
    FenceBeforePins,
    /// A walker fences between its counter and its second look at the epoch.
    FenceBehindWalker,
    /// A commit fences between the lists and its look for walkers.
    FenceBeforeWalkers,
    /// A search fences between its use of a slot and its look at the slot's state.
    FenceBehindUse,
    /// A thread that takes a range out fences between the slot's state and its look at its users.
    FenceBehindRetire,
    /// A change of the table of ranges fences between the change before and the first entry that it
    /// overwrites.
    FenceBeforeRefill,
    /// A search that found nothing fences before it looks whether the table was changed.
    FenceBeforeSecondLook,
    /// A mechanism that is about to be given up fences between its mark and its look at its ranges.
    FenceBehindGivenUp,
    /// A range that was attached fences before it looks whether its mechanism was given up.
    FenceBeforeGivenUpCheck,
    /// A commit exchanges its own `pending`; it does not overwrite a kill.
    PublishByExchange,
    /// Every kill goes through the cell, even a late one.
    KillCellFirst,
    /// Every downgrade goes through the cell, even a late one.
    DowngradeCellFirst,
    /// A downgrade exchanges the plain entry that it found.
    DowngradeByExchange,
    /// A downgrade kills a block that is about to be published.
    DowngradeKillsPending,
    /// The stale flag becomes valid once the generations are known to hold.
    FlagAfterGenerations,
    /// A translation is used again only while no walker may hold its old record.
    ReviveAfterWalkers,
    /// An address that an earlier block of the key had is used again only while no walker
    /// may hold the earlier block's record.
    OneAddressOneWalker,
    /// The epoch waits for walkers.
    WaitForWalkers,
    /// The epoch waits for pins.
    WaitForPins,
    /// A vCPU clears its front when cells were swept.
    ClearFronts,
    /// A sweep leaves the cells that have links.
    KeepLinked,
    /// Every thread passes a barrier between a kill and the opening of its pages, if another thread
    /// may look at translations.
    FenceThreads,
    /// A hold also handles pages that another thread is opening at the time.
    HoldBehindHandler,
}

/// Whether a model leaves `rule` out now; never in a build that ships.
#[inline(always)]
pub(crate) fn left_out(rule: Rule) -> bool {
    #[cfg(any(test, loom))]
    return LEFT_OUT.get() == Some(rule);
    #[cfg(not(any(test, loom)))]
    {
        let _ = rule;
        false
    }
}

#[cfg(any(test, loom))]
thread_local! {
    /// Of the thread that runs the model: loom's threads all run in it.
    pub(crate) static LEFT_OUT: core::cell::Cell<Option<Rule>> = const { core::cell::Cell::new(None) };
}

#[cfg(loom)]
loom::thread_local! {
    /// The fences that this thread of a model has passed.
    static FENCES: core::cell::Cell<u64> = core::cell::Cell::new(0);
}

/// Runs `body`. Returns the number of fences that this thread passed in it.
#[cfg(loom)]
pub(crate) fn count_fences(body: impl FnOnce()) -> u64 {
    let before = FENCES.with(core::cell::Cell::get);
    body();
    FENCES.with(core::cell::Cell::get) - before
}

/// The fence of `rule` for what this thread changed by read-modify-writes alone, or found changed by
/// another thread's. On x86-64 such an instruction is a full barrier, so only the compiler is held
/// back.
#[inline(always)]
pub(crate) fn fence_behind_rmw(rule: Rule) {
    if cfg!(any(not(target_arch = "x86_64"), loom, tsan, miri, test)) {
        fence(rule);
    } else {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// The sequentially consistent fence of `rule`.
#[inline(always)]
pub(crate) fn fence(rule: Rule) {
    if !left_out(rule) {
        #[cfg(loom)]
        FENCES.with(|fences| fences.set(fences.get() + 1));
        memory_fence(Ordering::SeqCst);
    }
}
