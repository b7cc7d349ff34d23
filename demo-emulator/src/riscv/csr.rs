//! The control and status registers of user mode.

use std::sync::OnceLock;
use std::time::Instant;

use super::inst::{Inst, Op};
use crate::hart::Hart;

/// Accrued exception flags.
pub const FFLAGS: i32 = 0x001;
/// Rounding mode.
pub const FRM: i32 = 0x002;
/// Both.
pub const FCSR: i32 = 0x003;
/// Cycles: nanoseconds here, because no better count is known.
pub const CYCLE: i32 = 0xc00;
/// Time: nanoseconds.
pub const TIME: i32 = 0xc01;
/// Instructions retired by the interpreters.
pub const INSTRET: i32 = 0xc02;
/// The other counters, which count nothing.
const HPM: std::ops::RangeInclusive<i32> = 0xc03..=0xc1f;

/// How often [`TIME`] counts in a second.
pub const TIME_FREQUENCY_HZ: u64 = 1_000_000_000;

/// Reads, and writes if the instruction writes; returns the value for `rd`. `None` is an illegal
/// instruction.
pub(super) fn exec(inst: &Inst, hart: &mut Hart) -> Option<u64> {
    let operand = match inst.op {
        Op::Csrrw | Op::Csrrs | Op::Csrrc => hart.x[usize::from(inst.rs1 & 31)],
        _ => u64::from(inst.rs1),
    };
    let old = read(inst.imm, hart)?;
    match inst.op {
        Op::Csrrw | Op::Csrrwi => write(inst.imm, hart, operand)?,
        // Setting or clearing by x0 or 0 is no write.
        _ if inst.rs1 == 0 => {}
        Op::Csrrs | Op::Csrrsi => write(inst.imm, hart, old | operand)?,
        _ => write(inst.imm, hart, old & !operand)?,
    }
    Some(old)
}

fn read(csr: i32, hart: &Hart) -> Option<u64> {
    Some(match csr {
        FFLAGS => hart.fflags.into(),
        FRM => hart.frm.into(),
        FCSR => u64::from(hart.frm) << 5 | u64::from(hart.fflags),
        CYCLE | TIME => nanoseconds(),
        INSTRET => hart.instret,
        csr if HPM.contains(&csr) => 0,
        _ => return None,
    })
}

fn write(csr: i32, hart: &mut Hart, value: u64) -> Option<()> {
    match csr {
        FFLAGS => hart.fflags = value as u8 & 31,
        FRM => hart.frm = value as u8 & 7,
        FCSR => {
            hart.fflags = value as u8 & 31;
            hart.frm = (value >> 5) as u8 & 7;
        }
        _ => return None,
    }
    Some(())
}

/// Nanoseconds since the first call.
fn nanoseconds() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
