//! The dispatcher of one hart.
//!
//! # Safety
//!
//! An entry of the cache is an address in its payload: a decoded block, or host code. The
//! dispatcher uses an entry only under the pin that it was looked up with, so the payload lives.
#![allow(unsafe_code)]

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use codewarden::addr::GuestAddr;
use codewarden::protection::Mode;
use codewarden::{CodeCache, Entry, EntryStubs, Key, Pin, Ticket, VCpu};

use super::counters::{Counters, count};
use super::first_runs::FirstRuns;
use super::interpret;
use super::payload::{Compiled, Payload, compiled_key, decoded_key};
use super::recorder::Recorder;
use super::region;
use super::source::{self, ReadError, Source};
use super::threaded::End;
use super::tier0::{Admission, DecodedBlock};
use crate::cli::Tier;
use crate::hart::Hart;
use crate::linux::machine::{Executor, Exit};
use crate::memory::Window;
use crate::memory::window::WRITE;
use crate::riscv::trap::{Flow, Trap};
use crate::translate::{
    Block, BlockOptions, CodeSpace, ExitReason, HAS_QUICK, OwnStores, TranslateError, Translator, entry_stubs,
};

/// Runs of a decoded block before it is compiled. The quick compiler takes 1 or 2 us, which some
/// runs of decoded instructions take as well.
const WARM_RUNS: u32 = if HAS_QUICK { 4 } else { HOT_RUNS };

/// Runs of a quickly compiled block before its region is compiled. A region costs 60 to 100 us for
/// each block, and saves about 1 ns a run of each. So when the counter is down, the block has cost
/// about as much as its region will. Where no quick compiler is, a region saves more than 10 ns a run.
const HOT_RUNS: u32 = if HAS_QUICK { 100_000 } else { 4096 };

/// A block is compiled together with a hot one after `HOT_RUNS` divided by this.
const NEIGHBOUR_SHARE: u32 = 8;

/// Instructions that the interpreter runs while a page is busy, before the dispatcher asks the
/// cache again.
const INTERPRETER_STEPS: u32 = 32;

/// A full code memory evicts one part in this many.
const EVICTED_SHARE: usize = 16;

/// The dispatcher's next action.
enum Step {
    /// Looks up `hart.pc`.
    Dispatch,
    /// Decodes the block at `hart.pc`, unless this is its first run.
    Decode,
    /// Compiles it.
    Compile(Compiler),
    /// Applies the guest's writes, then looks up `hart.pc`.
    Flush,
    /// Lets the interpreter run one instruction that compiled code refused.
    Interpret,
    /// Lets the interpreter run to the end of the block.
    InterpretBlock,
    /// Goes back to Linux.
    Exit(Exit),
}

/// Makes host code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Compiler {
    /// Of one block, quickly.
    Quick,
    /// Of the block and the hot ones around it.
    Region,
}

impl Compiler {
    /// The compiler of a block that tier 0 has run often.
    fn after_tier_0(tier: Tier) -> Self {
        if HAS_QUICK && tier != Tier::Region { Self::Quick } else { Self::Region }
    }
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

/// The state that the executors of an engine share.
pub(super) struct Shared {
    pub(super) window: Window,
    pub(super) cache: &'static CodeCache<Payload>,
    /// `None` if nothing is compiled.
    pub(super) space: Option<Arc<CodeSpace>>,
    pub(super) mode: Mode,
    pub(super) tier: Tier,
    pub(super) counters: Arc<Counters>,
    pub(super) recorder: Option<Arc<Recorder>>,
}

/// A ticket, and the blocks that were read under it, with their addresses.
type Read = (Ticket<Payload>, Vec<(u64, Source)>);

/// Runs one hart.
pub(super) struct EngineExecutor {
    vcpu: VCpu<Payload>,
    cache: CodeCache<Payload>,
    window: Window,
    /// The compiler and its space for code; `None` if nothing is compiled.
    compiler: Option<(Arc<CodeSpace>, Translator)>,
    mode: Mode,
    tier: Tier,
    running: Arc<Running>,
    first_runs: FirstRuns,
    counters: Arc<Counters>,
    recorder: Option<Arc<Recorder>>,
}

impl EngineExecutor {
    pub(super) fn new(shared: &Shared) -> Self {
        let running = Arc::new(Running(Mutex::new(ptr::null())));
        let asked = running.clone();
        Self {
            vcpu: shared.cache.attach_vcpu_with(move || asked.ask_to_leave()),
            cache: shared.cache.clone(),
            window: shared.window,
            compiler: shared.space.clone().map(|space| (space.clone(), Translator::new(space))),
            mode: shared.mode,
            tier: shared.tier,
            running,
            first_runs: FirstRuns::new(),
            counters: shared.counters.clone(),
            recorder: shared.recorder.clone(),
        }
    }

