//! Models of the protocol: the real code of begin, commit, handler, un-protect, link, harvest,
//! hold, downgrade, revival and epoch, over a software [`kernel`]. A [`guest`] translates on it;
//! `inside` is the view of a vCPU inside a block.
//!
//! | module | how | scenarios |
//! |---|---|---|
//! | `loom_writes` | loom | a store against translators, two stores, several blocks |
//! | `loom_announced` | loom | deferred regions, announced writes, tracking that ends |
//! | `loom_first` | loom | each announcement against a first translation of its page |
//! | `loom_self_checking` | loom | data writes, translations that are used again |
//! | `loom_policy` | loom | pages that become self-checking and cool, that are opened and protected in bulk |
//! | `loom_memory` | loom | nothing is freed under a walker, a pin or a reader |
//! | `loom_cells` | loom | entry cells that are swept and used again |
//! | `loom_evict` | loom | blocks that are evicted while others run, write, commit and revive |
//! | `loom_ranges` | loom | the table of ranges against its readers, a new range against a loss |
//! | `injected` | plain | the handler on the translator's own thread, at each step |
//! | `views` | plain, Miri | calls for ranges that cut views, against a map of pages |
//! | `threads` | plain, Miri | all of a cache at once, under the system's threads |
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
//! histories and counters stay the standard library's.
//!
//! # Each model was seen to fail
//!
//! A model can leave a [`crate::sync::Rule`] out: the tests `..._fails_without_...` do so and
//! expect a violation, in each run. `mutations/run` breaks the production code, and names the test
//! that failed. Broken by hand and seen to fail:
//!
//! | broken | noticed by |
//! |---|---|
//! | a changed mapping leaves the harvest set before it is held | `an_announcement_against_a_change_of_mapping` |
//! | a failed harvest lets go of its lock before its blocks are dead | `two_announcements_at_once_where_the_first_fails` |
//! | a harvest does not move the generation | `an_announced_store_against_a_first_translation` |
//! | a begin does not look whether tracking was lost meanwhile | `the_loss_of_a_mechanism_against_a_translation` |
//! | a write to a page that is being protected opens it at once, or is ignored | `an_announced_write_against_a_first_translation` |
//! | a page found protected is looked at without acquire | `translators_of_one_key` |
//! | a pin does not fence | `no_block_is_freed_under_a_vcpu` |
//! | a walker does not look at the epoch again, or an advance does not fence | `no_block_is_freed_under_a_walker` |
//! | dead blocks are freed and not taken out of their lists | a crash in `loom_memory` |
//! | a begin that makes a page self-checking takes it out of the harvest set before it looks | `two_minds_about_a_page_of_a_deferred_region` |
//! | a table that grew is published without release | `no_key_is_lost_while_the_table_grows` |
//!
//! Not noticed, because nothing goes wrong:
//!
//! - a begin in a deferred region that takes the harvest's lock later, or enters its page in the
//!   set after the harvest;
//! - a page that cools and keeps its blocks, which compare themselves;
//! - a retirement without a fence of its own;
//! - the end of a region that does not wait for cancelled begins, since none is inside the
//!   tracker's gate then.

#[cfg(loom)]
mod explore;
mod guest;
#[cfg(not(loom))]
mod injected;
#[cfg(loom)]
mod inside;
mod kernel;
#[cfg(loom)]
mod loom_announced;
#[cfg(loom)]
mod loom_cells;
#[cfg(loom)]
mod loom_evict;
#[cfg(loom)]
mod loom_first;
#[cfg(loom)]
mod loom_memory;
#[cfg(loom)]
mod loom_policy;
#[cfg(loom)]
mod loom_ranges;
#[cfg(loom)]
mod loom_self_checking;
#[cfg(loom)]
mod loom_writes;
#[cfg(not(loom))]
mod threads;
#[cfg(not(loom))]
mod views;
