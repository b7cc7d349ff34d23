//! The memory of guests, and executable memory.

pub mod code_buffer;
pub mod guest_memory;
