//! Tier 0: decoded blocks, kept by codewarden like any other translation and
//! run by the oracle's own definition of each instruction. What runs once or
//! twice never pays the compiler.
//!
//! # Safety
//!
//! A block's stale flag lives as long as its payload, which holds the decoded
//! block.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use super::listener::Recorder;
use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::exec::exec;
use crate::riscv::inst::Inst;
use crate::riscv::trap::{Flow, Trap};

/// A decoded block.
#[derive(Debug)]
pub struct DecodedBlock {
    insts: Box<[Inst]>,
    /// Set when the block is killed; `None` where nobody need look.
    stale: Option<NonNull<AtomicU8>>,
    /// How often it ran.
    runs: AtomicU32,
}

// SAFETY: the flag is an atomic that lives as long as the block.
unsafe impl Send for DecodedBlock {}
// SAFETY: as above.
unsafe impl Sync for DecodedBlock {}

/// How a run of a block ended. The hart is between two instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// At its end, or behind a store that killed it.
    Next,
    /// Behind a FENCE.I.
    FenceI,
    /// At an instruction that did not retire.
    Trap(Trap),
}

impl DecodedBlock {
    /// Of `insts`; `stale` is the flag of the ticket that it is committed by.
    pub fn new(insts: Vec<Inst>, stale: Option<NonNull<AtomicU8>>) -> Self {
        Self { insts: insts.into(), stale, runs: AtomicU32::new(0) }
    }

    /// Counts a run; how many there were before.
    pub fn count_run(&self) -> u32 {
        // Lost counts of racing harts do not matter.
        let runs = self.runs.load(Ordering::Relaxed);
        self.runs.store(runs.wrapping_add(1), Ordering::Relaxed);
        runs
    }

    /// Runs the block on `hart`, which is at its start.
    pub(super) fn run(&self, hart: &mut Hart, window: &Window, recorder: Option<&Recorder>) -> End {
        for inst in &self.insts {
            let store = recorder.and_then(|recorder| recorder.store(inst, hart));
            let flow = exec(inst, hart, window);
            if let (Some(recorder), Some(store)) = (recorder, store) {
                recorder.stored(store);
            }
            match flow {
                Ok(Flow::Next) => {}
                Ok(Flow::Jump) => return End::Next,
                Ok(Flow::FenceI) => return End::FenceI,
                Err(trap) => return End::Trap(trap),
            }
            // A store into the block itself: what follows is not true any more.
            if inst.op.stores() && self.is_stale() {
                return End::Next;
            }
        }
        End::Next
    }

    fn is_stale(&self) -> bool {
        // SAFETY: the flag lives as long as this block.
        self.stale.is_some_and(|flag| unsafe { flag.as_ref() }.load(Ordering::Relaxed) != 0)
    }
}
