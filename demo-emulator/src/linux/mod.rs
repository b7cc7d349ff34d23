//! Linux user mode for riscv64: programs, processes, threads, signals, system
//! calls, over a [`Machine`] that runs the instructions.
//!
//! Guest threads are host threads, guest processes are host processes. Guest file descriptors, ids,
//! masks and dispositions are the host's own. Only the differences are translated: addresses, a few
//! structures, signal frames.
//!
//! - [`program`] finds and loads ([`elf`], [`stack`]) into an [`address_space`]
//!   ([`vma`] is its bookkeeping, [`host_memory`] its system calls, [`file_change`]
//!   has the bytes of it that change through files);
//! - [`process`] and [`thread`] run it on a [`machine`]; an [`observer`] hears of its memory
//!   events;
//! - [`syscalls`] is the kernel interface, over [`safe_syscall`], which signals
//!   cannot slip past;
//! - [`host_signals`] brings signals in, [`signal_actions`] and [`signal_frame`] deliver
//!   them.

pub mod address_space;
pub mod elf;
pub mod errno;
pub mod file_change;
pub mod host_memory;
pub mod host_signals;
pub mod log;
pub mod machine;
pub mod observer;
pub mod own_descriptor;
pub mod own_memory;
pub mod process;
pub mod program;
pub mod safe_syscall;
pub mod signal_actions;
pub mod signal_frame;
pub mod stack;
pub mod staged;
pub mod syscalls;
pub mod thread;
pub mod user_memory;
pub mod vma;

mod clone;
mod fork;
mod host_exit;
mod host_fs;
mod madvise;
mod mremap;
mod run;
mod signal_delivery;
mod thread_end;
mod vfork;

pub use machine::{Executor, Exit, Interpreter, Machine};
pub use observer::{Backing, MemoryObserver, NoTracking};
pub use process::{AtExit, Options, Process, Start};
