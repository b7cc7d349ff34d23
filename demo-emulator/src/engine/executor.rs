//! The dispatcher of one hart.
//!
//! # Safety
//!
//! An entry of the cache is an address in its payload: a decoded block, or host code. The
//! dispatcher uses an entry only under the pin that it was looked up with, so the payload lives.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use codewarden::{CodeCache, EntryStubs, Pin, VCpu};

use super::batch::Batch;
use super::counters::{Counters, count};
use super::first_runs::FirstRuns;
use super::interpret;
use super::make::{Compiler, HOT_RUNS, Maker, NotMade, Shared};
use super::payload::{Payload, compiled_key, decoded_key};
use super::recorder::Recorder;
use super::threaded::End;
use super::tier0::{Admission, DecodedBlock};
use crate::cli::Tier;
use crate::hart::Hart;
use crate::linux::machine::{Executor, Exit};
use crate::riscv::trap::{Flow, Trap};
use crate::translate::{CodeSpace, ExitReason, entry_stubs};

/// Instructions that the interpreter runs while a page is busy, before the dispatcher asks the
/// cache again.
const INTERPRETER_STEPS: u32 = 32;

/// The dispatcher's next action.
enum Step {
    /// Looks up `hart.pc`.
    Dispatch,
    /// Decodes the block at `hart.pc`, unless this is its first run.
    Decode,
    /// Compiles it.
    Compile(Compiler),
    /// Compiles the blocks that wait for it.
    CompileBatch,
    /// Applies the guest's writes, then looks up `hart.pc`.
    Flush,
    /// Lets the interpreter run one instruction that compiled code refused.
    Interpret,
    /// Goes on at the restart of a fault of compiled code.
    Restart,
    /// Lets the interpreter run to the end of the block.
    InterpretBlock,
    /// Goes back to Linux.
    Exit(Exit),
}

/// The hart that the cache may ask to leave its code; null while there is none.
struct Running(Mutex<*const AtomicU8>);

// SAFETY: the pointer is used under the lock, while the hart runs.
unsafe impl Send for Running {}
// SAFETY: as above.
unsafe impl Sync for Running {}

impl Running {
    fn set(&self, flag: *const AtomicU8) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = flag;
    }

    fn ask_to_leave(&self) {
        let flag = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: set while `run` has the hart, and null before it returns.
        if let Some(flag) = unsafe { flag.as_ref() } {
            flag.store(1, Ordering::Release);
        }
    }
}

/// Runs one hart.
pub(super) struct EngineExecutor {
    vcpu: VCpu<Payload>,
    maker: Maker,
    running: Arc<Running>,
    first_runs: FirstRuns,
    batch: Batch,
    counters: Arc<Counters>,
}

impl EngineExecutor {
    pub(super) fn new(shared: &Shared) -> Self {
        let running = Arc::new(Running(Mutex::new(ptr::null())));
        let asked = running.clone();
        Self {
            vcpu: shared.cache.attach_vcpu_with(move || asked.ask_to_leave()),
            maker: Maker::new(shared),
            running,
            first_runs: FirstRuns::new(),
            batch: Batch::new(),
            counters: shared.counters.clone(),
        }
    }

    /// Goes on after a block was made. If it could not be made now, the interpreter runs for a while.
    fn step_after(&mut self, made: Result<(), NotMade>, hart: &mut Hart) -> Step {
        match made {
            Ok(()) => Step::Dispatch,
            Err(NotMade::Fetch(trap)) => Step::Exit(Exit::Trap(trap)),
            Err(NotMade::Busy) => self.interpret(hart),
        }
    }

    /// Code that runs once is not worth a block, unless a listener wants blocks.
    fn is_first_run(&mut self, pc: u64) -> bool {
        if self.maker.tier != Tier::Auto || self.maker.wants_blocks() {
            return false;
        }
        // An aligned load needs no page that the code does not need.
        let bytes = self.maker.window.load_u64(pc & !7);
        bytes.is_ok_and(|bytes| self.first_runs.is_first(pc, bytes))
    }

