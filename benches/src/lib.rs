//! The cost of each way to track writes.
//!
//! Every row is measured twice for each mode: the **library** ([`library`]) and its
//! **floor** ([`floor`]). The floor is the bare system calls that the mode needs, with a
//! handler that does nothing but kill one block by one store. The difference is the
//! library's own cost.
//!
//! Both are a [`Side`]. A [`Side`] measures a [`Case`] over one batch of pages. It checks that the
//! pages were protected and that the blocks died, and gives the time of the measured part alone.
//! The criterion benches sum batches. `report` takes the sides in turn, A B A B, so that a slow
//! phase of the machine affects all of them, and shows medians with their spread.
//!
//! A policy's gain shows in a program, not on one page, so [`policy`] runs whole programs, with and
//! without tracking.

pub mod alternate;
pub mod blocks;
pub mod floor;
pub mod ground;
pub mod guest;
pub mod library;
pub mod lookup;
pub mod machine;
pub mod memory;
pub mod open;
pub mod pair;
pub mod peers;
pub mod picture;
pub mod policy;
pub mod populating;
pub mod regions;
pub mod replaced;
pub mod rows;
pub mod scale;
pub mod scattered;
pub mod side;
pub mod space;
pub mod spread;
pub mod table;
pub mod wanted;

pub use side::{Case, Side};
