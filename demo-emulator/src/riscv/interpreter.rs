//! The interpreter fetches, decodes and executes one instruction, and stores no translation. Every
//! other way to run guest code must agree with it.

use super::exec::exec;
use super::inst::Inst;
use super::trap::{Flow, Trap};
use crate::hart::Hart;
use crate::memory::Window;

/// Fetches and decodes the instruction at `pc`.
pub fn fetch(mem: &Window, pc: u64) -> Result<Inst, Trap> {
    super::fetch::fetch(pc, |at| mem.fetch(at)).map_err(Trap::FetchFault)
}

/// Runs the instruction at the hart's `pc`.
pub fn step(hart: &mut Hart, mem: &Window) -> Result<Flow, Trap> {
    exec(&fetch(mem, hart.pc)?, hart, mem)
}
