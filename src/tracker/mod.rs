//! The tracker: protects guest pages, learns of writes to them and tells an observer. It works
//! without the code cache, for an emulator with a cache of its own.
//!
//! # A translation, as the tracker sees it
//!
//! 1. [`Tracker::begin`] protects the page and returns a [`PageClaim`].
//! 2. Read the guest's bytes and translate. Not before: bytes that are read before the
//!    protection may change unseen.
//! 3. Enter the translation where [`PageObserver::written`] will find it, then ask
//!    [`PageClaim::is_current`]. Only if it says yes may the translation be reached. A later
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
//! - [`Tracker::invalidate`]: bytes that changed behind the tracker's back.

//!
//! # Files
//!
//! | file | contents |
//! |---|---|
//! | `observer`, `errors`, `ranges`, `streams`, `repeats`, `harvest_set`, `views` | the layer above; the reason why no translation begins; sets of pages; streams of writes; faults that come back; the pages that a harvest looks at; mappings that show the same bytes |
//! | `region` | one region: its pages, its addresses, the calls to its mechanism |
//! | `notify`, `space`, `generations` | the observer is told of a write; all regions, and the lock around them; an observer that numbers the states of a page |
//! | `loss`, `regions` | a mechanism that fails; the tracker, and the regions that it is given |
//! | `begin`, `fault`, `sync`, `invalidate`, `hold`, `maintain`, `fork`, `inspect` | a translator begins; a store faults; code may have changed; bytes have changed; the kernel writes; pages cool; the process forks; a person asks |
//! | `claim`, `mapping` | a page that a translator has claimed; a mapping changes |

mod begin;
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
mod notify;
mod observer;
mod ranges;
mod region;
mod regions;
mod repeats;
mod space;
mod streams;
mod sync;
#[cfg(all(test, not(loom)))]
mod tests;
mod views;

pub use claim::{PageClaim, PageDataRef};
pub use errors::BeginError;
pub use fork::TrackerForkGuard;
pub use generations::{Generations, PageGeneration};
pub use hold::Held;
pub use inspect::{HotPage, PagesByState};
pub use mapping::MappingChange;
pub use observer::{Cause, PageData, PageObserver, PageWrite};
pub use region::RegionOptions;
pub use regions::Tracker;
pub(crate) use space::Standing;
pub use views::SharedMemory;
