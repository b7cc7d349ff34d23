//! The guests and the harness that runs them.
//!
//! `guests/` holds small RISC-V Linux programs, one behaviour each, as source and binary. A guest
//! checks itself. It prints one line with a checksum of every result and exits with 0, or it names
//! the error on stderr and exits with another code ([`EXIT_STALE`] if overwritten code ran).
//!
//! [`GUESTS`] is the table of them: the line that each must print, and the result that each
//! class of tracking modes owes it. The tests run every row in every mode and tier, the
//! control mode `none` included, and compare it with the table.

mod bundle;
mod run;
mod skip;
pub mod streams;
mod table;

pub use bundle::{Bundle, guests_dir, manifest_mismatches};
pub use run::{Emulator, Exit, Outcome, Tier, Way};
pub use skip::{find_program, note, skip};
pub use table::{Announced, BENCHES, EXIT_STALE, EXIT_WRONG, Expected, GUESTS, Guest};