    /// Runs the interpreter because no block can be made now.
    fn interpret(&mut self, hart: &mut Hart) -> Step {
        count(&self.counters.interpreter_runs);
        self.run_interpreter(hart)
    }

    /// Runs the interpreter to the end of a block, a few instructions at most.
    fn run_interpreter(&mut self, hart: &mut Hart) -> Step {
        for _ in 0..INTERPRETER_STEPS {
            match interpret::step(hart, &self.maker.window, &mut self.vcpu, self.maker.recorder.as_deref()) {
                Ok(Flow::Next) => {}
                Ok(Flow::Jump) => break,
                Ok(Flow::FenceI) => return Step::Flush,
                Err(trap) => return Step::Exit(Exit::Trap(trap)),
            }
        }
        Step::Dispatch
    }

    /// One instruction by the interpreter.
    fn step(&mut self, hart: &mut Hart) -> Step {
        match interpret::step(hart, &self.maker.window, &mut self.vcpu, self.maker.recorder.as_deref()) {
            Ok(Flow::Next | Flow::Jump) => Step::Dispatch,
            Ok(Flow::FenceI) => Step::Flush,
            Err(trap) => Step::Exit(Exit::Trap(trap)),
        }
    }

    /// After a fault of compiled code. If it went far back, the region is made without far restarts, and
    /// runs again from there. Otherwise the interpreter runs the few instructions up to the fault.
    fn restart(&mut self, hart: &mut Hart) -> Step {
        match std::mem::take(&mut hart.far_region) {
            0 => self.run_interpreter(hart),
            region => {
                self.maker.went_far(region, hart.pc);
                Step::Dispatch
            }
        }
    }

    /// The guest has announced that its code may have changed.
    fn flush(&self) {
        // A page that could not be harvested counts as written, so going on loses nothing.
        let _ = self.maker.cache.tracker().sync();
    }

    /// Looks up and runs blocks until one needs another step.
    fn dispatch(&mut self, hart: &mut Hart) -> Step {
        let Self { vcpu, batch, maker, .. } = self;
        let space = maker.compiler.as_ref().map(|(space, _)| &**space).filter(|space| space.is_usable());
        let mut pin = vcpu.pin();
        loop {
            if hart.exit_request.load(Ordering::Acquire) != 0 {
                return Step::Exit(Exit::Interrupted);
            }
            if let Some(step) = run_block(&mut pin, maker, space, batch, hart) {
                return step;
            }
        }
    }
}

/// Runs the block at `hart.pc` and the blocks that it links to. `None`: look up the next.
fn run_block(
    pin: &mut Pin<'_, Payload>,
    maker: &Maker,
    space: Option<&CodeSpace>,
    batch: &mut Batch,
    hart: &mut Hart,
) -> Option<Step> {
    let Maker { cache, window, tier, recorder, .. } = maker;
    let (tier, recorder) = (*tier, recorder.as_deref());
    if let Some(space) = space {
        match pin.lookup(compiled_key(hart.pc)) {
            Some(entry) => return run_compiled(pin, cache, space, tier, hart, entry, recorder),
            None if tier != Tier::Auto => return Some(Step::Compile(Compiler::after_tier_0(tier))),
            None => {}
        }
    }
    let Some(mut entry) = pin.lookup_shared(decoded_key(hart.pc)) else { return Some(Step::Decode) };
    loop {
        // SAFETY: the entry of a decoded key is its payload's block, which the pin keeps alive.
        let (decoded, must_ask) = unsafe { DecodedBlock::of_entry(entry) };
        if must_ask {
            let admission = decoded.admits(window);
            if admission != Admission::Run {
                recorder.iter().for_each(|recorder| recorder.overwritten(hart.pc, false));
            }
            match admission {
                Admission::Run => {}
                Admission::Interpret => return Some(Step::InterpretBlock),
                Admission::Decode => {
                    cache.remove(decoded_key(hart.pc));
                    return Some(Step::Decode);
                }
            }
        }
        let runs = decoded.count_run();
        if space.is_some() && batch.is_due(hart.pc, runs) {
            return Some(Step::CompileBatch);
        }
        let end = match recorder {
            Some(recorder) => decoded.run_recorded(hart, window, recorder),
            None => decoded.run(hart, window),
        };
        match end {
            End::Next => {}
            End::FenceI => return Some(Step::Flush),
            End::Trap => return Some(Step::Interpret),
        }
        if hart.exit_request.load(Ordering::Acquire) != 0 {
            return None;
        }
        entry = decoded
            .exit(hart.pc, || cache.link(decoded_key(hart.pc)).ok())
            .map(|link| link.cell().load())
            .filter(|&entry| is_block(entry))?;
    }
}

