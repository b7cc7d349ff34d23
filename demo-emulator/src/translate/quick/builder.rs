//! A block that is being compiled: its code so far, the known contents of registers, and the rare
//! ways, whose code follows the block's.

use super::asm::{
    Alu, Assembler, BASE, Condition, HART, Host, Jump, Memory, Operand, RAX, Scale, Shift, Width, at, emit, indexed,
};
use super::cache::Cache;
use crate::memory::Window;
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::inst::Inst;
use crate::translate::entry::ExitReason;
use crate::translate::fault_points::FaultPoint;
use crate::translate::lower::emitter::LinkTo;
use crate::translate::lower::field;
use crate::translate::near::Near;
use crate::translate::options::OwnStores;

/// A way that is rarely taken, from a jump.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rare {
    /// The instruction at this distance from the block's start cannot retire.
    Refused(i32),
    /// Leaves; the hart has its pc.
    Leave(ExitReason),
    /// A store may have changed the instruction at this address, the next one.
    SelfModified(u64),
    /// A division by 0 or -1; then back to this offset.
    Division { division: Division, back: usize },
    /// A call of the helper.
    Help,
}

/// The operation of a division.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Division {
    pub(super) width: Width,
    pub(super) is_signed: bool,
    pub(super) is_remainder: bool,
}

/// Buffers that are used again for each block.
pub(super) struct Buffers {
    pub(super) asm: Assembler,
    pub(super) points: Vec<FaultPoint>,
    pub(super) rare: Vec<(Jump, Rare)>,
}

/// Builds the code of one block.
pub(super) struct Builder<'a> {
    pub(super) asm: &'a mut Assembler,
    pub(super) points: &'a mut Vec<FaultPoint>,
    pub(super) rare: &'a mut Vec<(Jump, Rare)>,
    pub(super) cache: Cache,
    pub(super) near: Near,
    /// First of the block's guest bytes.
    pub(super) start: u64,
    /// One past the last.
    pub(super) end: u64,
    /// The address of the current instruction.
    pub(super) pc: u64,
    /// Whether the next instruction overwrites the result of this one, and no exit lies between.
    pub(super) is_overwritten: bool,
    pub(super) own_stores: OwnStores,
    /// Whether the host address of guest address 0 is also the length of the window.
    pub(super) base_is_limit: bool,
    /// For the helper.
    pub(super) window: *const Window,
    /// The instructions that the helper executes, from the next one on.
    pub(super) kept: &'a [Inst],
    /// The first of all of them.
    pub(super) first_kept: *const Inst,
    pub(super) link: LinkTo<'a>,
}

/// The offset of an integer register in the hart.
pub(super) fn x_offset(guest: u8) -> i32 {
    field::X + i32::from(guest) * field::REGISTER_BYTES
}

