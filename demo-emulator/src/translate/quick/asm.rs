//! Host instructions as bytes. Cranelift's assembler encodes them; here are the registers, the
//! choice of the shorter forms, and jumps to places that are not known yet.

use std::num::NonZeroU8;

pub(super) use cranelift_assembler_x64::Scale;
use cranelift_assembler_x64::{
    Amode, AmodeOffset, AmodeOffsetPlusKnownOffset, AsReg, CodeSink, DeferredTarget, Imm8, KnownOffset, NonRspGpr,
    Registers, TrapCode, inst,
};

/// A general register of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Host(u8);

pub(super) const RAX: Host = Host(0);
pub(super) const RCX: Host = Host(1);
pub(super) const RDX: Host = Host(2);
pub(super) const RBX: Host = Host(3);
pub(super) const RBP: Host = Host(5);
/// The hart.
pub(super) const HART: Host = Host(7);
/// The host address of guest address 0.
pub(super) const BASE: Host = Host(6);
pub(super) const R8: Host = Host(8);
pub(super) const R9: Host = Host(9);
pub(super) const R10: Host = Host(10);
pub(super) const R11: Host = Host(11);
pub(super) const R12: Host = Host(12);
pub(super) const R13: Host = Host(13);
pub(super) const R14: Host = Host(14);
pub(super) const R15: Host = Host(15);

impl AsReg for Host {
    fn new(encoding: u8) -> Self {
        Self(encoding)
    }

    fn enc(&self) -> u8 {
        self.0
    }
}

/// The assembler's kinds of operands are all [`Host`].
pub(super) struct Regs;

impl Registers for Regs {
    type ReadGpr = Host;
    type ReadWriteGpr = Host;
    type WriteGpr = Host;
    type ReadXmm = Host;
    type ReadWriteXmm = Host;
    type WriteXmm = Host;
}

/// An operand in memory.
pub(super) type Memory = Amode<Host>;

/// `[base + offset]`
pub(super) fn at(base: Host, offset: i32) -> Memory {
    let simm32 = AmodeOffsetPlusKnownOffset { simm32: AmodeOffset::new(offset), offset: None };
    Amode::ImmReg { base, simm32, trap: None }
}

/// `[base + index * scale + offset]`
pub(super) fn indexed(base: Host, index: Host, scale: Scale, offset: i32) -> Memory {
    Amode::ImmRegRegShift { base, index: NonRspGpr::new(index), scale, simm32: AmodeOffset::new(offset), trap: None }
}

/// For instructions that may trap: the fault table has its own list.
pub(super) fn no_trap() -> TrapCode {
    TrapCode(NonZeroU8::MIN)
}

/// The second operand of an arithmetic instruction. The immediate is sign-extended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Operand {
    Register(Host),
    Immediate(i32),
}

/// An arithmetic instruction on a register and an operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Alu {
    Add,
    Or,
    And,
    Sub,
    Xor,
    Cmp,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shift {
    Left,
    Right,
    /// With the sign.
    Arithmetic,
    RotateLeft,
    RotateRight,
}

/// The width of an operation. The result of a word operation has zeros above it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Width {
    Word,
    Double,
}

/// A condition of the flags, after a comparison of a first operand with a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    Equal,
    NotEqual,
    Less,
    GreaterOrEqual,
    LessOrEqual,
    Greater,
    Below,
    AboveOrEqual,
    BelowOrEqual,
    Above,
    /// The result was negative.
    Sign,
}

impl Condition {
    /// The condition that holds if this one holds for the operands in the other order.
    pub(super) fn swapped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::GreaterOrEqual => Self::LessOrEqual,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::Below => Self::Above,
            Self::AboveOrEqual => Self::BelowOrEqual,
            Self::BelowOrEqual => Self::AboveOrEqual,
            Self::Above => Self::Below,
            other => other,
        }
    }
}

/// A jump without a target so far: the offset behind it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct Jump(usize);

/// The same, for a target at most 127 bytes behind the jump.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(super) struct ShortJump(usize);

/// Appends one instruction of the assembler's.
macro_rules! emit {
    ($asm:expr, $name:ident($($operand:expr),*)) => {
        cranelift_assembler_x64::inst::$name::<$crate::translate::quick::asm::Regs>::new($($operand),*)
            .encode(&mut $asm.code)
    };
}
pub(super) use emit;

/// Appends the instruction for a width.
macro_rules! emit_by_width {
    ($asm:expr, $width:expr, $double:ident | $word:ident($($operand:expr),*)) => {
        match $width {
            $crate::translate::quick::asm::Width::Double => {
                $crate::translate::quick::asm::emit!($asm, $double($($operand),*))
            }
            $crate::translate::quick::asm::Width::Word => {
                $crate::translate::quick::asm::emit!($asm, $word($($operand),*))
            }
        }
    };
}
pub(super) use emit_by_width;

