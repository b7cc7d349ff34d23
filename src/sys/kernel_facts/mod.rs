//! The facts about the kernel that the library relies on, each tested alone.
//!
//! | file | facts about |
//! |---|---|
//! | `populating` | pages that were never touched, populated pages, huge pages |
//! | `mappings` | changes of mappings |
//! | `writes` | writes to protected memory |
//! | `asynchronous` | asynchronous write-protection |
//!
//! A kernel that differs fails here first, with the fact's name, and not as a lost invalidation
//! somewhere above. Faults that kill the process are tested in processes of their own:
//! `tests/host_faults.rs`. The effect of `read` and other kernel writes in each mode is a case
//! of the conformance suite.

mod asynchronous;
mod fixture;
mod mappings;
mod populating;
mod writes;
