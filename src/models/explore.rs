//! Runs a model in loom and reports its result.

use core::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loom::thread::{self, JoinHandle};

use crate::sync::{LEFT_OUT, Rule};

thread_local! {
    /// The first violation of this model. All of loom's threads run on one.
    static VIOLATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The payload of the panic that ends an exploration.
struct Enough;

/// Reports that the model saw a violation. The model goes on to the end of this execution, so that
/// everything is dropped as usual.
pub(super) fn violation(what: impl Into<String>) {
    VIOLATION.with_borrow_mut(|first| {
        first.get_or_insert(what.into());
    });
}

/// Another thread of `model`, which is a bundle of handles.
pub(super) fn spawn<M: Clone + 'static>(model: &M, run: impl FnOnce(&M) + 'static) -> JoinHandle<()> {
    let model = model.clone();
    thread::spawn(move || run(&model))
}

/// Explores until the end or the first violation, with at most `preemptions`, or as many more as
/// the environment asks for.
fn explore(preemptions: usize, model: impl Fn() + Send + Sync + 'static) -> Option<String> {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.max(Some(preemptions));
    builder.max_branches = 20_000;
    let executions = Arc::new(AtomicUsize::new(0));
    let counted = executions.clone();
    let end = catch_unwind(AssertUnwindSafe(|| {
        builder.check(move || {
            // Between two executions nothing of the model is alive.
            if VIOLATION.with_borrow(Option::is_some) {
                panic_any(Enough);
            }
            counted.fetch_add(1, Relaxed);
            model();
        });
    }));
    println!("{} executions", executions.load(Relaxed));
    let violation = VIOLATION.take();
    match end {
        Err(panic) if violation.is_none() => std::panic::resume_unwind(panic),
        _ => violation,
    }
}

/// No interleaving violates the model.
pub(super) fn holds(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    if let Some(what) = explore(preemptions, model) {
        panic!("{what}");
    }
}

/// The model notices if `rule` is left out.
pub(super) fn fails_without(rule: Rule, model: impl Fn() + Send + Sync + 'static) {
    LEFT_OUT.set(Some(rule));
    let violation = explore(2, model);
    LEFT_OUT.set(None);
    let what = violation.unwrap_or_else(|| panic!("nothing was noticed without {rule:?}"));
    println!("without {rule:?}: {what}");
}
