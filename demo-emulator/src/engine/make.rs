//! Makes blocks: reads the guest's code under a ticket, decodes or compiles it, and commits it.
//!
//! # Safety
//!
//! A block that is found by its entry is used only under the pin that it was looked up with, so it
//! lives.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;

use codewarden::addr::GuestAddr;
use codewarden::protection::Mode;
use codewarden::{CodeCache, Entry, Key, Ticket, VCpu};

use super::counters::{Counters, count};
use super::far_restarts::FarRestarts;
use super::payload::{Payload, compiled_key, decoded_key};
use super::recorder::Recorder;
use super::region;
use super::source::{self, ReadError, Source};
use super::tier0::DecodedBlock;
use crate::cli::Tier;
use crate::memory::Window;
use crate::memory::window::WRITE;
use crate::riscv::trap::Trap;
use crate::translate::{
    Block, BlockOptions, CodeSpace, HAS_QUICK, OwnStores, TranslateError, Translator, UnpublishedBlock, publish_all,
};

/// Runs of a quickly compiled block before its region is compiled. A region costs 60 to 100 us for
/// each block, and saves about 1 ns a run of each. So when the counter is down, the block has cost
/// about as much as its region will. Where no quick compiler is, a region saves more than 10 ns a run.
pub(super) const HOT_RUNS: u32 = if HAS_QUICK { 100_000 } else { 4096 };

/// A block is compiled together with a hot one after `HOT_RUNS` divided by this.
const NEIGHBOUR_SHARE: u32 = 8;

/// A full code memory evicts one part in this many.
const EVICTED_SHARE: usize = 16;

/// Makes host code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Compiler {
    /// Of one block, quickly.
    Quick,
    /// Of the block and the hot ones around it.
    Region,
}

impl Compiler {
    /// The compiler of a block that tier 0 has run often.
    pub(super) fn after_tier_0(tier: Tier) -> Self {
        if HAS_QUICK && tier != Tier::Region { Self::Quick } else { Self::Region }
    }
}

/// Blocks, with their addresses.
type Sources = Vec<(u64, Source)>;

/// Guest code that was read under a ticket.
struct Read {
    /// The key's address.
    pc: u64,
    ticket: Ticket<Payload>,
    sources: Sources,
    own_stores: OwnStores,
    /// Whether no restart may be far.
    near_restarts: bool,
}

/// The reason why no block was made.
pub(super) enum NotMade {
    /// The first instruction cannot be fetched: the guest's own fault.
    Fetch(Trap),
    /// A write is going on or came meanwhile, or there is no memory for code.
    Busy,
}

impl From<ReadError> for NotMade {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Fetch(trap) => Self::Fetch(trap),
            ReadError::Busy => Self::Busy,
        }
    }
}

/// The result of making something of guest code. `None`: an earlier block of the same bytes is
/// reachable again.
type Made<T> = Result<Option<T>, NotMade>;

/// The state that the executors of an engine share.
pub(super) struct Shared {
    pub(super) window: Window,
    pub(super) cache: &'static CodeCache<Payload>,
    /// `None` if nothing is compiled.
    pub(super) space: Option<Arc<CodeSpace>>,
    pub(super) mode: Mode,
    pub(super) tier: Tier,
    pub(super) counters: Arc<Counters>,
    pub(super) far_restarts: Arc<FarRestarts>,
    pub(super) recorder: Option<Arc<Recorder>>,
}

/// Makes the blocks of one hart.
pub(super) struct Maker {
    pub(super) cache: CodeCache<Payload>,
    pub(super) window: Window,
    /// The compiler and its space for code; `None` if nothing is compiled.
    pub(super) compiler: Option<(Arc<CodeSpace>, Translator)>,
    mode: Mode,
    pub(super) tier: Tier,
    counters: Arc<Counters>,
    far_restarts: Arc<FarRestarts>,
    pub(super) recorder: Option<Arc<Recorder>>,
}

