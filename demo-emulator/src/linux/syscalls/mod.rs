//! The kernel interface: from `ecall` to `a0`.
//!
//! `table` lists the calls. Most are the host's own with the pointers translated; the others have
//! code in a module for their subject.

mod descriptors;
mod dispatch;
mod epoll;
mod file;
mod file_change;
mod host;
mod ids;
mod memory;
mod misc;
mod net;
mod own_memory;
mod path;
mod process;
mod signals;
mod spec;
mod status;
mod table;
mod threads;
mod time;
mod trace;
mod transfer;
mod wait;

pub(super) use dispatch::{Next, finish, run};