    /// The reaction of a block or region to its own stores, if the very next instruction must see a
    /// store.
    fn own_stores(&self, ticket: &mut Ticket<Payload>, sources: &[(u64, Source)]) -> OwnStores {
        if !self.mode.is_synchronous() || !sources.iter().any(|(_, source)| source.stores()) {
            return OwnStores::Ignore;
        }
        let ends = |(pc, source): &(u64, Source)| [*pc, pc + source.bytes.len() as u64 - 1];
        let ends = || sources.iter().flat_map(ends);
        // A store to a page that may not be written is the guest's fault. The block dies if the
        // permissions change.
        let is_shared = ends().any(|addr| !self.cache.tracker().aliases(GuestAddr(addr)).is_empty());
        if !is_shared && !ends().any(|addr| self.window.permissions(addr) & WRITE != 0) {
            return OwnStores::Ignore;
        }
        if !is_shared && sources.len() == 1 {
            return OwnStores::Compare;
        }
        NonNull::new(ticket.stale_flag().cast_mut().cast()).map_or(OwnStores::Compare, OwnStores::Poll)
    }

    /// The blocks to compile together with the one at `pc`.
    fn region(&mut self, pc: u64) -> Vec<u64> {
        // A listener that wants blocks gets each of its own.
        if self.wants_blocks() {
            return vec![pc];
        }
        let mut pin = self.vcpu.pin();
        let space = self.compiler.as_ref().map(|(space, _)| &**space);
        let mut runs = |pc| match pin.lookup_shared(compiled_key(pc)) {
            // A region does not count.
            Some(entry) => {
                Some(space.and_then(|space| space.runs_left(entry)).map_or(HOT_RUNS, |left| HOT_RUNS - left))
            }
            None => {
                let entry = pin.lookup_shared(decoded_key(pc))?;
                // SAFETY: the entry of a decoded key is its payload's block, which the pin keeps.
                let (block, must_ask) = unsafe { DecodedBlock::of_entry(entry) };
                (!must_ask).then(|| block.runs())
            }
        };
        let warm = |pc| runs(pc).filter(|runs| *runs >= HOT_RUNS / NEIGHBOUR_SHARE);
        region::plan(pc, warm, |pc| source::shape(&self.window, pc))
    }

    /// Reads the blocks at `starts` under a ticket of the first. If a page of theirs is
    /// self-checking, only the first.
    fn read(&self, key: Key, starts: &[u64]) -> Result<Read, ReadError> {
        let mut ticket = self.cache.begin(key);
        let mut sources = Vec::with_capacity(starts.len());
        for &pc in starts {
            match source::read(&mut ticket, &self.window, pc, starts) {
                Ok(source) => {
                    // These pages were claimed, so this succeeds.
                    ticket.add_source(GuestAddr(pc), &source.bytes).map_err(|_| ReadError::Busy)?;
                    sources.push((pc, source));
                }
                Err(error) if sources.is_empty() => return Err(error),
                Err(_) => return self.read(key, &starts[..1]),
            }
            if starts.len() > 1 && ticket.needs_check() {
                return self.read(key, &starts[..1]);
            }
        }
        Ok((ticket, sources))
    }

