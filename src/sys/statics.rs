//! The static locks of the process, and their owner during a fork.
//!
//! A fork copies memory and one thread. A lock that another thread holds at that moment
//! stays locked in the child for ever, and the data behind it may be half changed. So each
//! guard over a fork has a [`Fork`](super::fork::Fork): as long as it lives, no other thread
//! has one of the static locks. [`All`] is all of them; `tests/fork_guards.rs` fails if a
//! static lock is missing there.
//!
//! # One thread, several guards
//!
//! A thread may hold the guards of two caches and a code buffer at once, and may use the
//! library meanwhile. So the locks are held by the thread and not by one guard: they are
//! given up with its last guard, and [`with`] works on what its own thread holds.
//!
//! # Order
//!
//! A thread inside an instance (a cache or a code buffer) may wait for a static lock, for example
//! when it adds a region. So a thread that holds the static locks never waits for an instance:
//! [`hold_behind`] lets go of them, waits for the locks of the instance, and takes them again.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sys::ranges::RangesWriter;

/// Whether the signal handlers are installed. Also serializes the setup of [`super::process`].
static HANDLERS_INSTALLED: Mutex<bool> = Mutex::new(false);

/// Every static lock.
pub(crate) struct All {
    /// Whether the signal handlers are installed.
    pub(crate) handlers_installed: MutexGuard<'static, bool>,
    /// Changes the table of tracked ranges.
    pub(crate) ranges: RangesWriter,
}

impl All {
    /// Takes every lock, in one order.
    fn lock() -> Self {
        let handlers_installed = HANDLERS_INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
        Self { handlers_installed, ranges: RangesWriter::lock() }
    }
}

/// The locks and guards of this thread.
struct Held {
    guards: usize,
    /// `None` without a guard, and while [`hold_behind`] waits for the locks of an instance.
    all: Option<All>,
}

thread_local! {
    static HELD: RefCell<Held> = const { RefCell::new(Held { guards: 0, all: None }) };
}

/// Runs `body` on the static data, with every lock held. `body` calls neither this nor code of
/// the embedder.
pub(crate) fn with<R>(body: impl FnOnce(&mut All) -> R) -> R {
    // At a thread's end its guards are gone already.
    let is_held = HELD.try_with(|held| held.borrow().all.is_some()).unwrap_or(false);
    if !is_held {
        return body(&mut All::lock());
    }
    HELD.with_borrow_mut(|held| body(held.all.get_or_insert_with(All::lock)))
}

/// Calls `take_locks`, which waits for the locks of one instance, and then takes
/// the static locks for one more guard of this thread.
pub(super) fn hold_behind<L>(take_locks: impl FnOnce() -> L) -> L {
    drop(HELD.with_borrow_mut(|held| held.all.take()));
    let locks = take_locks();
    let all = All::lock();
    HELD.with_borrow_mut(|held| {
        held.guards += 1;
        held.all = Some(all);
    });
    locks
}

/// One guard of this thread ends.
pub(super) fn let_go() {
    // At a thread's end, with a guard in a thread-local, the locks are given up already.
    let _ = HELD.try_with(|held| {
        let held = &mut *held.borrow_mut();
        held.guards -= 1;
        if held.guards == 0 {
            held.all = None;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fork::Fork;
    use crate::sys::ranges::ranges_writer_is_held;

    /// Whether another thread finds a lock free.
    fn one_is_free() -> bool {
        let look = || HANDLERS_INSTALLED.try_lock().is_ok() || !ranges_writer_is_held();
        std::thread::scope(|scope| scope.spawn(look).join().unwrap())
    }

    /// No other thread has a lock while there is a guard, and the guard's own thread goes on.
    #[test]
    fn a_guard_has_every_lock() {
        let (kept, first) = Fork::around(|| 7);
        assert_eq!(kept, 7);
        assert!(!one_is_free());
        with(|_| ()); // a thread that waited for itself would never come back
        let second = Fork::around(|| ()).1;
        drop(first);
        assert!(!one_is_free(), "the second guard holds them");
        drop(second);
    }

    /// A second guard waits for a thread that is inside the other instance and waits for
    /// a static lock.
    #[test]
    fn a_second_guard_waits_without_the_static_locks() {
        let instance = Mutex::new(());
        let (_, _first) = Fork::around(|| ());
        let (inside, is_inside) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _instance = instance.lock().unwrap();
                inside.send(()).unwrap();
                with(|_| ());
            });
            is_inside.recv().unwrap();
            let (_locks, _second) = Fork::around(|| instance.lock().unwrap());
        });
    }
}
