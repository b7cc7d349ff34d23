//! codewarden keeps translated code true to the guest bytes that it came from.

pub mod addr;
pub mod code_buffer;
pub mod error;
pub mod guest_memory;
pub mod protection;
mod sync;
mod sys;