    /// Reads the block at `hart.pc`, or the region to compile from there, under a ticket, and makes
    /// or revives a payload with its entries. If that is impossible now, the interpreter runs for a
    /// while.
    fn make(&mut self, hart: &mut Hart, compiler: Option<Compiler>) -> Step {
        let pc = hart.pc;
        let key = if compiler.is_some() { compiled_key(pc) } else { decoded_key(pc) };
        let starts = if compiler == Some(Compiler::Region) { self.region(pc) } else { vec![pc] };
        let (mut ticket, mut sources) = match self.read(key, &starts) {
            Ok(read) => read,
            Err(ReadError::Fetch(trap)) => return Step::Exit(Exit::Trap(trap)),
            Err(ReadError::Busy) => return self.interpret(hart),
        };
        let own_stores = self.own_stores(&mut ticket, &sources);
        // A compiler's block does not serve for the other's, and a region has no self-checking entry.
        let [is_quick, has_many] = [compiler == Some(Compiler::Quick), sources.len() > 1].map(u64::from);
        ticket.set_options(own_stores.kind() << 2 | is_quick << 1 | has_many);
        match ticket.revive() {
            Ok(None) => {
                self.recorder.iter().for_each(|recorder| recorder.revived(pc, compiler.is_some()));
                return Step::Dispatch;
            }
            Ok(Some(unmade)) => ticket = unmade,
            Err(_) => return self.refused(hart),
        }
        let ranges: Vec<(u64, usize)> = sources.iter().map(|(pc, source)| (*pc, source.bytes.len())).collect();
        let bytes = self.wants_blocks().then(|| sources[0].1.bytes.clone());
        let made = match compiler {
            Some(compiler) => self.compile(&mut ticket, &sources, own_stores, compiler),
            None => {
                let (pc, source) = sources.swap_remove(0);
                Some(decoded(pc, source, own_stores))
            }
        };
        // Without memory for code the guest goes on, interpreted for a while.
        let Some((entry, payload)) = made else { return self.interpret(hart) };
        count(match compiler {
            None => &self.counters.blocks_decoded,
            Some(Compiler::Quick) => &self.counters.blocks_compiled,
            Some(Compiler::Region) => &self.counters.regions_compiled,
        });
        if let Some(recorder) = &self.recorder {
            let _alive = self.vcpu.pin();
            ranges.iter().for_each(|&(pc, len_bytes)| recorder.made(pc, len_bytes));
            bytes.iter().for_each(|bytes| recorder.translated(pc, bytes, payload.compiled(), ticket.needs_check()));
        }
        ticket.set_payload_bytes(payload.owned_bytes());
        match ticket.commit(entry, payload) {
            Ok(()) => Step::Dispatch,
            Err(_) => self.refused(hart),
        }
    }

    /// Compiles the block at `hart.pc`, or revives its code.
    fn make_compiled(&mut self, hart: &mut Hart, compiler: Compiler) -> Step {
        let pc = hart.pc;
        let step = self.make(hart, Some(compiler));
        if self.tier == Tier::Auto && matches!(step, Step::Dispatch) {
            // Links to it lead to the dispatcher now, which finds the compiled one.
            self.cache.remove(decoded_key(pc));
        }
        step
    }

    /// A write came while a block was made.
    fn refused(&mut self, hart: &mut Hart) -> Step {
        if let Some(recorder) = &self.recorder {
            recorder.refused(hart.pc);
        }
        self.interpret(hart)
    }

