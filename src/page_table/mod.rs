//! The state of each page of a region, and the permits to open pages. It makes no system call, so
//! model checkers can run it.
//!
//! | file | contents |
//! |---|---|
//! | `word` | the state of a page in one atomic word |
//! | `history` | the recent events on a page |
//! | `permit` | the permission to open pages |
//! | `hold_book` | the record of all holds |
//! | `table` | the descriptors of a region's pages |
//! | `claimed` | pages that a handler opens or a translator protects |
//! | `hold` | pages that are held open |
//! | `stop` | all pages of a region at once |
//! | `child` | all pages of a region in a fork's child |

mod child;
mod claimed;
mod history;
mod hold;
mod hold_book;
mod permit;
mod stop;
mod table;
mod word;

pub(crate) use claimed::{Counted, Protecting};
pub(crate) use history::Hit;
pub(crate) use hold_book::{HeldFor, Hold};
pub(crate) use permit::Permit;
pub(crate) use stop::Stopped;
pub(crate) use table::{PageDesc, PageTable};
pub use word::Busy;
pub(crate) use word::{Generation, InFlight, NotOpen, PageState, Unprotect, Word};
