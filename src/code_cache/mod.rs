//! The code cache: finds translated code by key, and never returns a stale block.
//!
//! # The life of a block
//!
//! ```text
//!   begin ──▶ claim pages ──▶ translate ──▶ commit ──▶ valid ──▶ dead ──▶ retained ──▶ freed
//!             (protected)         │           │         │ a write  │ reaped    │ discarded, and
//!                                 │           ▼         │ arrives  │ by a      │ the epoch passes
//!                                 │        refused      ▼          │ trans-    │
//!                                 │    (a write came)  unreachable │ lator     │
//!                                 │                                            │
//!                                 └──────── revive: the same bytes again ◀─────┘
//! ```
//!
//! - [`CodeCache::begin`] gives a [`Ticket`]. [`Ticket::claim`] protects a page and returns the
//!   address to read it at. [`Ticket::add_source`] records the bytes that the block is made from.
//!   [`Ticket::commit`] makes the block reachable, or refuses if a write came between.
//! - A [`VCpu`] pins itself, looks blocks up by key and runs them. Links in emitted code go through
//!   entry cells ([`CodeCache::link`]).
//! - A write to a block's bytes kills it: one store to its cell. The block's payload (`P`) is
//!   dropped once no vCPU can be inside the block and it is no longer retained for
//!   [`Ticket::revive`].
//! - Live blocks and retained dead ones have a limit in bytes ([`CodeCache::set_limit`]). The cache
//!   evicts the oldest. An eviction is a death like any other, and [`Ticket::revive`] brings an
//!   evicted block back on demand.
//! - A write to data beside a block's bytes may leave the block reachable. From then on it is
//!   entered by the code that compares its bytes ([`Entry::with_check`]). If that code finds a
//!   difference, the dispatcher calls [`CodeCache::remove`].
//!
//! # Files
//!
//! | file | contents |
//! |---|---|
//! | `key` | keys and payloads |
//! | `errors` | the reasons why nothing was translated |
//! | `limit` | memory use, and its limit |
//! | `entry` | entry cells |
//! | `stale_flag` | the byte that a block polls |
//! | `block_list` | the list of blocks on a page |
//! | `pins` | the pins of vCPUs, where a fault handler reads them |
//! | `epoch` | the epochs that decide when memory may be freed |
//! | `journal` | the last writes, for reports |
//! | `kill` | the steps in which a block dies |
//! | `table` | the table from keys to cells, with links |
//! | `translation` | code with the bytes that it was made from |
//! | `record` | one life of a translation: a block |
//! | `live` | the queue of reachable blocks |
//! | `retained` | translations of dead blocks that may be used again |
//! | `garbage` | unreachable objects that wait to be freed |
//! | `invalidate` | kills the blocks of a written page, or makes them self-checking |
//! | `cache` | the shared state and the commit lock |
//! | `collect` | takes dead blocks out of their lists, and frees garbage |
//! | `evict` | evicts blocks beyond the limit, and removes single blocks |
//! | `commit` | makes a new block reachable |
//! | `revive` | makes a retained translation reachable |
//! | `ticket` | a translation in progress |
//! | `link` | calls that make links |
//! | `vcpu` | pins, lookups and fronts |
//! | `inspect` | counters and sizes, for people |
//! | `fork` | both sides of a fork |

pub(crate) mod block_list;
mod cache;
mod collect;
mod commit;
pub(crate) mod entry;
pub(crate) mod epoch;
mod errors;
mod evict;
mod fork;
mod garbage;
mod inspect;
mod invalidate;
mod journal;
mod key;
pub(crate) mod kill;
mod limit;
mod link;
mod live;
mod pins;
mod record;
mod retained;
mod revive;
pub(crate) mod stale_flag;
mod table;
mod ticket;
mod translation;
mod vcpu;

pub use cache::CodeCache;
pub use entry::{Entry, EntryCell, EntryStubs};
pub use errors::{CommitError, TranslateError};
pub use fork::CacheForkGuard;
pub use journal::RecentWrite;
pub use key::{FRONT_SLOTS, Key, Payload};
pub use limit::{Footprint, MemoryLimit, MemoryUse};
pub use stale_flag::StaleFlag;
pub use table::Link;
pub use ticket::Ticket;
pub use vcpu::{FrontSlot, Pin, VCpu};