    fn compile(
        &mut self,
        ticket: &mut Ticket<Payload>,
        sources: &[(u64, Source)],
        own_stores: OwnStores,
        compiler: Compiler,
    ) -> Option<(Entry, Payload)> {
        // Without tracking a page becomes self-checking only while a write to it is announced. A
        // quick block without a check is soon made again with one.
        let may_check = self.mode != Mode::None && compiler == Compiler::Region;
        let checks = sources.len() == 1 && (may_check || ticket.needs_check());
        let source = checks.then_some(&*sources[0].1.bytes);
        let stale_flag = match compiler {
            // Nothing loops within one block.
            Compiler::Quick => None,
            Compiler::Region => NonNull::new(ticket.stale_flag().cast_mut().cast()),
        };
        let options = BlockOptions { own_stores, stale_flag, source };
        let blocks: Vec<Block> = sources.iter().map(|(pc, source)| source.placed(*pc)).collect();
        let (space, translator) = self.compiler.as_mut()?;
        let mut link = |pc| NonNull::new(ticket.link(compiled_key(pc)).ok()?.cast_mut());
        let mut compile = || match compiler {
            Compiler::Quick => translator.compile_quick(&blocks[0], &options, HOT_RUNS, &mut link),
            Compiler::Region => translator.compile(&blocks, &options, &mut link),
        };
        let mut block = compile();
        if let Err(TranslateError::NoCodeMemory(_)) = block {
            // Memory that other harts are still in is free only for a later attempt.
            self.cache.evict(space.buffer().executable().len() / EVICTED_SHARE);
            block = compile();
        }
        let block = block.ok()?;
        let plain = block.entry();
        let entry =
            block.self_checking_entry().map_or(Entry::plain(plain), |checked| Entry::with_check(plain, checked));
        let recorder = self.recorder.clone().map(|recorder| recorder as _);
        Some((entry, Payload::Compiled(Box::new(Compiled { block, recorder }))))
    }

    fn wants_blocks(&self) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.wants_blocks())
    }

    /// Code that runs once is not worth a block, unless a listener wants blocks.
    fn is_first_run(&mut self, pc: u64) -> bool {
        if self.tier != Tier::Auto || self.wants_blocks() {
            return false;
        }
        // An aligned load needs no page that the code does not need.
        let bytes = self.window.load_u64(pc & !7);
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
            match interpret::step(hart, &self.window, &mut self.vcpu, self.recorder.as_deref()) {
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
        match interpret::step(hart, &self.window, &mut self.vcpu, self.recorder.as_deref()) {
            Ok(Flow::Next | Flow::Jump) => Step::Dispatch,
            Ok(Flow::FenceI) => Step::Flush,
            Err(trap) => Step::Exit(Exit::Trap(trap)),
        }
    }

    /// The guest has announced that its code may have changed.
    fn flush(&self) {
        // A page that could not be harvested counts as written, so going on loses nothing.
        let _ = self.cache.tracker().sync();
    }

    /// Looks up and runs blocks until one needs another step.
    fn dispatch(&mut self, hart: &mut Hart) -> Step {
        let Self { vcpu, cache, window, compiler, tier, recorder, .. } = self;
        let space = compiler.as_ref().map(|(space, _)| &**space).filter(|space| space.is_usable());
        let mut pin = vcpu.pin();
        loop {
            if hart.exit_request.load(Ordering::Acquire) != 0 {
                return Step::Exit(Exit::Interrupted);
            }
            if let Some(step) = run_block(&mut pin, cache, window, space, *tier, hart, recorder.as_deref()) {
                return step;
            }
        }
    }
}

/// Runs the block at `hart.pc` and the blocks that it links to. `None`: look up the next.
fn run_block(
    pin: &mut Pin<'_, Payload>,
    cache: &CodeCache<Payload>,
    window: &Window,
    space: Option<&CodeSpace>,
    tier: Tier,
    hart: &mut Hart,
    recorder: Option<&Recorder>,
) -> Option<Step> {
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
        if decoded.count_run() % WARM_RUNS == WARM_RUNS - 1 && space.is_some() {
            return Some(Step::Compile(Compiler::after_tier_0(tier)));
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
        ExitReason::Trap | ExitReason::Fault => Some(Step::Interpret),
    }
}

fn decoded(pc: u64, source: Source, own_stores: OwnStores) -> (Entry, Payload) {
    let block = Box::new(DecodedBlock::new(pc, &source, own_stores));
    (block.entry(), Payload::Decoded(block))
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
                Step::Decode => self.make(hart, None),
                Step::Compile(compiler) => self.make_compiled(hart, compiler),
                Step::Interpret => self.step(hart),
                Step::InterpretBlock => self.interpret(hart),
                Step::Flush => {
                    self.flush();
                    Step::Dispatch
                }
                Step::Exit(exit) => break exit,
            };
        };
        self.running.set(ptr::null());
        if let (Some(recorder), Exit::Trap(Trap::Ecall)) = (&self.recorder, exit) {
            let _alive = self.vcpu.pin();
            recorder.system_call();
        }
        exit
    }
}
