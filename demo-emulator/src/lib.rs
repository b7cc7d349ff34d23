//! RISC-V RV64GC Linux user mode on codewarden.

pub mod asm_log;
pub mod cli;
pub mod demo;
pub mod engine;
pub mod hart;
pub mod host_context;
pub mod linux;
pub mod memory;
pub mod probe;
pub mod riscv;
pub mod stats;
pub mod style;
pub mod symbols;
pub mod translate;
