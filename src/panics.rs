//! Panics in the embedder's code in the middle of the library's work.
//!
//! The embedder's safe code (a policy, the drop of a payload, a hook) may panic whenever it is
//! called. If the library has more to do then, it finishes first: it holds the panic and resumes it
//! at the end.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The first panic of a batch of calls. Later panics are lost, except for the message that each of
/// them printed.
#[derive(Default)]
#[must_use = "a panic that is kept goes on by `resume`"]
pub(crate) struct FirstPanic(Option<Box<dyn Any + Send>>);

impl FirstPanic {
    /// Calls `run`; returns nothing if it panics. The caller is responsible for anything that `run`
    /// has left half done.
    pub(crate) fn catch<T>(&mut self, run: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(done) => Some(done),
            Err(panic) => {
                match &self.0 {
                    None => self.0 = Some(panic),
                    Some(_) => discard(panic),
                }
                None
            }
        }
    }

    /// Resumes the panic, if there was one, after all work is done. If the thread is already
    /// panicking, a second panic would end the process, so it is dropped.
    pub(crate) fn resume(self) {
        match self.0 {
            Some(panic) if !std::thread::panicking() => resume_unwind(panic),
            Some(panic) => discard(panic),
            None => {}
        }
    }
}

/// Drops the payload of a panic. If that panics too, the second payload is leaked.
fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        core::mem::forget(again);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_goes_on_when_all_is_done() {
        let mut done = 0;
        let end = catch_unwind(AssertUnwindSafe(|| {
            let mut panics = FirstPanic::default();
            for n in 0..4 {
                let result = panics.catch(|| if n % 2 == 1 { resume_unwind(Box::new(n)) } else { n });
                assert_eq!(result.is_none(), n % 2 == 1);
                done += 1;
            }
            panics.resume();
            done += 1;
        }));
        assert_eq!(done, 4);
        assert_eq!(end.unwrap_err().downcast_ref(), Some(&1));
        FirstPanic::default().resume();
    }

    /// The payload of a later panic is dropped, also if its own drop panics.
    #[test]
    fn later_panics_are_dropped() {
        use std::sync::Arc;

        struct PanicsAgain(Arc<()>);
        impl Drop for PanicsAgain {
            fn drop(&mut self) {
                resume_unwind(Box::new(self.0.clone()));
            }
        }
        let alive = Arc::new(());
        let mut panics = FirstPanic::default();
        for _ in 0..3 {
            let payload = alive.clone();
            let _: Option<()> = panics.catch(|| resume_unwind(Box::new(payload)));
        }
        assert_eq!(Arc::strong_count(&alive), 2, "the first one is kept");
        let payload = PanicsAgain(alive.clone());
        let _: Option<()> = panics.catch(|| resume_unwind(Box::new(payload)));
        let end = catch_unwind(AssertUnwindSafe(|| panics.resume()));
        assert!(end.unwrap_err().is::<Arc<()>>());
        // The clone in the second payload of the last one.
        assert_eq!(Arc::strong_count(&alive), 2);
    }
}
