//! Every system call of the library, and the signal handler.
//!
//! | file | contents |
//! |---|---|
//! | `clock` | a clock for signal handlers |
//! | `errno` | errno, and a thread's number |
//! | `membarrier` | barriers on every thread of the process |
//! | `range_table` | a table that handlers read without a lock |
//! | `split` | one operation over a range with holes and several VMAs |
//! | `uffd_calls` | the ioctls and messages of userfaultfd |
//! | `ranges` | the tracked ranges, and the sink of each range's faults |
//! | `repeats` | faults that come back |
//! | `fault` | the code that a signal handler runs |
//! | `statics` | the static locks, and their owner during a fork |
//! | `process` | the check for a fork's child |
//! | `signal` | the SIGBUS and SIGSEGV handler, and the handlers before it |
//! | `fork` | a guard over a fork |
//! | `registration` | a range's place in the table of tracked ranges |
//! | `thread` | a thread of the library's own |
//! | `descriptor` | high numbers for descriptors, out of the guest's way |
//! | `mmap` | mappings and memfds that unmap themselves |
//! | `maps` | the mappings of a range |
//! | `alt_stack` | an alternate signal stack for one thread |
//! | `code_views` | the two mappings of a code buffer |
//! | `guarded_fd` | a descriptor that other code may close |
//! | `event` | an event, and the wait for it and a descriptor |
//! | `pagemap` | `/proc/self/pagemap`: its entries, and `PAGEMAP_SCAN` |
//! | `populate` | write-protection on kernels that protect populated pages only |
//! | `uffd` | userfaultfd: open, negotiate, register, write-protect, wake, read |
//! | `probe` | the facilities that this kernel offers and these permissions allow |
//!
//! Nothing here knows page states or blocks.

pub(crate) mod alt_stack;
#[cfg(test)]
#[path = "../../tests/support/child.rs"]
pub(crate) mod child;
pub(crate) mod clock;
pub(crate) mod code_views;
pub(crate) mod descriptor;
pub(crate) mod errno;
pub(crate) mod event;
pub(crate) mod fault;
pub(crate) mod fork;
pub(crate) mod guarded_fd;
#[cfg(test)]
mod kernel_facts;
#[cfg(test)]
#[path = "../../tests/support/limit.rs"]
mod limit;
pub(crate) mod maps;
pub(crate) mod membarrier;
pub(crate) mod mmap;
pub(crate) mod pagemap;
pub(crate) mod populate;
pub(crate) mod probe;
pub(crate) mod process;
pub(crate) mod range_table;
pub(crate) mod ranges;
pub(crate) mod registration;
#[cfg(test)]
#[path = "../../tests/support/release.rs"]
mod release;
pub(crate) mod repeats;
pub(crate) mod signal;
pub(crate) mod split;
pub(crate) mod statics;
pub(crate) mod thread;
pub(crate) mod uffd;
pub(crate) mod uffd_calls;
