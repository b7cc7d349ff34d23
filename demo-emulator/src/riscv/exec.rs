//! The effect of each instruction: the one definition that the interpreter, tier 0 and the tests of
//! compiled code share.

use std::sync::atomic::{Ordering, fence};

use super::inst::{BLOCK_BYTES, Inst, Op};
use super::trap::{Flow, Trap};
use super::{atomic, bits, csr, encode, fp};
use crate::hart::Hart;
use crate::memory::Window;

/// The hart's way after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum After {
    /// To the next instruction.
    Next,
    /// To this address: a jump, or a branch that was taken.
    Jump(u64),
    /// To the next instruction, behind a FENCE.I.
    FenceI,
}

/// Executes one instruction. `hart.pc` is the instruction's address; it becomes the next one's, or
/// stays if the instruction traps.
#[inline]
pub fn exec(inst: &Inst, hart: &mut Hart, mem: &Window) -> Result<Flow, Trap> {
    let next = hart.pc.wrapping_add(u64::from(inst.len));
    let (pc, flow) = match effect(inst.op, inst, hart.pc, hart, mem)? {
        After::Next => (next, Flow::Next),
        After::Jump(target) => (target, Flow::Jump),
        After::FenceI => (next, Flow::FenceI),
    };
    hart.pc = pc;
    hart.instret = hart.instret.wrapping_add(1);
    Ok(flow)
}

