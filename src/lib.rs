//! codewarden keeps translated code true to the guest bytes that it came from.
//!
//! An emulator or a JIT hands it guest memory. The library write-protects the pages that
//! translations come from and learns of every write to them. It makes every translation of the old
//! bytes unreachable before it can run again. It knows no guest instruction set and no compiler.
//!
//! # Bird's-eye view
//!
//! ```text
//!   the embedder           reads guest bytes, translates, runs
//!   ─────────────────────────────────────────────────────────────────────────────
//!   CodeCache              which translation may run: keys, links, vCPUs, memory
//!   tracker::Tracker       which page may be translated from: claims, faults, sync
//!   policy::Policy         protect, check or interpret a page
//!   protection             how the library learns of a write: one of five modes
//!   ─────────────────────────────────────────────────────────────────────────────
//!   the kernel             userfaultfd, mprotect, signals
//! ```
//!
//! Each layer can be used without those above it. Going down: a translator claims a page, the
//! tracker changes the page's word, and a mechanism makes a system call. Going up: a fault (or the
//! kernel's answer to [`sync`](tracker::Tracker::sync)) names an address, the tracker changes its
//! page's word, and the cache kills the blocks there.
//!
//! - [`CodeCache`]: finds translations by key, links them through entry cells ([`Link`]), and frees
//!   them when no vCPU can be inside them. Its [`CodeCache::tracker`] takes the regions.
//! - [`tracker::Tracker`]: the tracking alone, for an emulator that has its own cache.
//! - [`guest_memory::GuestMemory`]: memory to track, made by the library or handed over.
//! - [`protection`]: the modes, which of them are available ([`protection::Probe`]), and
//!   [`protection::handle_fault`] for embedders that own the signal handlers.
//! - [`code_buffer::CodeBuffer`]: executable memory.
//!
//! # Further reading
//!
//! Read this page first. It has the life of a page and of a block, a small example, and the
//! promises. Then read as much of the guide as you need:
//!
//! | | chapter of the [`guide`] |
//! |---|---|
//! | 1 | [`words`](guide::words): the meaning of each term in these docs |
//! | 2 | [`embedding`](guide::embedding): a vCPU's loop, emitted code, the calls that inform the library, and the contexts in which calls are allowed |
//! | 3 | [`promises`](guide::promises): each promise about stale code, its limits, a test for each sentence |
//! | 4 | [`ways`](guide::ways): every way that bytes change, and the call for each |
//! | 5 | [`failures`](guide::failures): everything that can fail, and the consequences |
//! | 6 | [`moving_over`](guide::moving_over): from a tracker with `mprotect` and SIGSEGV; [`qemu`](guide::qemu) and [`blink`](guide::blink): two such moves, carried out |
//! | 7 | [`executable_memory`](guide::executable_memory): code buffers, and the rules of instruction streams on x86-64 and aarch64 |
//! | 8 | [`limits`](guide::limits): memory, eviction, a full code buffer |
//! | 9 | [`forks`](guide::forks): both sides of a fork |
//! | 10 | [`mixed_pages`](guide::mixed_pages): pages that hold code and data, and their cost |
//! | 11 | [`requirements`](guide::requirements): kernels, permissions, containers |
//! | 12 | [`statistics`](guide::statistics): the counters, and how to read them |
//! | 13 | [`protocol`](guide::protocol): invariants, orderings, and the model that checks each |
//! | 14 | [`checks`](guide::checks): models, mutations, sanitizers, fuzzing, soak: the command of each, and the checks that were not run |
//!
//! In the repository, `examples/tiny_jit` is a whole embedder that emits its own code. The README
//! has a first embedding in 30 lines, with kernels, permissions and costs. `ARCHITECTURE.md` is a
//! way into the source.
//!
//! # The life of a page
//!
//! ```text
//!               claim: protect                      commit
//!    open ────────────────────────▶ protected ───────────────▶ with blocks
//!     ▲ ▲                              │                          │   │
//!     │ │       a write: the claim     │   a write to their bytes:│   │ a write to data:
//!     │ └──────── is not current ──────┴────── they are dead ─────┘   │ they compare themselves
//!     │                                                               ▼
//!     └──────────────── it has cooled: its blocks are dead ──── self-checking
//! ```
//!
//! A page is **open** (writable, no block on it), **protected** (the library learns of the next
//! write) or **self-checking** (writable; its blocks compare their bytes at each entry). If a page
//! is written all the time, the [`policy`] makes it self-checking as soon as a translator comes to
//! it. In a synchronous mode, a page that is hit is open or self-checking when the store retires.
//! In the deferred mode it stays protected. The next [`tracker::Tracker::sync`] finds the write,
//! and its blocks are dead or self-checking when that call returns.
//!
//! # The life of a block
//!
//! ```text
//!   begin ─▶ claim ─▶ read ─┬─▶ translate ─▶ commit ─┬─▶ valid ─▶ dead ─▶ retained ─▶ discarded ─▶ freed
//!                           │                        │     │        ▲        │
//!                           │                        ▼     ▼        │        │
//!                           │                   refused  self-    ──┘        │
//!                           │                            checking           │
//!                           └─▶ revive ─▶ valid ◀──── the same bytes ────────┘
//! ```
//!
//! A write to its bytes kills a block, and so does eviction. A write to data beside them leaves it
//! reachable, self-checking. A write between claim and commit makes the library refuse the commit.
//! A dead block is freed when no vCPU can be inside it.
//!
//! 1. Read the guest's bytes with [`Ticket::read`]. It claims each page, then reads, and notes the
//!    bytes as the source of the block. (An embedder that reads by itself calls [`Ticket::claim`]
//!    first, reads each byte once, and calls [`Ticket::add_source`].)
//! 2. Ask for a retained block of the same bytes ([`Ticket::revive`]). If there is none, translate.
//! 3. [`Ticket::commit`]: the block is reachable, or refused because a write came. A block with a
//!    self-checking entry ([`Entry::with_check`]) can stay valid when data on its page is written.
//! 4. Look up and run under a [`Pin`]; release it around any call that may block. Blocks jump to
//!    each other through entry cells.
//! 5. A write to its bytes kills the block, or an eviction, which frees memory. From then on its
//!    cell leads to a stub, for lookups, links and fronts alike. A vCPU inside runs the block to
//!    its end, and polls [`Ticket::stale_flag`] after its own stores. The payload is dropped when
//!    no vCPU can be inside, unless it is retained for [`Ticket::revive`].
//! 6. Meanwhile, tell the tracker of the writes that the kernel cannot report:
//!    [`tracker::Tracker::prepare_kernel_write`], [`tracker::Tracker::prepare_unseen_write`],
//!    [`tracker::Tracker::change_mapping`], [`tracker::Tracker::invalidate`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use codewarden::policy::Adaptive;
//! use codewarden::protection::best_synchronous;
//! use codewarden::{CodeCache, Entry, EntryStubs, GuestAddr, GuestMemory, Key};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Arc::new(GuestMemory::anonymous(1 << 20)?);
//! let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Adaptive::with_checks()))?;
//! let (mode, _why) = best_synchronous()?;
//! cache.add_memory(GuestAddr(0), memory.clone(), mode)?;
//!
//! // A block of the four bytes at 0x1000. Its two entries stand for code.
//! let (plain, checked) = (0x100, 0x101);
//! let pc = GuestAddr(0x1000);
//! let mut ticket = cache.begin(Key::from(pc));
//! let mut bytes = [0; 4];
//! ticket.read(pc, &mut bytes)?; // claims the page, then reads
//! ticket.commit(Entry::with_check(plain, checked), ())?;
//! let mut vcpu = cache.attach_vcpu();
//! assert_eq!(vcpu.pin().lookup(Key::from(pc)), Some(plain));
//!
//! // A write to data beside the code: the block stays, and compares itself from now on.
//! // No later store to the page faults.
//! memory.write(0x1800, &[1])?;
//! assert_eq!(vcpu.pin().lookup(Key::from(pc)), Some(checked));
//! # Ok(())
//! # }
//! ```
//!
//! # Promises
//!
//! | mode | when every block on the written bytes is unreachable |
//! |---|---|
//! | [`Mode::Sigbus`], [`Mode::Thread`], [`Mode::Mprotect`] | when the store has retired |
//! | [`Mode::Deferred`] | when [`tracker::Tracker::sync`] has returned |
//! | [`Mode::None`] | never |
//!
//! The promises hold for stores by any thread of this process, through every mapping that was
//! declared. [`guide::promises`] has each sentence, its test, and the limits of the promises.
//!
//! | mode | least Linux | the library learns of writes by | writes by the kernel (`read`) into a protected page |
//! |---|---|---|---|
//! | [`Mode::Sigbus`] | 5.7; memfd 5.19 | userfaultfd, SIGBUS in the storing thread | EFAULT unless announced |
//! | [`Mode::Thread`] | 5.7; memfd 5.19 | userfaultfd, a thread of the library | learned of, with a permission; else as sigbus |
//! | [`Mode::Deferred`] | 6.7 | userfaultfd, a scan by `sync` | learned of |
//! | [`Mode::Mprotect`] | 4.14 | `mprotect`, SIGSEGV | EFAULT unless announced |
//! | [`Mode::None`] | any | nothing | missed |
//!
//! # Invariants
//!
//! - While a page is writable, no block on it trusts its bytes.
//! - Protect, then read, then translate, then commit. The commit is refused if a write came
//!   between.
//! - A block is reached only through its entry cell. One store there kills it for links, fronts and
//!   tables alike.
//! - Fault handlers take no lock, allocate nothing and touch no tracked memory. They run no code of
//!   the embedder except a [`tracker::PageObserver`].
//! - If the library can no longer learn of writes to a block, the block is stale.
//!
//! [`guide::protocol`] has all invariants. For each it names the mechanism that keeps it, and the
//! failure that was seen without that mechanism.
//!
//! [`Mode::Sigbus`]: protection::Mode::Sigbus
//! [`Mode::Thread`]: protection::Mode::Thread
//! [`Mode::Mprotect`]: protection::Mode::Mprotect
//! [`Mode::Deferred`]: protection::Mode::Deferred
//! [`Mode::None`]: protection::Mode::None

pub mod addr;
mod code_cache;
pub mod error;
pub mod guide;
mod memory;
mod mode;
#[cfg(test)]
mod models;
mod page_table;
mod panics;
pub mod policy;
pub mod protection;
mod sparse;
mod stats;
mod sync;
mod sys;
pub mod tracker;

pub use addr::GuestAddr;
pub use code_cache::{
    CacheForkGuard, CodeCache, CommitError, Entry, EntryCell, EntryStubs, FRONT_SLOTS, Footprint, FrontSlot, Key, Link,
    MemoryLimit, MemoryUse, Payload, Pin, RecentWrite, StaleFlag, Ticket, TranslateError, VCpu,
};
pub use error::Error;
pub use memory::code_buffer::{Allocation, CodeBuffer};
pub use memory::guest_memory::GuestMemory;
pub use memory::{code_buffer, guest_memory};
pub use mode::Mode;
pub use page_table::Busy;
pub use stats::{Histogram, Histograms, Stats};
pub use sync::lock_waits;

/// The README's example runs as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
