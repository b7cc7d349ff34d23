//! The standard library's atomics for tests: before each operation a test may run code on the same
//! thread, like a signal handler.

use core::cell::{Cell, RefCell};
use core::ops::Deref;
use core::sync::atomic as std_atomic;

pub(crate) use std_atomic::Ordering;

type Hook = Box<dyn FnOnce()>;

thread_local! {
    /// Operations until the hook runs.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Runs `hook` on this thread before its operation number `step` from now,
/// counted from 0.
pub(crate) fn interrupt_at(step: usize, hook: impl FnOnce() + 'static) {
    HOOK.set(Some(Box::new(hook)));
    LEFT.set(Some(step));
}

/// Forgets the hook. Whether it ran.
pub(crate) fn was_interrupted() -> bool {
    LEFT.set(None);
    HOOK.take().is_none()
}

/// An operation is about to happen.
pub(crate) fn step() {
    match LEFT.get() {
        None => {}
        Some(0) => {
            LEFT.set(None);
            if let Some(hook) = HOOK.take() {
                hook();
            }
        }
        Some(left) => LEFT.set(Some(left - 1)),
    }
}

pub(crate) fn fence(order: Ordering) {
    step();
    std_atomic::fence(order);
}

/// Every operation on the atomic goes by a dereference, which is a step.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct Stepped<T>(T);

impl<T> Deref for Stepped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        step();
        &self.0
    }
}

macro_rules! stepped {
    ($($name:ident($value:ty))+) => {$(
        pub(crate) type $name = Stepped<std_atomic::$name>;

        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(std_atomic::$name::new(value))
            }
        }
    )+};
}

stepped! { AtomicBool(bool) AtomicU8(u8) AtomicU64(u64) AtomicUsize(usize) }

pub(crate) type AtomicPtr<T> = Stepped<std_atomic::AtomicPtr<T>>;

impl<T> AtomicPtr<T> {
    pub(crate) fn new(value: *mut T) -> Self {
        Self(std_atomic::AtomicPtr::new(value))
    }
}
