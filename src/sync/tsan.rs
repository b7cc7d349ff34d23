//! Locks and fences that ThreadSanitizer understands, under `--cfg tsan`.
//!
//! ThreadSanitizer sees instrumented code only. A standard library that comes built is not
//! instrumented, so it misses the slow paths of the locks. It also has no model of fences. So each
//! lock here has an atomic that repeats its ordering, and a fence is a read-modify-write of one
//! global atomic. That orders more than a fence does: the loom models find the fences that are
//! missing.

use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};

static FENCE: AtomicU64 = AtomicU64::new(0);

pub(crate) fn fence(order: Ordering) {
    core::sync::atomic::fence(order);
    FENCE.fetch_add(1, Ordering::AcqRel);
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    told: AtomicU64,
    lock: std::sync::Mutex<T>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { told: AtomicU64::new(0), lock: std::sync::Mutex::new(value) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Guard::of(&self.told, self.lock.lock())
    }

    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        Guard::of_tried(&self.told, self.lock.try_lock())
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T> {
    told: AtomicU64,
    lock: std::sync::RwLock<T>,
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { told: AtomicU64::new(0), lock: std::sync::RwLock::new(value) }
    }

    pub(crate) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        Guard::of(&self.told, self.lock.read())
    }

    pub(crate) fn try_read(&self) -> TryLockResult<RwLockReadGuard<'_, T>> {
        Guard::of_tried(&self.told, self.lock.try_read())
    }

    pub(crate) fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        Guard::of_tried(&self.told, self.lock.try_write())
    }

    pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        Guard::of(&self.told, self.lock.write())
    }
}

pub(crate) type MutexGuard<'a, T> = Guard<'a, std::sync::MutexGuard<'a, T>>;
pub(crate) type RwLockReadGuard<'a, T> = Guard<'a, std::sync::RwLockReadGuard<'a, T>>;
pub(crate) type RwLockWriteGuard<'a, T> = Guard<'a, std::sync::RwLockWriteGuard<'a, T>>;

/// A guard of the standard library's, which is dropped after the atomic was told.
#[derive(Debug)]
pub(crate) struct Guard<'a, G> {
    told: &'a AtomicU64,
    guard: G,
}

impl<'a, G> Guard<'a, G> {
    fn of(told: &'a AtomicU64, locked: LockResult<G>) -> LockResult<Self> {
        let _ = told.load(Ordering::Acquire);
        match locked {
            Ok(guard) => Ok(Self { told, guard }),
            Err(poison) => Err(PoisonError::new(Self { told, guard: poison.into_inner() })),
        }
    }

    fn of_tried(told: &'a AtomicU64, tried: TryLockResult<G>) -> TryLockResult<Self> {
        let locked = match tried {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poison)) => Err(poison),
            Err(TryLockError::WouldBlock) => return Err(TryLockError::WouldBlock),
        };
        Self::of(told, locked).map_err(TryLockError::Poisoned)
    }
}

impl<G: Deref> Deref for Guard<'_, G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<'_, G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<G> Drop for Guard<'_, G> {
    fn drop(&mut self) {
        self.told.fetch_add(1, Ordering::Release);
    }
}
