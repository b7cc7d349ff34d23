//! The guests and the harness that runs them.
//!
//! `guests/` holds small RISC-V Linux programs, one behaviour each, source
//! beside binary. A guest checks itself: it prints one line with a checksum of
//! every result and exits 0, or says on stderr what went wrong and exits with
//! a code of its own ([`EXIT_STALE`] when code that had been overwritten ran).
//!
//! [`GUESTS`] is the table of them: the line that each must print, and what
//! each class of tracking modes owes it. The tests run every row in every mode
//! and tier and hold the table true, the control mode `none` included.

mod bundle;
mod run;
mod skip;
pub mod streams;
mod table;

pub use bundle::{Bundle, guests_dir, manifest_mismatches};
pub use run::{Emulator, Exit, Outcome, Tier, Way};
pub use skip::{find_program, note, skip};
pub use table::{Announced, BENCHES, EXIT_STALE, EXIT_WRONG, Expected, GUESTS, Guest};
