//! LR, SC and the atomic memory operations.
//!
//! A reservation is an address and the value that LR read there; SC is a compare-and-exchange with
//! that value, as in QEMU. So an SC succeeds after another hart wrote the same value again. The
//! architecture forbids that, but no lock of a compiler or a library can notice it.
//!
//! Every atomic is sequentially consistent, for any `aq` and `rl`.

use std::sync::atomic::{Ordering, fence};

use super::inst::{Inst, Op};
use super::trap::Trap;
use crate::hart::Hart;
use crate::memory::{AmoOp, Window};

/// The `rl` bit of `Inst::rm`.
const RELEASE: u8 = 1;

/// Does a word operation; returns the value for `rd`.
pub(super) fn exec_word(inst: &Inst, hart: &mut Hart, mem: &Window) -> Result<u64, Trap> {
    use Op::*;
    let addr = aligned(inst, hart, 4)?;
    let value = hart.x[usize::from(inst.rs2 & 31)] as u32;
    let amo = match inst.op {
        Lr_w => {
            before_load(inst);
            let old = mem.load_u32(addr).map_err(Trap::LoadFault)?;
            return Ok(reserve(hart, addr, old as i32 as u64));
        }
        Sc_w => {
            if !reservation_holds(hart, addr) {
                return Ok(1);
            }
            let expected = hart.reservation_value as u32;
            let seen = mem.compare_exchange_u32(addr, expected, value).map_err(Trap::StoreFault)?;
            return Ok(release(hart, seen == expected));
        }
        Amoswap_w => AmoOp::Swap,
        Amoadd_w => AmoOp::Add,
        Amoxor_w => AmoOp::Xor,
        Amoand_w => AmoOp::And,
        Amoor_w => AmoOp::Or,
        Amomin_w => AmoOp::Min,
        Amomax_w => AmoOp::Max,
        Amominu_w => AmoOp::Minu,
        _ => AmoOp::Maxu,
    };
    let old = mem.amo_u32(addr, amo, value).map_err(Trap::StoreFault)?;
    Ok(old as i32 as u64)
}

/// Does a doubleword operation; returns the value for `rd`.
pub(super) fn exec_double(inst: &Inst, hart: &mut Hart, mem: &Window) -> Result<u64, Trap> {
    use Op::*;
    let addr = aligned(inst, hart, 8)?;
    let value = hart.x[usize::from(inst.rs2 & 31)];
    let amo = match inst.op {
        Lr_d => {
            before_load(inst);
            let old = mem.load_u64(addr).map_err(Trap::LoadFault)?;
            return Ok(reserve(hart, addr, old));
        }
        Sc_d => {
            if !reservation_holds(hart, addr) {
                return Ok(1);
            }
            let expected = hart.reservation_value;
            let seen = mem.compare_exchange_u64(addr, expected, value).map_err(Trap::StoreFault)?;
            return Ok(release(hart, seen == expected));
        }
        Amoswap_d => AmoOp::Swap,
        Amoadd_d => AmoOp::Add,
        Amoxor_d => AmoOp::Xor,
        Amoand_d => AmoOp::And,
        Amoor_d => AmoOp::Or,
        Amomin_d => AmoOp::Min,
        Amomax_d => AmoOp::Max,
        Amominu_d => AmoOp::Minu,
        _ => AmoOp::Maxu,
    };
    mem.amo_u64(addr, amo, value).map_err(Trap::StoreFault)
}

fn aligned(inst: &Inst, hart: &Hart, len_bytes: u64) -> Result<u64, Trap> {
    let addr = hart.x[usize::from(inst.rs1 & 31)];
    if addr.is_multiple_of(len_bytes) {
        Ok(addr)
    } else if matches!(inst.op, Op::Lr_w | Op::Lr_d) {
        Err(Trap::LoadMisaligned(addr))
    } else {
        Err(Trap::StoreMisaligned(addr))
    }
}

/// Orders earlier stores before an LR that asks for it: the host may move a load before them.
fn before_load(inst: &Inst) {
    if inst.rm & RELEASE != 0 {
        fence(Ordering::SeqCst);
    }
}

fn reserve(hart: &mut Hart, addr: u64, value: u64) -> u64 {
    hart.reserved = 1;
    hart.reservation_addr = addr;
    hart.reservation_value = value;
    value
}

/// Whether an SC to `addr` may try its store. If not, the reservation ends here, as after every SC.
fn reservation_holds(hart: &mut Hart, addr: u64) -> bool {
    let holds = hart.reserved != 0 && hart.reservation_addr == addr;
    hart.reserved &= u8::from(holds);
    holds
}

/// Ends the reservation after an SC; returns SC's result, 0 for success.
fn release(hart: &mut Hart, stored: bool) -> u64 {
    hart.reserved = 0;
    u64::from(!stored)
}
