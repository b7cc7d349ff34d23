//! The guest's memory for the emulator's own code: the address window, accesses that report a
//! fault, the host signal handler that makes this possible, and the host memory that a run needs.

pub mod access;
pub mod code;
pub mod host_fault;
pub mod limits;
mod plain;
pub mod window;

pub use access::{AmoOp, Fault, FaultKind};
pub use window::Window;
