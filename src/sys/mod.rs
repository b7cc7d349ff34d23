//! Signal plumbing and the system calls, except for two files: the handler thread's eventfd,
//! `poll` and writes (`protection::uffd_thread`), and a code buffer's mappings
//! (`code_buffer::views`).
//!
//! | module | content |
//! |---|---|
//! | [`uffd`] | userfaultfd: open, negotiate, register, write-protect, wake, read |
//! | [`uffd_calls`] | the ioctls and messages behind it |
//! | [`pagemap`] | `PAGEMAP_SCAN` on `/proc/self/pagemap` |
//! | [`mmap`] | mappings and memfds that unmap themselves |
//! | [`signal`] | the SIGBUS and SIGSEGV handler of the process, and the previous ones |
//! | [`alt_stack`] | an alternate signal stack for one thread |
//! | [`clock`] | a clock that a signal handler can read |
//! | [`descriptor`] | high numbers for descriptors, out of the guest's way |
//! | [`kept_fd`] | a descriptor that other code may close |
//! | [`fault`] | the sink of each fault; the code that a signal handler runs |
//! | [`range_table`] | the table behind `fault`: handlers read it without a lock |
//! | [`fork`] | whether this process is a fork's child; the static part of a guard over a fork
//! |
//! | [`thread`] | a thread of the library's own |
//! | [`statics`] | the static locks, and their owner during a fork |
//! | [`membarrier`] | barriers on every thread of the process: memory, and the instruction stream |
//! | [`pieces`] | one operation over a range with holes and several VMAs |
//! | [`probe`] | the facilities of this kernel and these permissions |
//!
//! Nothing here knows page states or blocks.

pub(crate) mod alt_stack;
#[cfg(test)]
#[path = "../../tests/support/child.rs"]
pub(crate) mod child;
pub(crate) mod clock;
pub(crate) mod descriptor;
pub(crate) mod fault;
pub(crate) mod fork;
pub(crate) mod kept_fd;
#[cfg(test)]
mod kernel_facts;
pub(crate) mod membarrier;
pub(crate) mod mmap;
pub(crate) mod pagemap;
pub(crate) mod pieces;
pub(crate) mod probe;
pub(crate) mod range_table;
pub(crate) mod signal;
pub(crate) mod statics;
pub(crate) mod thread;
pub(crate) mod uffd;
pub(crate) mod uffd_calls;