/// The effect of the instruction at `pc` on all but `hart.pc` and `hart.instret`. `op` is
/// `inst.op`: if the caller has it as a constant, only the code of that operation remains.
#[inline(always)]
pub fn effect(op: Op, inst: &Inst, pc: u64, hart: &mut Hart, mem: &Window) -> Result<After, Trap> {
    use Op::*;
    let a = hart.x[usize::from(inst.rs1 & 31)];
    let b = hart.x[usize::from(inst.rs2 & 31)];
    let imm = inst.imm as i64 as u64;
    let addr = a.wrapping_add(imm);
    let (a32, b32, imm32) = (a as u32, b as u32, inst.imm as u32);
    let word = |value: u32| value as i32 as i64 as u64;
    let value = match op {
        Lui => imm,
        Auipc => pc.wrapping_add(imm),
        Jal => return jump(inst, pc, hart, pc.wrapping_add(imm)),
        Jalr => return jump(inst, pc, hart, addr & !1),
        Beq => return branch(inst, pc, a == b),
        Bne => return branch(inst, pc, a != b),
        Blt => return branch(inst, pc, (a as i64) < b as i64),
        Bge => return branch(inst, pc, a as i64 >= b as i64),
        Bltu => return branch(inst, pc, a < b),
        Bgeu => return branch(inst, pc, a >= b),

        Lb => mem.load_u8(addr).map_err(Trap::LoadFault)? as i8 as u64,
        Lh => mem.load_u16(addr).map_err(Trap::LoadFault)? as i16 as u64,
        Lw => mem.load_u32(addr).map_err(Trap::LoadFault)? as i32 as u64,
        Ld => mem.load_u64(addr).map_err(Trap::LoadFault)?,
        Lbu => mem.load_u8(addr).map_err(Trap::LoadFault)?.into(),
        Lhu => mem.load_u16(addr).map_err(Trap::LoadFault)?.into(),
        Lwu => mem.load_u32(addr).map_err(Trap::LoadFault)?.into(),
        Sb => return stored(mem.store_u8(addr, b as u8)),
        Sh => return stored(mem.store_u16(addr, b as u16)),
        Sw => return stored(mem.store_u32(addr, b32)),
        Sd => return stored(mem.store_u64(addr, b)),

        Addi => addr,
        Slti => u64::from((a as i64) < imm as i64),
        Sltiu => u64::from(a < imm),
        Xori => a ^ imm,
        Ori => a | imm,
        Andi => a & imm,
        Slli => a.wrapping_shl(imm32),
        Srli => a.wrapping_shr(imm32),
        Srai => (a as i64).wrapping_shr(imm32) as u64,
        Add => a.wrapping_add(b),
        Sub => a.wrapping_sub(b),
        Sll => a.wrapping_shl(b32),
        Slt => u64::from((a as i64) < b as i64),
        Sltu => u64::from(a < b),
        Xor => a ^ b,
        Srl => a.wrapping_shr(b32),
        Sra => (a as i64).wrapping_shr(b32) as u64,
        Or => a | b,
        And => a & b,
        Addiw => word(addr as u32),
        Slliw => word(a32.wrapping_shl(imm32)),
        Srliw => word(a32.wrapping_shr(imm32)),
        Sraiw => (a32 as i32).wrapping_shr(imm32) as u64,
        Addw => word(a32.wrapping_add(b32)),
        Subw => word(a32.wrapping_sub(b32)),
        Sllw => word(a32.wrapping_shl(b32)),
        Srlw => word(a32.wrapping_shr(b32)),
        Sraw => (a32 as i32).wrapping_shr(b32) as u64,

        Mul => a.wrapping_mul(b),
        Mulh => ((a as i64 as i128 * b as i64 as i128) >> 64) as u64,
        Mulhsu => ((a as i64 as i128 * b as i128) >> 64) as u64,
        Mulhu => ((a as u128 * b as u128) >> 64) as u64,
        Mulw => word(a32.wrapping_mul(b32)),
        // Division by zero gives all ones and the dividend; the overflow of
        // the least number by -1 gives the dividend and 0.
        Div => {
            if b == 0 {
                u64::MAX
            } else {
                (a as i64).wrapping_div(b as i64) as u64
            }
        }
        Divu => a.checked_div(b).unwrap_or(u64::MAX),
        Rem => {
            if b == 0 {
                a
            } else {
                (a as i64).wrapping_rem(b as i64) as u64
            }
        }
        Remu => a.checked_rem(b).unwrap_or(a),
        Divw => word(if b32 == 0 { u32::MAX } else { (a32 as i32).wrapping_div(b32 as i32) as u32 }),
        Divuw => word(a32.checked_div(b32).unwrap_or(u32::MAX)),
        Remw => word(if b32 == 0 { a32 } else { (a32 as i32).wrapping_rem(b32 as i32) as u32 }),
        Remuw => word(a32.checked_rem(b32).unwrap_or(a32)),

        Add_uw | Sh1add | Sh2add | Sh3add | Sh1add_uw | Sh2add_uw | Sh3add_uw | Andn | Orn | Xnor | Clz | Clzw
        | Ctz | Ctzw | Cpop | Cpopw | Max | Maxu | Min | Minu | Sext_b | Sext_h | Zext_h | Rol | Rolw | Ror | Rorw
        | Orc_b | Rev8 | Clmul | Clmulh | Clmulr | Bclr | Bext | Binv | Bset => bits::exec(inst.op, a, b),
        Slli_uw | Rori | Roriw | Bclri | Bexti | Binvi | Bseti => bits::exec(inst.op, a, imm),

        Fence => {
            fence(Ordering::SeqCst);
            return Ok(After::Next);
        }
        Fence_i => {
            fence(Ordering::SeqCst);
            return Ok(After::FenceI);
        }
        Ecall => return Err(Trap::Ecall),
        Ebreak => return Err(Trap::Ebreak),
        Illegal => return Err(Trap::Illegal(imm32)),

        Csrrw | Csrrs | Csrrc | Csrrwi | Csrrsi | Csrrci => {
            csr::exec(inst, hart).ok_or_else(|| Trap::Illegal(encode::encode(inst)))?
        }

        Lr_w | Sc_w | Amoswap_w | Amoadd_w | Amoxor_w | Amoand_w | Amoor_w | Amomin_w | Amomax_w | Amominu_w
        | Amomaxu_w => atomic::exec_word(inst, hart, mem)?,
        Lr_d | Sc_d | Amoswap_d | Amoadd_d | Amoxor_d | Amoand_d | Amoor_d | Amomin_d | Amomax_d | Amominu_d
        | Amomaxu_d => atomic::exec_double(inst, hart, mem)?,

        // The memory has no cache that a program could see. These still fault.
        Cbo_clean | Cbo_flush => {
            mem.load_u8(inst.address(a)).map_err(Trap::StoreFault)?;
            return Ok(After::Next);
        }
        Cbo_zero => {
            let start = inst.address(a);
            let mut words = (0..BLOCK_BYTES).step_by(8);
            return stored(words.try_for_each(|offset| mem.store_u64(start + offset, 0)));
        }

        Flh => {
            let bits = mem.load_u16(addr).map_err(Trap::LoadFault)?;
            return loaded_fp(inst, hart, fp::HALF_BOX | u64::from(bits));
        }
        Flw => {
            let bits = mem.load_u32(addr).map_err(Trap::LoadFault)?;
            return loaded_fp(inst, hart, fp::boxed(bits));
        }
        Fld => {
            let bits = mem.load_u64(addr).map_err(Trap::LoadFault)?;
            return loaded_fp(inst, hart, bits);
        }
        Fsh => return stored(mem.store_u16(addr, hart.f[usize::from(inst.rs2 & 31)] as u16)),
        Fsw => return stored(mem.store_u32(addr, hart.f[usize::from(inst.rs2 & 31)] as u32)),
        Fsd => return stored(mem.store_u64(addr, hart.f[usize::from(inst.rs2 & 31)])),
        _ => {
            return match fp::exec(inst, hart) {
                true => Ok(After::Next),
                false => Err(Trap::Illegal(encode::encode(inst))),
            };
        }
    };
    hart.set_x(inst.rd, value);
    Ok(After::Next)
}

#[inline(always)]
fn jump(inst: &Inst, pc: u64, hart: &mut Hart, target: u64) -> Result<After, Trap> {
    hart.set_x(inst.rd, pc.wrapping_add(u64::from(inst.len)));
    Ok(After::Jump(target))
}

#[inline(always)]
fn branch(inst: &Inst, pc: u64, taken: bool) -> Result<After, Trap> {
    Ok(if taken { After::Jump(pc.wrapping_add(inst.imm as i64 as u64)) } else { After::Next })
}

#[inline(always)]
fn stored(outcome: Result<(), crate::memory::Fault>) -> Result<After, Trap> {
    outcome.map(|()| After::Next).map_err(Trap::StoreFault)
}

#[inline(always)]
fn loaded_fp(inst: &Inst, hart: &mut Hart, bits: u64) -> Result<After, Trap> {
    hart.f[usize::from(inst.rd & 31)] = bits;
    Ok(After::Next)
}