impl Builder<'_> {
    /// A host register with the value of a guest's.
    pub(super) fn x(&mut self, guest: u8) -> Host {
        if let Some(host) = self.cache.find(guest) {
            return host;
        }
        let host = self.cache.take();
        match self.cache.known(guest) {
            Some(value) => {
                self.asm.constant(host, value);
                self.cache.set_known(guest, host);
            }
            None => {
                emit!(self.asm, movq_rm(host, at(HART, x_offset(guest))));
                self.cache.set(guest, host);
            }
        }
        host
    }

    /// A guest register as an operand.
    pub(super) fn operand(&mut self, guest: u8) -> Operand {
        match self.small(guest) {
            Some(value) => Operand::Immediate(value),
            None => Operand::Register(self.x(guest)),
        }
    }

    /// A guest register's value, if it is known and is an immediate.
    pub(super) fn small(&self, guest: u8) -> Option<i32> {
        self.cache.known(guest).and_then(|value| i32::try_from(value as i64).ok())
    }

    /// A host register for the new value of `rd`: `from` if that has its old value, `rs1`. Get all
    /// other operands first.
    pub(super) fn result(&mut self, rd: u8, rs1: u8, from: Host) -> Host {
        if rd == rs1 && rd != 0 { from } else { self.cache.take() }
    }

    /// The same, with the value of `rs1` in it.
    pub(super) fn result_from(&mut self, rd: u8, rs1: u8) -> Host {
        let from = self.x(rs1);
        let to = self.result(rd, rs1, from);
        self.asm.copy(to, from);
        to
    }

    /// The guest register's new value is in a host register: one for results.
    pub(super) fn set_x(&mut self, guest: u8, host: Host) {
        if guest != 0 {
            self.store_x(guest, host);
            self.cache.set(guest, host);
        }
    }

    /// The guest register's new value is a constant.
    pub(super) fn set_constant(&mut self, guest: u8, value: u64) {
        if guest == 0 {
            return;
        }
        self.cache.set_constant(guest, value);
        if self.is_overwritten {
            return;
        }
        match i32::try_from(value as i64) {
            Ok(value) => emit!(self.asm, movq_mi_sxl(at(HART, x_offset(guest)), value)),
            Err(_) => {
                let host = self.x(guest);
                self.store_x(guest, host);
            }
        }
    }

    fn store_x(&mut self, guest: u8, host: Host) {
        if !self.is_overwritten {
            emit!(self.asm, movq_mr(at(HART, x_offset(guest)), host));
        }
    }

    /// Compares two guest registers; returns the condition that says what `condition` says about
    /// them.
    pub(super) fn compare(&mut self, rs1: u8, rs2: u8, condition: Condition) -> Condition {
        if let (Some(value), None) = (self.small(rs1), self.cache.known(rs2)) {
            let b = self.x(rs2);
            self.compare_with(b, Operand::Immediate(value));
            return condition.swapped();
        }
        let a = self.x(rs1);
        let b = self.operand(rs2);
        self.compare_with(a, b);
        condition
    }

    pub(super) fn compare_with(&mut self, a: Host, b: Operand) {
        match b {
            Operand::Immediate(0) => emit!(self.asm, testq_mr(a, a)),
            _ => self.asm.alu(Alu::Cmp, Width::Double, a, b),
        }
    }

    /// The guest memory that `inst` accesses, and the register with its base address. Refuses the
    /// instruction if the base is outside the window, unless it is known to be near enough. Changes
    /// rax.
    pub(super) fn guest(&mut self, inst: &Inst) -> (Memory, Host) {
        let addr = self.x(inst.rs1);
        (self.guest_at(inst, addr), addr)
    }

    /// The same, if the base address is in `addr`.
    pub(super) fn guest_at(&mut self, inst: &Inst, addr: Host) -> Memory {
        if !self.near.reaches(inst) {
            if self.base_is_limit {
                self.asm.alu(Alu::Cmp, Width::Double, addr, Operand::Register(BASE));
                self.refuse_if(Condition::AboveOrEqual);
            } else {
                self.asm.copy(RAX, addr);
                self.asm.shift(Shift::Right, Width::Double, RAX, WINDOW_LEN_BYTES.trailing_zeros() as u8);
                self.refuse_if(Condition::NotEqual);
            }
        }
        indexed(BASE, addr, Scale::One, inst.imm)
    }

    /// The code that `access` emits may fault for the current instruction.
    pub(super) fn may_fault(&mut self, access: impl FnOnce(&mut Self)) {
        let start = self.asm.offset() as u32;
        access(self);
        self.add_point(start, self.offset_of(self.pc));
    }

    fn add_point(&mut self, start: u32, guest_offset: i32) {
        let end = self.asm.offset() as u32;
        self.points.push(FaultPoint { start, end, guest_offset, restart_offset: guest_offset, is_far: false });
    }

    fn offset_of(&self, pc: u64) -> i32 {
        pc.wrapping_sub(self.start) as i32
    }

    /// Goes a rare way if the condition holds.
    pub(super) fn rarely_if(&mut self, condition: Condition, way: Rare) {
        let jump = self.asm.jump_if(condition);
        self.rare.push((jump, way));
    }

    /// Refuses the current instruction if the condition holds.
    pub(super) fn refuse_if(&mut self, condition: Condition) {
        self.rarely_if(condition, Rare::Refused(self.offset_of(self.pc)));
    }

    /// The code of the rare ways.
    pub(super) fn finish(&mut self) {
        let rare = std::mem::take(self.rare);
        let mut refused = None;
        for &(jump, way) in &rare {
            match way {
                Rare::Refused(guest_offset) => {
                    // Two checks of one instruction share the code.
                    if let Some((at, _)) = refused.filter(|&(_, other)| other == guest_offset) {
                        self.asm.land_at(jump, at);
                        continue;
                    }
                    self.asm.land(jump);
                    let start = self.asm.offset();
                    self.asm.refuse();
                    self.add_point(start as u32, guest_offset);
                    refused = Some((start, guest_offset));
                }
                Rare::SelfModified(next) => {
                    self.asm.land(jump);
                    self.store_pc(next);
                    self.leave(ExitReason::SelfModified);
                }
                Rare::Division { division, back } => {
                    self.asm.land(jump);
                    self.rare_division(division, back);
                }
                // These share their code.
                Rare::Leave(_) | Rare::Help => {}
            }
        }
        let reasons = [ExitReason::Interrupted, ExitReason::IndirectMiss, ExitReason::Hot];
        for shared in reasons.map(Rare::Leave).into_iter().chain([Rare::Help]) {
            let mut jumps = rare.iter().filter(|(_, way)| *way == shared).peekable();
            if jumps.peek().is_some() {
                jumps.for_each(|&(jump, _)| self.asm.land(jump));
                match shared {
                    Rare::Leave(reason) => self.leave(reason),
                    _ => self.helper_call(),
                }
            }
        }
        *self.rare = rare;
    }
}
