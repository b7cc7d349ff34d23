//! RISC-V Linux user mode on codewarden: RVA22U64 without Zkt, and Zbc.

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