/// Whether the content of an entry cell leads to a block.
fn is_block(entry: usize) -> bool {
    let EntryStubs { dead, pending } = entry_stubs();
    entry != dead && entry != pending
}

fn run_compiled(
    pin: &mut Pin<'_, Payload>,
    cache: &CodeCache<Payload>,
    space: &CodeSpace,
    tier: Tier,
    hart: &mut Hart,
    entry: usize,
    recorder: Option<&Recorder>,
) -> Option<Step> {
    hart.front = pin.front() as u64;
    // SAFETY: the entry of a valid block. The pin keeps it alive, and everything that it can reach.
    // The front is the pin's, and its cells are the cache's.
    let reason = unsafe { space.enter(hart, entry) };
    match reason {
        ExitReason::CheckFailed => {
            cache.remove(compiled_key(hart.pc));
            recorder.iter().for_each(|recorder| recorder.overwritten(hart.pc, true));
            // Another hart may patch the block faster than it can be compiled. Tier 0, if it is in
            // use, takes care of that.
            (tier != Tier::Auto).then_some(Step::InterpretBlock)
        }
        ExitReason::Hot => {
            // If no region can be made now, the block goes on as before.
            if let Some(entry) = pin.lookup_shared(compiled_key(hart.pc)) {
                space.set_runs_left(entry, HOT_RUNS);
            }
            (tier == Tier::Auto).then_some(Step::Compile(Compiler::Region))
        }
        ExitReason::Miss | ExitReason::IndirectMiss | ExitReason::SelfModified => None,
        ExitReason::Interrupted => Some(Step::Exit(Exit::Interrupted)),
        ExitReason::FenceI => Some(Step::Flush),
        ExitReason::Trap => Some(Step::Interpret),
        ExitReason::Fault => Some(Step::Restart),
    }
}

impl Executor for EngineExecutor {
    fn run(&mut self, hart: &mut Hart) -> Exit {
        self.running.set(&raw const hart.exit_request);
        let mut step = Step::Dispatch;
        let exit = loop {
            step = match step {
                Step::Dispatch => self.dispatch(hart),
                Step::Decode if self.is_first_run(hart.pc) => {
                    count(&self.counters.first_runs);
                    self.run_interpreter(hart)
                }
                Step::Decode => {
                    let made = self.maker.decode(&mut self.vcpu, hart.pc);
                    self.step_after(made, hart)
                }
                Step::Compile(compiler) => {
                    let made = self.maker.compile(&mut self.vcpu, hart.pc, compiler);
                    self.step_after(made, hart)
                }
                Step::CompileBatch => {
                    self.maker.compile_decoded(&mut self.vcpu, &self.batch.take());
                    Step::Dispatch
                }
                Step::Interpret => self.step(hart),
                Step::Restart => self.restart(hart),
                Step::InterpretBlock => self.interpret(hart),
                Step::Flush => {
                    self.flush();
                    Step::Dispatch
                }
                Step::Exit(exit) => break exit,
            };
        };
        self.running.set(ptr::null());
        if let (Some(recorder), Exit::Trap(Trap::Ecall)) = (&self.maker.recorder, exit) {
            let _alive = self.vcpu.pin();
            recorder.system_call();
        }
        exit
    }
}
