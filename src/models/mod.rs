//! Models of the protocol: the real code of begin, commit, handler, un-protect,
//! link, harvest, hold and epoch, over a software [`kernel`].
//!
//! | module | how | what |
//! |---|---|---|
//! | `loom_writes` | loom | a store against translators, two stores, several blocks |
//! | `loom_announced` | loom | deferred regions, announced writes, tracking that ends |
//! | `loom_memory` | loom | nothing is freed under a walker, a pin or a reader |
//! | `injected` | plain | the handler on the translator's own thread, at each step |
//!
//! Loom explores every interleaving, and every value that a load may see, up to
//! a number of preemptions:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --target-dir target/loom --lib loom
//! ```
//!
//! Each model has its bound; `LOOM_MAX_PREEMPTIONS` raises it for runs by hand.
//! Under `--cfg loom` the protocol's atomics and mutexes are loom's; system calls,
//! the list of regions, heat and counters stay the standard library's.
//!
//! # Each model was seen to fail
//!
//! [`crate::sync::Rule`]s can be left out by a model: the tests `..._fails_without_...` do so
//! and want a violation, in each run.

#[cfg(loom)]
mod explore;
mod guest;
#[cfg(not(loom))]
mod injected;
mod kernel;
#[cfg(loom)]
mod loom_announced;
#[cfg(loom)]
mod loom_memory;
#[cfg(loom)]
mod loom_writes;
