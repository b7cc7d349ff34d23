//! Panics of the embedder's code in the midst of the library's work.
//!
//! Safe code of the embedder's (a policy, the drop of a payload, a hook) may panic
//! whenever it is called. If the library has more to do then, it finishes first: the
//! panic is kept, and goes on when all is done.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The first panic of a batch of calls. The later ones are lost, but for the message
/// that each of them printed.
#[derive(Default)]
#[must_use = "a panic that is kept goes on by `resume`"]
pub(crate) struct FirstPanic(Option<Box<dyn Any + Send>>);

impl FirstPanic {
    /// Calls `run`; nothing if it panics. The caller answers for what `run` has left half
    /// done.
    pub(crate) fn catch<T>(&mut self, run: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(done) => Some(done),
            Err(panic) => {
                match &self.0 {
                    None => self.0 = Some(panic),
                    // What was thrown may panic again when it is dropped.
                    Some(_) => core::mem::forget(panic),
                }
                None
            }
        }
    }

    /// All is done: the panic goes on, if there was one. A thread that panics already
    /// has its panic: a second one would end the process.
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
