//! Everything that can fail under the library, in every mode where it can: what
//! follows is defined, never a hang, never stale code.
//!
//! `src/guide/failures.md` is the table of it and names these tests. After each
//! failure either the block cannot be reached or an error was returned that says
//! what to do. Most scenarios change a whole process (limits, filters, signals,
//! descriptors), so each runs in a process of its own, with an alarm against hangs:
//! see `scenario`.

#[path = "../support/alone.rs"]
mod alone;
#[path = "../support/child.rs"]
mod child;
#[path = "../support/mod.rs"]
mod support;

mod address_space;
mod descriptors;
mod handler_thread;
mod holds;
mod limits;
mod mask;
mod misuse;
mod owners;
mod scenario;
mod seccomp;
mod signals;
mod teardown;
mod user;
