//! Programs that write themselves, in every mode, in tier 0 and translated, against
//! the interpreter: see `guest_tests::streams`.

#![no_main]

use std::cell::RefCell;

use guest_tests::streams::Comparison;
use libfuzzer_sys::{Corpus, fuzz_target};

thread_local! {
    static COMPARISON: RefCell<Comparison> = RefCell::new(Comparison::new());
}

fuzz_target!(init: {
    // Names each mode that this machine lacks, once.
    COMPARISON.with_borrow(|comparison| comparison.missing().iter().for_each(|missing| eprintln!("skipped: {missing}")));
}, |input: &[u8]| -> Corpus {
    let outcome = COMPARISON.with_borrow_mut(|comparison| comparison.check(input));
    if outcome.compared == 0 { Corpus::Reject } else { Corpus::Keep }
});
