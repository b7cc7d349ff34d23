//! RISC-V RV64GC Linux user mode on codewarden.

pub mod cli;
pub mod engine;
pub mod hart;
pub mod linux;
pub mod memory;
pub mod riscv;
pub mod translate;
