//! Linux user mode for riscv64: programs, processes, threads, signals, system calls. A [`Machine`]
//! runs the instructions.
//!
//! Guest threads are host threads, guest processes are host processes. Guest file descriptors, ids,
//! masks and dispositions are the host's own. Only the differences are translated: addresses, a few
//! structures, signal frames.
//!
//! # Differences from Linux
//!
//! - A system call that the table in `syscalls` lacks answers ENOSYS, as on a kernel without it. Such
//!   calls are `process_vm_readv`, `process_vm_writev`, `recvmmsg`, `sendmmsg`, `vmsplice`, `clone3`,
//!   `rseq`, `ptrace`, and those of io_uring, aio, mounts, POSIX message queues and System V IPC.
//! - A child of vfork has a copy of its parent's memory: its stores do not reach the parent. So a
//!   `posix_spawn` that cannot execute its program succeeds, and its child ends with status 127.
//! - A private mapping of a file is a copy of the file's bytes (`address_space`).
//! - A SIGSEGV, SIGBUS or SIGILL that a process sends loses its sender (`host_signals`).
//! - A guest that dies of a fault is reported in a sentence on standard error (`guest_fault`).
//!
//! | file | contents |
//! |---|---|
//! | `clone` | the arguments of clone |
//! | `errno` | error numbers, and the other reasons why a system call returns no value |
//! | `safe_syscall` | blocking system calls that no signal can slip past |
//! | `host_exit` | the end of a host thread or of the process |
//! | `host_fs` | the emulator's own questions about files |
//! | `host_memory` | the host mappings under the guest's window |
//! | `own_descriptor` | the emulator's own descriptors |
//! | `user_memory` | guest memory for system calls |
//! | `vma` | the record of the guest's mappings |
//! | `log` | the file of `-D` |
//! | `own_memory` | `/proc/self/mem` |
//! | `vfork` | the wait of a vfork's parent |
//! | `observer` | the interface to the observer of memory events |
//! | `machine` | the interface to the machine that runs instructions, and the interpreter as a machine |
//! | `file_change` | bytes that change through a mapped file |
//! | `staged` | mappings that replace others at once |
//! | `address_space` | mmap, munmap, mprotect, brk |
//! | `madvise` | madvise and mincore |
//! | `mremap` | mremap |
//! | `elf` | ELF files |
//! | `program` | finds a program and loads it |
//! | `host_signals` | host signals on their way to the guest |
//! | `signal_actions` | the guest's action for each signal |
//! | `signal_frame` | its frame on the guest's stack |
//! | `processor` | the processor that the guest is told about |
//! | `stack` | the first thread's stack with arguments and environment |
//! | `guest_fault` | the faults of the guest's instructions |
//! | `process` | the state that threads share |
//! | `thread` | the state of one thread |
//! | `fork` | a thread forks |
//! | `signal_delivery` | a thread handles a signal |
//! | `thread_end` | a thread ends |
//! | `syscalls` | the guest's system calls |
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
mod guest_fault;
mod host_exit;
mod host_fs;
mod madvise;
mod mremap;
mod processor;
mod run;
mod signal_delivery;
mod thread_end;
mod vfork;

pub use machine::{Executor, Exit, Interpreter, Machine};
pub use observer::{Backing, MemoryObserver, NoTracking};
pub use process::{AtExit, Options, Process, Start};
