//! The oracle: fetches, decodes and executes one instruction and keeps
//! nothing. Every other way to run guest code must agree with it.

use super::decode::decode;
use super::exec::exec;
use super::inst::Inst;
use super::trap::{Flow, Trap};
use crate::hart::Hart;
use crate::memory::Window;

/// Fetches and decodes the instruction at `pc`.
pub fn fetch(mem: &Window, pc: u64) -> Result<Inst, Trap> {
    let low = u32::from(mem.fetch_u16(pc).map_err(Trap::FetchFault)?);
    if low & 3 != 3 {
        return Ok(decode(low));
    }
    let high = u32::from(mem.fetch_u16(pc.wrapping_add(2)).map_err(Trap::FetchFault)?);
    Ok(decode(high << 16 | low))
}

/// Runs the instruction at the hart's `pc`.
pub fn step(hart: &mut Hart, mem: &Window) -> Result<Flow, Trap> {
    exec(&fetch(mem, hart.pc)?, hart, mem)
}
