//! What each way of tracking writes costs.
//!
//! Every row is measured for each mode twice: the **library** ([`library`]) and
//! its **floor** ([`floor`]), the bare system calls that the mode cannot do
//! without, with a handler that kills one block by one store and does nothing
//! else. The difference is what the library adds.
//!
//! Both are a [`Side`], and a [`Side`] measures a [`Case`] over one batch of
//! pages, checks that what it measured is what it says (that the pages were
//! protected, that the blocks died) and gives the time of the measured part
//! alone. The criterion benches sum batches; `report` takes the sides by turns,
//! A B A B, so that a change of the machine's mood meets all of them, and shows
//! medians with their spread.
//!
//! What a policy gains is not a cost of one page but of a program: [`policy`]
//! runs whole programs, with and without tracking.

pub mod alternate;
pub mod blocks;
pub mod floor;
pub mod ground;
pub mod guest;
pub mod library;
pub mod lookup;
pub mod machine;
pub mod pair;
pub mod peers;
pub mod picture;
pub mod policy;
pub mod rows;
pub mod scattered;
pub mod side;
pub mod spread;
pub mod table;
pub mod wanted;

pub use side::{Case, Side};
