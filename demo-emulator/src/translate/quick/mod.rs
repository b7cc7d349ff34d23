//! The quick compiler: one block, one pass, each instruction by itself.
//!
//! It takes about a microsecond for a block that takes Cranelift 70.
//!
//! - A guest register's new value is stored to the hart at once, so the hart is always exact, and a
//!   fault or an exit needs no preparation. A store is left out only if the next instruction
//!   overwrites the register and neither can leave the block between the two.
//! - Within the block, host registers keep guest values, so that most reads need no load
//!   (`cache`). Constants that a block makes of its own pc or of immediates are known.
//! - Floating-point arithmetic, CSRs and a few rare operations are calls of a helper (`helper`).
//! - Each block counts its runs down, and leaves when it is worth a region.
//!
//! rdi and rsi hold the hart and the window's base. rax, rcx and rdx serve within an instruction;
//! all others but rsp belong to the cache.
//!
//! | file | contents |
//! |---|---|
//! | `asm` | host instructions as bytes |
//! | `cache` | guest registers in host registers, and known constants |
//! | `builder` | a block that is being compiled: operands, results, faults, rare ways |
//! | `exits` | the entry and the end of a block |
//! | `integer` | integer arithmetic |
//! | `bits` | bit manipulation |
//! | `memory` | loads and stores |
//! | `atomic` | LR, SC, atomic memory operations, FENCE |
//! | `float` | floating-point moves |
//! | `helper` | calls of the helper |

mod asm;
mod atomic;
mod bits;
mod builder;
mod cache;
mod exits;
mod float;
mod helper;
mod integer;
mod memory;

use std::ptr;
use std::sync::atomic::AtomicI32;

use super::code_space::CodeSpace;
use super::fault_points::FaultPoint;
use super::lower::emitter::LinkTo;
use super::near::Near;
use super::options::BlockOptions;
use super::region::{Block, ends_block};
use super::restart::computes_integer;
use crate::memory::window::WINDOW_LEN_BYTES;
use crate::riscv::inst::{Inst, Op};
use asm::Assembler;
use builder::{Buffers, Builder};
use cache::Cache;
use helper::is_helped;

/// The instructions of a block whose address its code has.
pub(super) fn kept(block: &Block) -> Box<[Inst]> {
    block.iter().map(|&(_, inst)| inst).filter(|inst| is_helped(inst.op)).collect()
}

/// Whether the code of an operation only computes its result, an integer register's new value.
fn only_computes(op: Op) -> bool {
    computes_integer(op) && !is_helped(op)
}

/// Compiles one block after another.
pub(super) struct BlockCompiler(Buffers);

impl BlockCompiler {
    pub(super) fn new() -> Self {
        Self(Buffers { asm: Assembler::new(), points: Vec::new(), rare: Vec::new() })
    }

    /// The code of the last block.
    pub(super) fn code(&self) -> &[u8] {
        self.0.asm.bytes()
    }

    /// The places in it that may fault.
    pub(super) fn points(&self) -> &[FaultPoint] {
        &self.0.points
    }

    /// Compiles a block, which has one instruction at least. `kept` are its instructions for the
    /// helper, and `counter` is the place of the count of runs that it has left; both stay in place
    /// as long as the code.
    pub(super) fn compile(
        &mut self,
        space: &CodeSpace,
        block: &Block,
        options: &BlockOptions,
        kept: &[Inst],
        counter: *const AtomicI32,
        link: LinkTo,
    ) {
        let Buffers { asm, points, rare } = &mut self.0;
        asm.clear();
        points.clear();
        rare.clear();
        let (&(start, _), &(last_pc, last)) = (&block[0], &block[block.len() - 1]);
        let mut builder = Builder {
            asm,
            points,
            rare,
            cache: Cache::new(),
            near: Near::new(),
            start,
            end: last_pc.wrapping_add(u64::from(last.len)),
            pc: start,
            is_overwritten: false,
            own_stores: options.own_stores,
            base_is_limit: space.window.base() as u64 == WINDOW_LEN_BYTES,
            window: ptr::from_ref(&space.window),
            kept,
            first_kept: kept.as_ptr(),
            link,
        };
        builder.count_run(counter);
        for (index, (pc, inst)) in block.iter().enumerate() {
            builder.pc = *pc;
            if ends_block(inst.op) {
                builder.is_overwritten = false;
                builder.end_block(inst);
            } else {
                builder.is_overwritten = block.get(index + 1).is_some_and(|(_, next)| is_overwritten(inst, next));
                builder.inst(inst);
            }
        }
        if !ends_block(last.op) {
            builder.go(builder.end);
        }
        builder.finish();
    }
}

/// Whether `next` overwrites the result of `inst` before the block can be left.
fn is_overwritten(inst: &Inst, next: &Inst) -> bool {
    inst.rd == next.rd && only_computes(next.op) && !inst.op.stores()
}

impl Builder<'_> {
    /// Emits an instruction that does not end a block.
    fn inst(&mut self, inst: &Inst) {
        use Op::*;
        match inst.op {
            op if only_computes(op) => {
                // Without a register for its result it does nothing.
                if inst.rd != 0 && !self.integer(inst) {
                    self.bits(inst);
                }
            }
            op if is_helped(op) => self.call_helper(inst),
            Lb | Lh | Lw | Ld | Lbu | Lhu | Lwu | Flh | Flw | Fld => self.load(inst),
            Sb | Sh | Sw | Sd | Fsh | Fsw | Fsd => self.store(inst),
            Cbo_clean | Cbo_flush => self.touch_block(inst),
            Cbo_zero => self.zero_block(inst),
            Lr_w | Lr_d => self.load_reserved(inst),
            Sc_w | Sc_d => self.store_conditional(inst),
            Amoswap_w | Amoadd_w | Amoxor_w | Amoand_w | Amoor_w | Amomin_w | Amomax_w | Amominu_w | Amomaxu_w
            | Amoswap_d | Amoadd_d | Amoxor_d | Amoand_d | Amoor_d | Amomin_d | Amomax_d | Amominu_d | Amomaxu_d => {
                self.atomic(inst);
            }
            Fence => self.fence(inst),
            _ => self.float_move(inst),
        }
        self.near.pass(inst);
    }
}
