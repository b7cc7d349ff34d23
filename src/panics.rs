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
                    // Dropping the payload of a panic may panic again.
                    Some(_) => core::mem::forget(panic),
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
            Some(panic) => core::mem::forget(panic),
            None => {}
        }
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
}