/// Appends a jump by a condition.
macro_rules! jump_by {
    ($asm:expr, $condition:expr, $e:ident $ne:ident $l:ident $ge:ident $le:ident $g:ident $b:ident $ae:ident $be:ident $a:ident $s:ident) => {
        match $condition {
            Condition::Equal => inst::$e::new(0).encode(&mut $asm.code),
            Condition::NotEqual => inst::$ne::new(0).encode(&mut $asm.code),
            Condition::Less => inst::$l::new(0).encode(&mut $asm.code),
            Condition::GreaterOrEqual => inst::$ge::new(0).encode(&mut $asm.code),
            Condition::LessOrEqual => inst::$le::new(0).encode(&mut $asm.code),
            Condition::Greater => inst::$g::new(0).encode(&mut $asm.code),
            Condition::Below => inst::$b::new(0).encode(&mut $asm.code),
            Condition::AboveOrEqual => inst::$ae::new(0).encode(&mut $asm.code),
            Condition::BelowOrEqual => inst::$be::new(0).encode(&mut $asm.code),
            Condition::Above => inst::$a::new(0).encode(&mut $asm.code),
            Condition::Sign => inst::$s::new(0).encode(&mut $asm.code),
        }
    };
}

/// Bytes of code.
pub(super) struct Bytes(Vec<u8>);

impl CodeSink for Bytes {
    fn put1(&mut self, value: u8) {
        self.0.push(value);
    }

