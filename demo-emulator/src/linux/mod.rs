//! Linux user mode for riscv64: programs, processes, threads, signals, system
//! calls, over a [`Machine`] that runs the instructions.
//!
//! Guest threads are host threads, guest processes are host processes. Guest file descriptors, ids,
//! masks and dispositions are the host's own. Only the differences are translated: addresses, a few
//! structures, signal frames.
//!
//! | file | contents |
//! |---|---|
//! | `clone` | the arguments of clone |
//! | `errno` | error numbers, and the other results of a system call |
//! | `safe_syscall`, `host_exit` | host system calls that a signal cannot slip past; the end of a host thread or of the process |
//! | `host_fs`, `host_memory`, `own_descriptor` | the emulator's own calls about files and memory; its descriptors |
//! | `user_memory`, `vma` | guest memory for system calls; the bookkeeping of mappings |
//! | `log`, `own_memory`, `vfork` | the file of `-D`; `/proc/self/mem`; how a vfork's parent waits |
//! | `observer` | the interface to the observer of memory events |
//! | `machine`, `file_change`, `staged` | the interface to the machine, and the interpreter behind it; bytes that change through a file; mappings that replace others at once |
//! | `address_space` | mmap, munmap, mprotect, brk |
//! | `madvise`, `mremap`, `elf` | more calls on mappings; ELF files |
//! | `program` | finds a program and loads it |
//! | `host_signals` | host signals on their way to the guest |
//! | `signal_actions`, `signal_frame` | the guest's action for each signal; its frame on the guest's stack |
//! | `stack` | the first thread's stack with arguments and environment |
//! | `process` | the state that threads share |
//! | `thread` | the state of one thread |
//! | `fork`, `signal_delivery`, `thread_end` | a thread forks; handles a signal; ends |
//! | `syscalls` | the kernel interface |
//! | `run` | a thread's loop: instructions, system calls, faults; new threads |

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
