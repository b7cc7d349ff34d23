//! The guest's system calls, from the `ecall` to the result in `a0`.
//!
//! Most calls are the host's own with the pointers translated. Each other call has code in the file
//! of its subject.
//!
//! | file | contents |
//! |---|---|
//! | `host_call` | host calls for a thread, and its pointers |
//! | `path` | paths |
//! | `spec` | the kinds of arguments |
//! | `file_change` | calls that change a file's bytes |
//! | `open_flags` | the flags of open and fcntl on this host |
//! | `own_memory` | `/proc/self/mem` |
//! | `wait` | waiting under another signal mask |
//! | `descriptors`, `epoll`, `file`, `ids`, `memory`, `process`, `signals`, `status`, `system_info`, `threads`, `time`, `transfer` | the calls of one subject each |
//! | `net` | messages over sockets, which are vectors as in `transfer` |
//! | `table` | the table of all calls, by number |
//! | `trace` | `-strace` |
//! | `dispatch` | makes a call and gives the hart its result |

mod descriptors;
mod dispatch;
mod epoll;
mod file;
mod file_change;
mod host_call;
mod ids;
mod memory;
mod net;
mod open_flags;
mod own_memory;
mod path;
mod process;
mod signals;
mod spec;
mod status;
mod system_info;
mod table;
mod threads;
mod time;
mod trace;
mod transfer;
mod wait;

pub(super) use dispatch::{Next, finish, run};