    fn put2(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn put4(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn put8(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// The fault table has its own list.
    fn add_trap(&mut self, _: TrapCode) {}

    /// No operand has a label.
    fn use_target(&mut self, _: DeferredTarget) {}

    fn known_offset(&self, _: KnownOffset) -> i32 {
        0
    }
}

/// The code of a block while it is being made.
pub(super) struct Assembler {
    pub(super) code: Bytes,
}

impl Assembler {
    pub(super) fn new() -> Self {
        Self { code: Bytes(Vec::with_capacity(1024)) }
    }

    pub(super) fn clear(&mut self) {
        self.code.0.clear();
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.code.0
    }

    /// The offset of the next instruction.
    pub(super) fn offset(&self) -> usize {
        self.code.0.len()
    }

    /// Copies a register.
    pub(super) fn copy(&mut self, to: Host, from: Host) {
        if to != from {
            emit!(self, movq_mr(to, from));
        }
    }

    /// Loads a constant. Changes the flags.
    pub(super) fn constant(&mut self, to: Host, value: u64) {
        if value == 0 {
            emit!(self, xorl_rm(to, to));
        } else if let Ok(low) = u32::try_from(value) {
            emit!(self, movl_oi(to, low));
        } else if let Ok(extended) = i32::try_from(value as i64) {
            emit!(self, movq_mi_sxl(to, extended));
        } else {
            emit!(self, movabsq_oi(to, value));
        }
    }

    /// `to` becomes the result of `to` and `operand`; a comparison changes the flags only.
    pub(super) fn alu(&mut self, op: Alu, width: Width, to: Host, operand: Operand) {
        macro_rules! forms {
            ($double:ident $double_byte:ident $double_word:ident, $word:ident $word_byte:ident $word_word:ident) => {
                match (width, operand) {
                    (Width::Double, Operand::Register(from)) => emit!(self, $double(to, from)),
                    (Width::Word, Operand::Register(from)) => emit!(self, $word(to, from)),
                    (Width::Double, Operand::Immediate(value)) => match i8::try_from(value) {
                        Ok(byte) => emit!(self, $double_byte(to, byte)),
                        Err(_) => emit!(self, $double_word(to, value)),
                    },
                    (Width::Word, Operand::Immediate(value)) => match i8::try_from(value) {
                        Ok(byte) => emit!(self, $word_byte(to, byte)),
                        Err(_) => emit!(self, $word_word(to, value as u32)),
                    },
                }
            };
        }
        match op {
            Alu::Add => forms!(addq_rm addq_mi_sxb addq_mi_sxl, addl_rm addl_mi_sxb addl_mi),
            Alu::Or => forms!(orq_rm orq_mi_sxb orq_mi_sxl, orl_rm orl_mi_sxb orl_mi),
            Alu::And => forms!(andq_rm andq_mi_sxb andq_mi_sxl, andl_rm andl_mi_sxb andl_mi),
            Alu::Sub => forms!(subq_rm subq_mi_sxb subq_mi_sxl, subl_rm subl_mi_sxb subl_mi),
            Alu::Xor => forms!(xorq_rm xorq_mi_sxb xorq_mi_sxl, xorl_rm xorl_mi_sxb xorl_mi),
            Alu::Cmp => forms!(cmpq_rm cmpq_mi_sxb cmpq_mi, cmpl_rm cmpl_mi_sxb cmpl_mi),
        }
    }

    /// Shifts by a constant.
    pub(super) fn shift(&mut self, op: Shift, width: Width, to: Host, by: u8) {
        let by = Imm8::new(by);
        match op {
            Shift::Left => emit_by_width!(self, width, shlq_mi | shll_mi(to, by)),
            Shift::Right => emit_by_width!(self, width, shrq_mi | shrl_mi(to, by)),
            Shift::Arithmetic => emit_by_width!(self, width, sarq_mi | sarl_mi(to, by)),
            Shift::RotateLeft => emit_by_width!(self, width, rolq_mi | roll_mi(to, by)),
            Shift::RotateRight => emit_by_width!(self, width, rorq_mi | rorl_mi(to, by)),
        }
    }

    /// Shifts by `cl`, modulo the width.
    pub(super) fn shift_by_rcx(&mut self, op: Shift, width: Width, to: Host) {
        match op {
            Shift::Left => emit_by_width!(self, width, shlq_mc | shll_mc(to, RCX)),
            Shift::Right => emit_by_width!(self, width, shrq_mc | shrl_mc(to, RCX)),
            Shift::Arithmetic => emit_by_width!(self, width, sarq_mc | sarl_mc(to, RCX)),
            Shift::RotateLeft => emit_by_width!(self, width, rolq_mc | roll_mc(to, RCX)),
            Shift::RotateRight => emit_by_width!(self, width, rorq_mc | rorl_mc(to, RCX)),
        }
    }

    /// `to` becomes 1 if the condition holds, otherwise 0. The flags stay.
    pub(super) fn set(&mut self, condition: Condition, to: Host) {
        match condition {
            Condition::Equal => emit!(self, sete_m(RAX)),
            Condition::NotEqual => emit!(self, setne_m(RAX)),
            Condition::Less => emit!(self, setl_m(RAX)),
            Condition::GreaterOrEqual => emit!(self, setge_m(RAX)),
            Condition::LessOrEqual => emit!(self, setle_m(RAX)),
            Condition::Greater => emit!(self, setg_m(RAX)),
            Condition::Below => emit!(self, setb_m(RAX)),
            Condition::AboveOrEqual => emit!(self, setae_m(RAX)),
            Condition::BelowOrEqual => emit!(self, setbe_m(RAX)),
            Condition::Above => emit!(self, seta_m(RAX)),
            Condition::Sign => emit!(self, sets_m(RAX)),
        }
        emit!(self, movzbl_rm(to, RAX));
    }

    /// Orders earlier stores before later loads.
    pub(super) fn fence(&mut self) {
        inst::mfence_zo::new().encode(&mut self.code);
    }

    /// Returns.
    pub(super) fn leave(&mut self) {
        inst::retq_zo::new().encode(&mut self.code);
    }

    /// Faults.
    pub(super) fn refuse(&mut self) {
        inst::ud2_zo::new(no_trap()).encode(&mut self.code);
    }

    /// Jumps if the condition holds.
    pub(super) fn jump_if(&mut self, condition: Condition) -> Jump {
        jump_by!(self, condition, je_d32 jne_d32 jl_d32 jge_d32 jle_d32 jg_d32 jb_d32 jae_d32 jbe_d32 ja_d32 js_d32);
        Jump(self.offset())
    }

    /// Jumps a short way if the condition holds.
    pub(super) fn short_jump_if(&mut self, condition: Condition) -> ShortJump {
        jump_by!(self, condition, je_d8 jne_d8 jl_d8 jge_d8 jle_d8 jg_d8 jb_d8 jae_d8 jbe_d8 ja_d8 js_d8);
        ShortJump(self.offset())
    }

    /// Calls code at a place that is not known yet.
    pub(super) fn call(&mut self) -> Jump {
        inst::callq_d::new(0).encode(&mut self.code);
        Jump(self.offset())
    }

    /// Jumps a short way.
    pub(super) fn short_jump(&mut self) -> ShortJump {
        inst::jmp_d8::new(0).encode(&mut self.code);
        ShortJump(self.offset())
    }

    /// Jumps a short way back, to an offset, if the last two operands differed.
    pub(super) fn short_jump_back_if_not_equal(&mut self, to: usize) {
        let ShortJump(from) = self.short_jump_if(Condition::NotEqual);
        self.code.0[from - 1] = (to as isize - from as isize) as i8 as u8;
    }

    /// Jumps to an offset.
    pub(super) fn jump_to(&mut self, to: usize) {
        inst::jmp_d32::new(0).encode(&mut self.code);
        let from = self.offset();
        self.set_distance(from, to);
    }

    /// The jump leads here.
    pub(super) fn land(&mut self, jump: Jump) {
        self.land_at(jump, self.offset());
    }

    /// The jump leads to an offset.
    pub(super) fn land_at(&mut self, Jump(from): Jump, to: usize) {
        self.set_distance(from, to);
    }

    /// The jump leads here.
    pub(super) fn land_short(&mut self, ShortJump(from): ShortJump) {
        let distance = self.offset() - from;
        debug_assert!(distance <= i8::MAX as usize, "{distance}");
        self.code.0[from - 1] = distance as u8;
    }

    fn set_distance(&mut self, from: usize, to: usize) {
        let distance = (to as isize - from as isize) as i32;
        self.code.0[from - 4..from].copy_from_slice(&distance.to_le_bytes());
    }
}
