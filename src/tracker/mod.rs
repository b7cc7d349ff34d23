//! The tracker: protects guest pages, learns of writes to them and tells an observer. It works
//! without the code cache, for an emulator with a cache of its own.
//!
//! # A translation, as the tracker sees it
//!
//! 1. [`Tracker::begin`] protects the page and returns a [`PageClaim`].
//! 2. Read the guest's bytes and translate. Not before: bytes that are read before the
//!    protection may change unseen.
//! 3. Enter the translation where [`PageObserver::written`] will find it, then ask
//!    [`PageClaim::is_current`]. Make the translation reachable only if the answer is yes. A later
//!    write finds it; an earlier one moved the generation.
//!
//! When a write arrives, [`PageObserver::written`] runs before the store retires
//! (synchronous modes), or before [`Tracker::sync`] returns (deferred).
//!
//! # Writes that the kernel does not report
//!
//! - [`Tracker::prepare_kernel_write`]: writes that the kernel makes for the guest;
//! - [`Tracker::prepare_unseen_write`]: writes that no mode learns of;
//! - [`Tracker::change_mapping`]: mmap, munmap and the like;
//! - [`Tracker::invalidate`]: bytes that have changed unseen.
//!
//! # Files
//!
//! | file | contents |
//! |---|---|
//! | `observer` | the interface to the layer above |
//! | `errors` | the reasons why no translation begins |
//! | `streams` | streams of writes |
//! | `harvest_set` | the pages that a harvest looks at, and the spans that it asks about |
//! | `views` | mappings that show the same bytes |
//! | `region` | one region: its pages, its addresses, the calls to its mechanism |
//! | `notify` | the report of a write to the observer |
//! | `space` | all regions and views, and the lock around them |
//! | `generations` | an observer that keeps a number for each page |
//! | `loss` | the loss of a mechanism, and the end of a region |
//! | `regions` | the tracker, and how it gets its regions |
//! | `begin` | the start of a translator on a page |
//! | `fault` | the fault of a store |
//! | `sync` | the guest's announcement of changed code |
//! | `invalidate` | bytes that have changed unseen |
//! | `hold` | pages that are held open |
//! | `maintain` | regular maintenance |
//! | `fork` | forks |
//! | `inspect` | numbers for people |
//! | `claim` | a page that a translator has claimed |
//! | `changed` | the end of a change of mappings |
//! | `moved` | mappings that are moved |
//! | `mapping` | mappings that are declared or changed |

mod begin;
mod changed;
mod claim;
mod errors;
mod fault;
mod fork;
mod generations;
mod harvest_set;
mod hold;
mod inspect;
mod invalidate;
mod loss;
mod maintain;
mod mapping;
mod moved;
mod notify;
mod observer;
mod region;
mod regions;
mod space;
mod streams;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;
mod views;

pub use claim::{PageClaim, PageDataRef};
pub use errors::BeginError;
pub(crate) use fork::Blocks;
pub use fork::TrackerForkGuard;
pub use generations::{Generations, PageGeneration};
pub use hold::Held;
pub use inspect::{HotPage, PagesByState};
pub use mapping::{MappingChange, MovingMapping};
pub use moved::MovedFrom;
pub use observer::{Cause, PageData, PageObserver, PageWrite};
pub use region::RegionOptions;
pub use regions::Tracker;
pub(crate) use space::Standing;
pub use views::SharedMemory;
