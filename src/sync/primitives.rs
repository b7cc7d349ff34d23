//! Atomics, locks and fences: the standard library's, or loom's under `--cfg loom`, so that the
//! model checker runs the code that ships. In a test build a test can interrupt each operation of
//! the standard library's. Under `--cfg tsan` the locks and fences report their orderings to
//! ThreadSanitizer.

use core::sync::atomic::{AtomicU64 as Statistic, Ordering::Relaxed};
pub(crate) use std::sync::Arc;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

#[cfg(all(not(loom), any(test, not(tsan))))]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(any(loom, test, tsan)))]
pub(crate) use std::sync::atomic::fence as memory_fence;
#[cfg(not(any(loom, test)))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering};

#[cfg(all(tsan, not(any(loom, test))))]
pub(crate) use super::tsan::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, fence as memory_fence};

#[cfg(all(test, not(loom)))]
pub(crate) use super::interruptible::{
    AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence as memory_fence,
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence as memory_fence},
};

/// Acquisitions that found their lock taken.
static LOCK_WAITS: Statistic = Statistic::new(0);

/// How often a thread of this process has waited for a lock of the library: another thread had it.
/// The difference of two calls tells how much the library's own locks slow threads down. Locks of the
/// kernel are not included, nor are those that a thread takes to add or remove a region.
pub fn lock_waits() -> u64 {
    LOCK_WAITS.load(Relaxed)
}

/// Takes a lock: at once, or by waiting for it. The guarded value is whole even if a thread panicked
/// with it: of the embedder's code only a hook runs under a lock of the library, and that lock guards
/// nothing else.
#[inline]
fn acquire<G>(at_once: impl FnOnce() -> TryLockResult<G>, wait: impl FnOnce() -> LockResult<G>) -> G {
    // Under loom a second way to take a lock is more interleavings, and nothing else.
    if !cfg!(loom)
        && let Some(guard) = unless_taken(at_once())
    {
        return guard;
    }
    LOCK_WAITS.fetch_add(1, Relaxed);
    wait().unwrap_or_else(PoisonError::into_inner)
}

fn unless_taken<G>(tried: TryLockResult<G>) -> Option<G> {
    match tried {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poison)) => Some(poison.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Locks `mutex`, even if a thread panicked with it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    acquire(|| mutex.try_lock(), || mutex.lock())
}

/// Locks `mutex` if no thread has it.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    unless_taken(mutex.try_lock())
}

/// Locks `lock` for reading, as [`lock`] does.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    acquire(|| lock.try_read(), || lock.read())
}

/// Locks `lock` for writing, as [`lock`] does.
pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    acquire(|| lock.try_write(), || lock.write())
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Other tests may wait for locks meanwhile: the number only grows.
    #[test]
    fn a_wait_is_counted_before_it_ends() {
        let (mutex, rw_lock) = (Mutex::new(0), RwLock::new(0));
        let waits: [&(dyn Fn() + Sync); 3] =
            [&|| drop(lock(&mutex)), &|| drop(read(&rw_lock)), &|| drop(write(&rw_lock))];
        for wait in waits {
            let (held, written, before) = (lock(&mutex), write(&rw_lock), lock_waits());
            std::thread::scope(|scope| {
                scope.spawn(wait);
                let since = Instant::now();
                while lock_waits() == before && since.elapsed() < Duration::from_secs(20) {
                    yield_now();
                }
                assert_ne!(lock_waits(), before);
                drop((held, written));
            });
        }
    }
}
