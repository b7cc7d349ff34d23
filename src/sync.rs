//! Atomics, locks and fences: the standard library's, or loom's under
//! `--cfg loom`, so that the model checker runs the code that ships. In a test
//! build each operation of the standard library's can be interrupted, and under
//! `--cfg tsan` its locks and fences report their orderings to ThreadSanitizer.

pub(crate) use std::sync::Arc;
use std::sync::TryLockError;

#[cfg(all(not(loom), any(test, not(tsan))))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(any(loom, test, tsan)))]
pub(crate) use std::sync::atomic::fence;
#[cfg(not(any(loom, test)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

#[cfg(all(tsan, not(any(loom, test))))]
mod told;
#[cfg(all(tsan, not(any(loom, test))))]
pub(crate) use told::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, fence};

#[cfg(all(test, not(loom)))]
pub(crate) mod stepped;
#[cfg(all(test, not(loom)))]
pub(crate) use stepped::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence},
};

/// Locks `mutex`, even if a thread panicked with it. The guarded value is whole: of the
/// embedder's code only a hook runs under a lock of the library, and that lock guards
/// nothing else.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Locks `mutex` if no thread has it.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poison)) => Some(poison.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// A pause in a short spin; a scheduling point under loom.
#[inline]
pub(crate) fn spin_loop() {
    #[cfg(not(loom))]
    core::hint::spin_loop();
    #[cfg(loom)]
    loom::thread::yield_now();
}

/// Lets other threads run, for waits that last as long as a system call.
pub(crate) fn yield_now() {
    #[cfg(not(loom))]
    std::thread::yield_now();
    #[cfg(loom)]
    loom::thread::yield_now();
}

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
    /// Every thread passes a barrier between a kill and the opening of its pages.
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
