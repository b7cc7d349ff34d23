//! First embeddings of codewarden, to copy from: one emits code with `dynasmrt`, one compiles with
//! `cranelift-jit`. Both run the same guest, which patches its own loop.
//!
//! Each is a whole JIT: look a block up, run it; if there is none, translate it; if that is
//! not possible just now, interpret one instruction.

pub mod guest;
#[cfg(target_arch = "x86_64")]
pub mod with_cranelift;
#[cfg(target_arch = "x86_64")]
pub mod with_dynasm;
