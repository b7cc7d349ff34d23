//! One contract, one suite: every mechanism on the real kernel, and the model.
//!
//! A case is written once and runs on anonymous memory and on a memfd, in each
//! mechanism of the lists at the end; each is a test of its own. [`Mode::None`] promises nothing. It is the
//! negative control: the cases about coherence must fail there.

mod cases;
mod rig;

use crate::mode::Mode;
use crate::sys::probe::{Facility, skip};
use cases::*;
use rig::{Backend, Memory, Rig};

type Case = fn(&Rig);

/// Runs `case`, or reports what the kernel lacks for it.
fn run(backend: Backend, memory: Memory, case: Case) {
    let (probe, mode) = (backend.probe(), backend.mode());
    let is_modelled = matches!(backend, Backend::Model(_));
    if let Err(error) = probe.check(mode)
        && !is_modelled
    {
        return skip(error);
    }
    let needs_shmem = memory == Memory::Memfd && matches!(mode, Mode::Sigbus | Mode::Thread | Mode::Deferred);
    match probe.why_missing(Facility::WpShmem).filter(|_| needs_shmem && !is_modelled) {
        Some(why) => skip(why),
        None => case(&Rig::new(backend, memory)),
    }
}

macro_rules! tests {
    ($backend:expr; $($case:ident)*) => {
        $(mod $case {
            use super::*;

            #[test]
            fn anonymous() {
                run($backend, Memory::Anonymous, $case);
            }

            #[test]
            fn memfd() {
                run($backend, Memory::Memfd, $case);
            }
        })*
    };
}

/// Cases for every mechanism that tracks.
macro_rules! all_tracking {
    ($backend:expr) => {
        tests! { $backend;
            a_store_to_a_protected_page_is_learned_of
            exactly_the_written_pages_are_learned_of
            pages_that_were_never_touched_are_tracked
            a_store_over_two_pages_is_learned_of_on_both
            several_writers_on_one_page_all_go_on
            protecting_is_a_hard_barrier
            instances_learn_of_their_own_pages
            sinks_of_one_mechanism_learn_of_their_own_pages
            who_gives_one_range_up_tells_the_others
            an_open_page_is_silent
            the_guests_own_access_changes_lose_nothing
        }
    };
}

/// Further cases for every mechanism of the kernel.
macro_rules! on_the_kernel {
    ($backend:expr) => {
        tests! { $backend;
            a_range_has_one_owner
            a_range_of_another_sink_is_refused
            a_replaced_mapping_is_attached_again
            a_piece_that_is_unmapped_is_nothing_to_protect
            writers_go_on_through_attach_and_detach
            kernel_writes_do_what_the_mechanism_says
            a_partial_detach_leaves_the_rest
            a_page_of_several_mappings_is_one_page
        }
    };
}

/// Further cases for a synchronous mechanism.
macro_rules! synchronous {
    ($backend:expr) => {
        tests! { $backend;
            a_store_is_reported_before_it_retires
            the_sink_gets_the_thread_and_the_address
        }
    };
}

/// All cases for synchronous mechanisms of the kernel, in a module each.
macro_rules! synchronous_on_the_kernel {
    ($($name:ident: $backend:expr;)*) => {
        $(mod $name {
            use super::*;
            all_tracking! { $backend }
            on_the_kernel! { $backend }
            synchronous! { $backend }
        })*
    };
}

synchronous_on_the_kernel! {
    sigbus: Backend::Kernel(Mode::Sigbus);
    mprotect: Backend::Kernel(Mode::Mprotect);
    sigbus_larger_pages: Backend::LargerPages(Mode::Sigbus);
    thread_larger_pages: Backend::LargerPages(Mode::Thread);
    mprotect_larger_pages: Backend::LargerPages(Mode::Mprotect);
    // Kernels before 6.4, which protect populated pages only.
    sigbus_populating: Backend::Without("wp_unpopulated", Mode::Sigbus);
    thread_populating: Backend::Without("wp_unpopulated", Mode::Thread);
    // Kernels before 5.14, which do not report the protection of a page.
    sigbus_unreported: Backend::Without("wp_unpopulated,pagemap_wp", Mode::Sigbus);
    thread_unreported: Backend::Without("wp_unpopulated,pagemap_wp", Mode::Thread);
}

mod thread {
    use super::*;
    all_tracking! { Backend::Kernel(Mode::Thread) }
    on_the_kernel! { Backend::Kernel(Mode::Thread) }
    synchronous! { Backend::Kernel(Mode::Thread) }
    tests! { Backend::Kernel(Mode::Thread); a_sink_that_opens_nothing_gets_the_loss_first }
}

mod deferred {
    use super::*;
    all_tracking! { Backend::Kernel(Mode::Deferred) }
    on_the_kernel! { Backend::Kernel(Mode::Deferred) }
    tests! { Backend::Kernel(Mode::Deferred); a_fresh_range_counts_as_written a_deferred_protect_is_refused }
}

mod model_synchronous {
    use super::*;
    all_tracking! { Backend::Model(Mode::Sigbus) }
    synchronous! { Backend::Model(Mode::Sigbus) }
}

mod model_deferred {
    use super::*;
    all_tracking! { Backend::Model(Mode::Deferred) }
    tests! { Backend::Model(Mode::Deferred); a_fresh_range_counts_as_written a_deferred_protect_is_refused }
}

#[test]
fn the_control_fails_what_is_about_coherence() {
    let cases: [(&str, Case); 6] = [
        ("a store", a_store_to_a_protected_page_is_learned_of),
        ("exactly the written pages", exactly_the_written_pages_are_learned_of),
        ("never touched", pages_that_were_never_touched_are_tracked),
        ("two pages", a_store_over_two_pages_is_learned_of_on_both),
        ("barrier", protecting_is_a_hard_barrier),
        ("before it retires", a_store_is_reported_before_it_retires),
    ];
    for (name, case) in cases {
        for memory in [Memory::Anonymous, Memory::Memfd] {
            let outcome = std::panic::catch_unwind(|| run(Backend::Kernel(Mode::None), memory, case));
            assert!(outcome.is_err(), "{name}, {memory:?}: no tracking at all passed");
        }
    }
}
