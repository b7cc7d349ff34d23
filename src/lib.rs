//! codewarden keeps translated code true to the guest bytes that it came from.
//!
//! An emulator or a JIT hands it guest memory. It write-protects the pages that
//! translations come from, learns of every write to them, and makes what was made
//! from the old bytes unreachable before it can run. It knows no guest instruction
//! set and no compiler.
//!
//! # Bird's-eye view
//!
//! ```text
//!   the embedder           reads guest bytes, translates, runs
//!   ─────────────────────────────────────────────────────────────────────────────
//!   CodeCache              which translation may run: keys, links, vCPUs, memory
//!   tracker::Tracker       which page may be translated from: claims, faults, sync
//!   policy::Policy         protect, check or interpret a page
//!   protection             how a write is learned of: one of five modes
//!   ─────────────────────────────────────────────────────────────────────────────
//!   the kernel             userfaultfd, mprotect, signals
//! ```
//!
//! Each layer can be used without those above it. A translator goes down: it claims a
//! page, whose word the tracker changes, for which a mechanism makes a system call. A
//! write comes up: a fault (or what [`sync`](tracker::Tracker::sync) asks the kernel)
//! names an address, the tracker changes its page's word, the cache kills the blocks
//! there.
//!
//! - [`CodeCache`]: translations found by key, linked through entry cells ([`Link`]), freed
//!   when no vCPU can be inside them. Its [`CodeCache::tracker`] takes the regions.
//! - [`tracker::Tracker`]: the tracking alone, for an emulator with a cache of its
//!   own.
//! - [`guest_memory::GuestMemory`]: memory to track, made here or handed over.
//! - [`protection`]: the modes, which of them can be had ([`protection::Probe`]),
//!   and [`protection::handle_fault`] for embedders who own the signals.
//! - [`code_buffer::CodeBuffer`]: executable memory.
//!
//! # Where to read on
//!
//! This page first: it has the life of a page and of a block, a small example, and what
//! is promised. Then, as far as it is needed:
//!
//! | | chapter of the [`guide`] |
//! |---|---|
//! | 1 | [`words`](guide::words): what each word of these docs means |
//! | 2 | [`embedding`](guide::embedding): a vCPU's loop, what emitted code does, what is to be told, what may be called where |
//! | 3 | [`promises`](guide::promises): what is true of stale code, what is not, a test for each sentence |
//! | 4 | [`ways`](guide::ways): every way that bytes change, and what to call |
//! | 5 | [`failures`](guide::failures): everything that can fail, and what comes of it |
//! | 6 | [`moving_over`](guide::moving_over): from a tracker with `mprotect` and SIGSEGV |
//! | 7 | [`executable_memory`](guide::executable_memory): code buffers, and the rules of instruction streams on x86-64 and aarch64 |
//! | 8 | [`limits`](guide::limits): memory, eviction, a full code buffer |
//! | 9 | [`forks`](guide::forks): both sides of a fork |
//! | 10 | [`protocol`](guide::protocol): invariants, orderings, and the model that checks each |
//! | 11 | [`checks`](guide::checks): models, mutations, sanitizers, fuzzing, soak: the command of each, and what was not run |
//!
//! In the repository `examples/tiny_jit` is a whole embedder that emits code of its own,
//! the README a first embedding in 30 lines, with kernels, permissions and costs,
//! `ARCHITECTURE.md` a way into the source.
//!
//! # The life of a page
//!
//! ```text
//!               claim: protect                      commit
//!    open ────────────────────────▶ protected ───────────────▶ with blocks
//!     ▲ ▲                              │                          │   │
//!     │ │       a write: the claim     │   a write to their bytes:│   │ a write beside them:
//!     │ └──────── is not current ──────┴────── they are dead ─────┘   │ they compare themselves
//!     │                                                               ▼
//!     └──────────────── it has cooled: its blocks are dead ─────── checked
//! ```
//!
//! A page is **open** (writable, no block on it), **protected** (the next write is
//! learned of) or **checked** (writable; its blocks compare their bytes each time they
//! are entered). A translator that comes to a page which is written to all the time has
//! it checked at once, by the [`policy`]. In a synchronous mode a page that is hit is open, or checked, when
//! the store retires. In the deferred mode it stays protected; the next
//! [`tracker::Tracker::sync`] finds the write, and its blocks are dead, or checked,
//! when that returns.
//!
//! # The life of a block
//!
//! ```text
//!   begin ─▶ claim ─▶ read ─┬─▶ translate ─▶ commit ─┬──▶ valid ──▶ dead ──▶ kept ──▶ given up ──▶ freed
//!                           │                        │      │        ▲        │
//!                           │                        ▼      ▼        │        │
//!                           │                   refused   checked ───┘        │
//!                           └─▶ revive ─▶ valid ◀──── the same bytes ─────────┘
//! ```
//!
//! A write to its bytes kills it, and eviction; a write beside them leaves it, checked. A
//! write between claim and commit has the commit refused. It is freed when no vCPU can
//! be inside.
//!
//! 1. Claim every page of the block: [`Ticket::claim`].
//! 2. Read the guest's bytes, once each: not before the claim. Say which of them the
//!    block is made from ([`Ticket::made_from`]), and ask whether one that was made
//!    from the same can be used again ([`Ticket::revive`]). If not, translate.
//! 3. [`Ticket::commit`]: the block is reachable, or refused because a write came. An
//!    [`Entry`] with a check lets it stay beside bytes that are written.
//! 4. Look up and run under a [`Pin`]; let go of it around whatever may last. Blocks
//!    jump to each other through entry cells.
//! 5. It dies: of a write, or for its memory. Its cell leads to a stub from then on,
//!    for lookups, links and fronts alike. Who is inside runs it to its end, and polls
//!    [`Ticket::stale_flag`] after stores of its own. What it owns is dropped when
//!    nobody can be inside, unless it is kept for [`Ticket::revive`].
//! 6. Meanwhile: tell the tracker of what the kernel cannot tell:
//!    [`tracker::Tracker::prepare_kernel_write`],
//!    [`tracker::Tracker::prepare_unseen_write`], [`tracker::Tracker::change_mapping`],
//!    [`tracker::Tracker::invalidate`].
//!
//! ```
//! use std::sync::Arc;
//!
//! use codewarden::addr::GuestAddr;
//! use codewarden::guest_memory::GuestMemory;
//! use codewarden::policy::Adaptive;
//! use codewarden::protection::best_synchronous;
//! use codewarden::tracker::RegionOptions;
//! use codewarden::{CodeCache, Entry, EntryStubs, Key};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = GuestMemory::anonymous(1 << 20)?;
//! let cache = CodeCache::with_policy(EntryStubs::NOT_CODE, Arc::new(Adaptive::with_checks()))?;
//! let (mode, _why) = best_synchronous()?;
//! let region = RegionOptions::new(GuestAddr(0), memory.range(), mode);
//! // SAFETY: `memory` outlives `cache`, which is dropped first.
//! unsafe { cache.tracker().add_region(region)? };
//!
//! // A block of the four bytes at 0x1000. Its two entries stand for code.
//! let (plain, checked) = (0x100, 0x101);
//! let pc = GuestAddr(0x1000);
//! let mut ticket = cache.begin(Key::from(pc));
//! ticket.claim(pc)?;
//! let mut bytes = [0; 4];
//! memory.read(0x1000, &mut bytes)?;
//! ticket.made_from(pc, &bytes)?;
//! ticket.commit(Entry::with_check(plain, checked), ())?;
//! let mut vcpu = cache.attach_vcpu();
//! assert_eq!(vcpu.pin().lookup(Key::from(pc)), Some(plain));
//!
//! // Data beside it: the block stays, and compares itself from now on. No later
//! // store to the page faults.
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
//! They hold for stores by any thread of this process through every mapping that was
//! declared; [`guide::promises`] has each sentence, what is not promised, and a test
//! for each.
//!
//! | mode | least Linux | writes are learned of by | writes by the kernel (`read`) into a protected page |
//! |---|---|---|---|
//! | [`Mode::Sigbus`] | 6.4 | userfaultfd, SIGBUS in the storing thread | EFAULT unless announced |
//! | [`Mode::Thread`] | 6.4 | userfaultfd, a thread of the library's | learned of, with a permission; else as sigbus |
//! | [`Mode::Deferred`] | 6.7 | userfaultfd, a scan by `sync` | learned of |
//! | [`Mode::Mprotect`] | 4.14 | `mprotect`, SIGSEGV | EFAULT unless announced |
//! | [`Mode::None`] | any | nothing | missed |
//!
//! # Invariants
//!
//! - A page is writable only while no block lies on it that trusts its bytes.
//! - Protect, then read, then translate, then commit; a commit is refused where a
//!   write came between.
//! - A block is reached through its entry cell alone. Killing it is one store there,
//!   and reaches links, fronts and tables alike.
//! - Fault handlers take no lock, allocate nothing, run no code of the embedder's but
//!   a [`tracker::PageObserver`], and touch no tracked memory.
//! - What cannot be learned of any more is stale.
//!
//! [`guide::protocol`] has all of them, with what keeps each and what was seen to fail
//! without it.
//!
//! [`Mode::Sigbus`]: protection::Mode::Sigbus
//! [`Mode::Thread`]: protection::Mode::Thread
//! [`Mode::Mprotect`]: protection::Mode::Mprotect
//! [`Mode::Deferred`]: protection::Mode::Deferred
//! [`Mode::None`]: protection::Mode::None

pub mod addr;
mod block;
pub mod code_buffer;
mod code_cache;
mod epoch;
pub mod error;
pub mod guest_memory;
pub mod guide;
mod journal;
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

pub use block::{Entry, EntryCell, EntryStubs, StaleFlag};
pub use code_cache::{
    CodeCache, CommitError, FRONT_ENTRIES, Footprint, ForkGuard, FrontEntry, Key, Killer, Link, MemoryLimit,
    PageBlocks, Payload, Pin, Ticket, TranslateError, VCpu, Weight,
};
pub use journal::RecentWrite;
pub use page_table::Busy;
pub use stats::{Histogram, Histograms, Stats};

/// The README's example runs as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
