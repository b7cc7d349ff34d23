//! RISC-V RV64GC Linux user mode on codewarden.

pub mod hart;
pub mod memory;
pub mod riscv;
