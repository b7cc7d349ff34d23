//! Atomics, locks and fences: the standard library's, or loom's under `--cfg loom`, so that the
//! model checker runs the code that ships. In a test build a test can interrupt each operation of
//! the standard library's. Under `--cfg tsan` the locks and fences report their orderings to
//! ThreadSanitizer.

pub(crate) use std::sync::Arc;
use std::sync::TryLockError;

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