impl Maker {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            cache: shared.cache.clone(),
            window: shared.window,
            compiler: shared.space.clone().map(|space| (space.clone(), Translator::new(space))),
            mode: shared.mode,
            tier: shared.tier,
            counters: shared.counters.clone(),
            far_restarts: shared.far_restarts.clone(),
            recorder: shared.recorder.clone(),
        }
    }

    /// Decodes the block at `pc`, or revives it.
    pub(super) fn decode(&mut self, vcpu: &mut VCpu<Payload>, pc: u64) -> Result<(), NotMade> {
        let Some(read) = self.read(decoded_key(pc), &[pc], false)? else { return Ok(()) };
        let block = Box::new(DecodedBlock::new(pc, &read.sources[0].1, read.own_stores));
        count(&self.counters.blocks_decoded);
        self.commit(vcpu, read, block.entry(), Payload::Decoded(block))
    }

    /// Compiles the block at `pc`, or revives its code.
    pub(super) fn compile(&mut self, vcpu: &mut VCpu<Payload>, pc: u64, compiler: Compiler) -> Result<(), NotMade> {
        let made = self.compile_unpublished(vcpu, pc, compiler)?;
        self.commit_compiled(vcpu, made.into_iter().collect())
    }

    /// Compiles the decoded ones of the blocks at `starts`, and publishes them by one barrier. The
    /// others, and those that cannot be compiled now, stay as they are.
    pub(super) fn compile_decoded(&mut self, vcpu: &mut VCpu<Payload>, starts: &[u64]) {
        let compiler = Compiler::after_tier_0(self.tier);
        let mut made = Vec::with_capacity(starts.len());
        for &pc in starts {
            if is_decoded(vcpu, pc) {
                made.extend(self.compile_unpublished(vcpu, pc, compiler).ok().flatten());
            }
        }
        // A block that a write refused is decoded afresh when it runs next.
        let _ = self.commit_compiled(vcpu, made);
    }

    pub(super) fn wants_blocks(&self) -> bool {
        self.recorder.as_ref().is_some_and(|recorder| recorder.wants_blocks())
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
    fn region(&self, vcpu: &mut VCpu<Payload>, pc: u64) -> Vec<u64> {
        // A listener that wants blocks gets each of its own.
        if self.wants_blocks() {
            return vec![pc];
        }
        let mut pin = vcpu.pin();
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
        let often = |pc| runs(pc).filter(|runs| *runs >= HOT_RUNS / NEIGHBOUR_SHARE);
        region::plan(pc, often, |pc| source::shape(&self.window, pc))
    }

    /// Reads the blocks at `starts` under a ticket of the first. If a page of theirs is
    /// self-checking, only the first.
    fn read_sources(&self, key: Key, starts: &[u64]) -> Result<(Ticket<Payload>, Sources), ReadError> {
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
                Err(_) => return self.read_sources(key, &starts[..1]),
            }
            if starts.len() > 1 && ticket.needs_check() {
                return self.read_sources(key, &starts[..1]);
            }
        }
        Ok((ticket, sources))
    }

    /// Reads the blocks at `starts`, unless an earlier translation of the same bytes, by the quick compiler or not, is
    /// still there.
    fn read(&self, key: Key, starts: &[u64], is_quick: bool) -> Made<Read> {
        let pc = starts[0];
        let (mut ticket, sources) = self.read_sources(key, starts)?;
        let own_stores = self.own_stores(&mut ticket, &sources);
        // A region has no self-checking entry.
        let has_many = u64::from(sources.len() > 1);
        let is_region = !is_quick && key == compiled_key(pc);
        let near_restarts = is_region && sources.iter().any(|(pc, source)| self.has_gone_far(*pc, source));
        let kinds = u64::from(near_restarts) << 2 | u64::from(is_quick) << 1 | has_many;
        ticket.set_options(own_stores.kind() << 3 | kinds);
        match ticket.revive() {
            Ok(None) => {
                self.recorder.iter().for_each(|recorder| recorder.revived(pc, key == compiled_key(pc)));
                Ok(None)
            }
            Ok(Some(ticket)) => Ok(Some(Read { pc, ticket, sources, own_stores, near_restarts })),
            Err(_) => Err(self.refused(pc)),
        }
    }

    fn has_gone_far(&self, pc: u64, source: &Source) -> bool {
        source.places(pc).any(|(pc, _)| self.far_restarts.has(pc))
    }

    /// A fault in the region that is entered at `region` went far back to `pc`: the region is made anew.
    pub(super) fn went_far(&self, region: u64, pc: u64) {
        self.far_restarts.add(pc);
        self.cache.remove_for_good(compiled_key(region));
    }

    /// A write came while the block at `pc` was made.
    fn refused(&self, pc: u64) -> NotMade {
        self.recorder.iter().for_each(|recorder| recorder.refused(pc));
        NotMade::Busy
    }

    /// Compiles the block at `pc`, or revives its code.
    fn compile_unpublished(
        &mut self,
        vcpu: &mut VCpu<Payload>,
        pc: u64,
        compiler: Compiler,
    ) -> Made<(Read, UnpublishedBlock)> {
        let starts = if compiler == Compiler::Region { self.region(vcpu, pc) } else { vec![pc] };
        // While a region is made of one block, the quick block of the same bytes is still reachable, and
        // must not serve for it.
        let Some(mut read) = self.read(compiled_key(pc), &starts, compiler == Compiler::Quick)? else {
            self.replace_decoded(pc);
            return Ok(None);
        };
        let Read { ticket, sources, own_stores, near_restarts, .. } = &mut read;
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
        let options = BlockOptions { own_stores: *own_stores, stale_flag, near_restarts: *near_restarts, source };
        let blocks: Vec<Block> = sources.iter().map(|(pc, source)| source.placed(*pc)).collect();
        let (space, translator) = self.compiler.as_mut().ok_or(NotMade::Busy)?;
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
        let block = block.map_err(|_| NotMade::Busy)?;
        count(match compiler {
            Compiler::Quick => &self.counters.blocks_compiled,
            Compiler::Region => &self.counters.regions_compiled,
        });
        Ok(Some((read, block)))
    }

    /// Publishes the code of these blocks, and commits each that no write refused. An error is that of the last
    /// one refused.
    fn commit_compiled(
        &mut self,
        vcpu: &mut VCpu<Payload>,
        made: Vec<(Read, UnpublishedBlock)>,
    ) -> Result<(), NotMade> {
        if made.is_empty() {
            return Ok(());
        }
        let (reads, blocks): (Vec<_>, Vec<_>) = made.into_iter().unzip();
        let blocks = publish_all(blocks).map_err(|_| NotMade::Busy)?;
        count(&self.counters.publications);
        let mut all = Ok(());
        for (read, block) in reads.into_iter().zip(blocks) {
            let (pc, plain) = (read.pc, block.entry());
            let entry =
                block.self_checking_entry().map_or(Entry::plain(plain), |checked| Entry::with_check(plain, checked));
            match self.commit(vcpu, read, entry, Payload::Compiled(block)) {
                Ok(()) => self.replace_decoded(pc),
                Err(error) => all = Err(error),
            }
        }
        all
    }

    /// Makes a block reachable.
    fn commit(&self, vcpu: &mut VCpu<Payload>, read: Read, entry: Entry, payload: Payload) -> Result<(), NotMade> {
        let Read { pc, mut ticket, sources, .. } = read;
        if let Some(recorder) = &self.recorder {
            let _alive = vcpu.pin();
            sources.iter().for_each(|(pc, source)| recorder.made(*pc, source.bytes.len()));
            if recorder.wants_blocks() {
                recorder.translated(pc, &sources[0].1.bytes, payload.compiled(), ticket.needs_check());
            }
        }
        ticket.set_payload_bytes(payload.owned_bytes());
        ticket.commit(entry, payload).map_err(|_| self.refused(pc))
    }

    /// The block at `pc` is compiled: links to the decoded one lead to the dispatcher now, which
    /// finds the compiled one.
    fn replace_decoded(&self, pc: u64) {
        if self.tier == Tier::Auto {
            // Otherwise each compiled block would leave a retained one behind. If the bytes change and
            // come back, they are decoded afresh, which takes a microsecond.
            self.cache.remove_for_good(decoded_key(pc));
        }
    }
}

/// Whether there is a decoded block at `pc`, and no compiled one.
fn is_decoded(vcpu: &mut VCpu<Payload>, pc: u64) -> bool {
    let mut pin = vcpu.pin();
    pin.lookup_shared(decoded_key(pc)).is_some() && pin.lookup_shared(compiled_key(pc)).is_none()
}
