//! How a page becomes read-only, and how the library learns of a write to it.
//!
//! For an embedder:
//!
//! - [`Mode`] and [`Access`]: arguments of a region. [`best_synchronous`] and [`Probe`] say which
//!   modes are available in this process, and which changes allow a better one.
//! - [`handle_fault`]: for embedders with their own handlers of SIGBUS and SIGSEGV.
//!   [`handler_is_ours`] and [`is_blocked_here`] say whether faults reach the library at all.
//!   [`AltStack`] is a signal stack for a thread that runs with the guest's stack pointer. A fault
//!   uses [`HANDLER_STACK_BYTES`] of it.
//! - [`FaultLock`]: a lock of the embedder's that the handler thread takes around each fault.
//! - With the feature `userfaultfd`: `open_uffd` and `uffd_features`, for an embedder that
//!   opens a region's descriptor itself.
//!
//! # Inside
//!
//! A `Protection` is one mechanism (uffd-wp with SIGBUS, uffd-wp with a handler thread, uffd-wp
//! asynchronous, mprotect, nothing) behind one contract. It knows only ranges of host memory:
//! no page state, no block. The tracker owns the page states and their changes.
//!
//! | file | contents |
//! |---|---|
//! | `contract` | the operations of a mechanism (protect, un-protect, harvest), and its duties |
//! | `attached` | pages that are attached, and the guest's access to each |
//! | `given_up` | the mark of a mechanism whose pages are about to be opened all at once |
//! | `attachments` | the ranges of a mechanism, each with its place in the table of tracked ranges |
//! | `model` | a software mechanism for tests |
//! | `none` | the mechanism that tracks nothing |
//! | `mprotect` | the mechanism of `mprotect` and SIGSEGV |
//! | `uffd_ranges` | a userfaultfd's descriptor and its ranges |
//! | `uffd` | userfaultfd in the modes sigbus and deferred |
//! | `uffd_thread` | userfaultfd with a handler thread |
//! | `choice` | which modes are available, and the opening of one |
//! | `shared` | the mechanisms that the regions of a tracker share |
//! | `handed_uffd` | a userfaultfd that the embedder opened |
//! | `conformance` | tests of the contract, for every mechanism |

pub use crate::mode::Mode;
pub use crate::sys::alt_stack::AltStack;
pub use crate::sys::descriptor::LOWEST_OWN_DESCRIPTOR;
pub use crate::sys::fault::handle_fault;
pub use crate::sys::probe::{Facility, Probe};
pub use crate::sys::ranges::Handled;
pub(crate) use crate::sys::ranges::{FaultSink, WriteFault};
pub use crate::sys::signal::{HANDLER_STACK_BYTES, handler_is_ours, is_blocked_here};

mod attached;
mod attachments;
mod choice;
mod contract;
mod given_up;
#[cfg(feature = "userfaultfd")]
mod handed_uffd;
pub(crate) mod mprotect;
mod none;
mod shared;
mod uffd;
mod uffd_ranges;
mod uffd_thread;

pub(crate) use attached::Attached;
pub use choice::best_synchronous;
pub use contract::{Access, FaultLock};
pub(crate) use contract::{Inherited, KernelWrites, Opening, Options, Protection};
#[cfg(feature = "userfaultfd")]
pub(crate) use handed_uffd::open_on;
#[cfg(feature = "userfaultfd")]
pub use handed_uffd::{open_uffd, uffd_features};
pub(crate) use shared::{Mechanisms, name_of};

#[cfg(loom)]
pub(crate) use given_up::GivenUp;

#[cfg(all(test, not(loom)))]
mod conformance;
#[cfg(all(test, not(loom)))]
pub(crate) mod model;
