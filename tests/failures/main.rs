//! Everything that can fail under the library, in every mode that it can fail in. The result
//! is defined: never a hang, never stale code.
//!
//! The table in `src/guide/failures.md` names these tests. After each failure the block cannot
//! be reached, or an error was returned that names the remedy. Most scenarios change a whole
//! process (limits, filters, signals, descriptors). So each runs in a process of its own, with
//! an alarm against hangs: see `scenario`.

#[path = "../support/alone.rs"]
mod alone;
#[path = "../support/child.rs"]
mod child;
#[path = "../support/limit.rs"]
mod limit;
#[path = "../support/mod.rs"]
mod support;

mod address_space;
mod descriptors;
mod handler_thread;
mod holds;
mod limits;
mod many;
mod mask;
mod misuse;
mod owners;
mod reserved;
mod scenario;
mod seccomp;
mod signals;
mod teardown;
mod user;
