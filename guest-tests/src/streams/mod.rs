//! Programs that write themselves, run every way and compared with the interpreter.
//!
//! The promise of a mode decides the comparison. A program may run bytes that it stored
//! without a FENCE.I after the store. In synchronous modes it must still run alike; in deferred
//! mode it is not compared from then on. The control mode `none` runs the programs that never
//! run overwritten code.
//!
//! Random programs alone found each of these deliberate bugs within a minute or so:
//!
//! - one instruction lowered wrongly;
//! - a kill that leaves the entry cell;
//! - a data write that leaves blocks as they are;
//! - self-checking entries of either tier that compare nothing;
//! - stores through another address that the tracking ignores;
//! - kernel writes that are not announced;
//! - FENCE.I that does nothing in deferred mode (the guest then often runs for ever: fuzz with
//!   a timeout).
//!
//! They do not find an end of the block's own bytes that is a few bytes off, which has a test of
//! its own (`translate/tests/own_stores.rs`). They find no wrong order between threads, since one
//! hart runs: the loom models and the stress load find a page that is claimed after it was read.

mod memory;
mod promise;
mod ways;

use demo_emulator::cli::Tier;
use demo_emulator::hart::Hart;
use demo_emulator::memory::host_fault;
use demo_emulator::memory::window::PAGE_LEN_BYTES;
use demo_emulator::riscv::random::stream::{Announces, ELSEWHERE, Event, Stream, Streams};
use demo_emulator::riscv::trap::Trap;

use codewarden::protection::Mode;
use memory::{ALIAS, CODE, CODE_BYTES, DATA_BYTES, DATA_MIDDLE, Memory, SHARED};
use promise::{Owed, Unsuitable, Watched};
use ways::Way;

/// Bytes of an input before those of the program.
const HEAD_BYTES: usize = 8;

/// The most bytes of the program's part.
const MAX_CHOICES_BYTES: usize = 2048;

/// The most ECALLs of one start.
const MAX_STOPS: usize = 200;

/// The program, and its starts.
#[derive(Debug)]
struct Case {
    stream: Stream,
    /// The first address of the code.
    pc: u64,
    area: u64,
    data: Vec<u8>,
    /// The harts of each start.
    starts: Vec<Hart>,
}

impl Case {
    /// The case of `input`.
    fn of(input: &[u8], streams: &mut Streams) -> Self {
        let mut head = [0; HEAD_BYTES];
        let rest = input.split_at_checked(HEAD_BYTES).map_or(&[][..], |(first, rest)| {
            head.copy_from_slice(first);
            rest
        });
        let [how, low, high, ..] = head;
        let announces = match how & 3 {
            0 => Announces::Never,
            1 => Announces::Always,
            _ => Announces::Mostly,
        };
        let area = if how & 4 == 0 { CODE } else { SHARED };
        let in_page = u64::from(u16::from_le_bytes([low, high])) & (PAGE_LEN_BYTES - 2);
        let pc = area + in_page;
        let stream = streams.stream(in_page as usize, announces, &rest[..rest.len().min(MAX_CHOICES_BYTES)]);
        let mut data = Vec::new();
        let starts = (0..1 + (how >> 3 & 3)).map(|start| {
            head[0] = start;
            let (mut hart, filling) = streams.start(&head, pc, DATA_MIDDLE, DATA_BYTES as usize);
            if how & 0xe0 == 0xe0 {
                // Data among the code: most stores go through this register.
                hart.x[9] = (pc + 16 * u64::from(high)) & !15;
            }
            if area == SHARED {
                hart.x[usize::from(ELSEWHERE)] = ALIAS - SHARED;
            }
            data = filling;
            hart
        });
        let starts = starts.collect();
        Self { stream, pc, area, data, starts }
    }

    /// The event of the ECALL at `pc`.
    fn event(&self, pc: u64) -> Option<&Event> {
        self.stream.events.get(&pc.wrapping_sub(self.pc))
    }

    /// An address in the code's part of memory, at least `len_bytes` before its end.
    fn place(&self, offset: i64, len_bytes: u64) -> u64 {
        self.pc.saturating_add_signed(offset).clamp(self.area, self.area + CODE_BYTES - len_bytes)
    }
}

/// The same hart once more.
fn copy(hart: &Hart) -> Hart {
    let Hart { x, f, fflags, frm, .. } = *hart;
    Hart { x, f, fflags, frm, ..Hart::new(hart.pc) }
}

/// All that a guest can see of a hart, one fact a line.
fn state(hart: &Hart, trap: Trap) -> Vec<String> {
    let Hart { x, f, pc, fflags, frm, reserved, reservation_addr, .. } = hart;
    let mut lines =
        vec![format!("{trap:x?} at {pc:#x} fflags {fflags:#x} frm {frm} reserved {reserved} {reservation_addr:#x}")];
    lines.extend(x.iter().enumerate().map(|(i, value)| format!("x{i} {value:#018x}")));
    lines.extend(f.iter().enumerate().map(|(i, value)| format!("f{i} {value:#018x}")));
    lines
}

/// A hart at its stop, and the reason.
struct Stop {
    hart: Hart,
    trap: Trap,
}

impl Stop {
    fn is_as(&self, hart: &Hart, trap: Trap) -> bool {
        let facts = |hart: &Hart| {
            let Hart { x, f, pc, fflags, frm, reserved, reservation_addr, .. } = *hart;
            (x, f, pc, fflags, frm, reserved, reservation_addr)
        };
        self.trap == trap && facts(&self.hart) == facts(hart)
    }
}

/// The interpreter's run of one start.
struct Run {
    stops: Vec<Stop>,
    contents: Vec<u8>,
    owed: Owed,
}

/// The result of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// Starts that were compared in some way.
    pub starts: usize,
    /// Ways that a start was compared in, over all starts.
    pub compared: usize,
    /// Starts that ran overwritten bytes.
    pub written: usize,
    /// Those of them that did not announce it.
    pub unannounced: usize,
}

/// Every way to run a guest, and the interpreter.
pub struct Comparison {
    streams: Streams,
    interpreter: Memory,
    ways: Vec<Way>,
    missing: Vec<String>,
}

impl Default for Comparison {
    fn default() -> Self {
        Self::new()
    }
}

impl Comparison {
    /// Every mode of this machine, in tier 0 and translated.
    ///
    /// # Panics
    ///
    /// If this machine lacks the basics: memory, signals.
    pub fn new() -> Self {
        host_fault::install().expect("signal handlers");
        let (mut ways, mut missing) = (Vec::new(), Vec::new());
        let modes = [Mode::Sigbus, Mode::Thread, Mode::Deferred, Mode::Mprotect, Mode::None];
        let pairs =
            modes.into_iter().flat_map(|mode| [Tier::Decoded, Tier::Quick, Tier::Region].map(|tier| (mode, tier)));
        for (mode, tier) in pairs.chain([(Mode::Sigbus, Tier::Auto), (Mode::Deferred, Tier::Auto)]) {
            match Way::new(mode, tier) {
                Ok(way) => ways.push(way),
                Err(why) => missing.push(format!("{} in tier {}: {why}", mode.name(), tier.name())),
            }
        }
        Self { streams: Streams::new(), interpreter: Memory::new(), ways, missing }
    }

    /// The ways that this machine lacks, and why.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Runs the program of `input`.
    ///
    /// # Panics
    ///
    /// If two ways differ that may not.
    pub fn check(&mut self, input: &[u8]) -> Outcome {
        let case = Case::of(input, &mut self.streams);
        let runs = interpret(&case, &self.interpreter);
        let mut outcome = Outcome::default();
        for run in &runs {
            outcome.starts += 1;
            outcome.written += usize::from(run.owed != Owed::ByAll);
            outcome.unannounced += usize::from(run.owed == Owed::Unannounced);
        }
        for way in &mut self.ways {
            let owed = runs.iter().take_while(|run| run.owed.holds_in(way.mode)).count();
            if owed > 0 {
                way.begin(case.pc, &case.stream.code, &case.data);
                for (start, run) in runs[..owed].iter().enumerate() {
                    compare(&case, way, start, run);
                }
                way.end();
                outcome.compared += owed;
            }
        }
        outcome
    }
}

/// The interpreter's runs of all starts, up to an unsuitable one.
fn interpret(case: &Case, memory: &Memory) -> Vec<Run> {
    memory.fill(case.pc, &case.stream.code, &case.data);
    let (mut watched, mut runs) = (Watched::new(), Vec::new());
    for start in &case.starts {
        watched.restart();
        let Ok(stops) = interpret_start(case, memory, copy(start), &mut watched) else { break };
        runs.push(Run { stops, contents: memory.contents(), owed: watched.owed() });
    }
    runs
}

fn interpret_start(
    case: &Case,
    memory: &Memory,
    mut hart: Hart,
    watched: &mut Watched,
) -> Result<Vec<Stop>, Unsuitable> {
    let mut stops = Vec::new();
    loop {
        let trap = watched.run(&mut hart, &memory.window)?;
        let mut stopped = copy(&hart);
        (stopped.reserved, stopped.reservation_addr) = (hart.reserved, hart.reservation_addr);
        stops.push(Stop { hart: stopped, trap });
        let Some(event) = case.event(hart.pc).filter(|_| trap == Trap::Ecall) else { return Ok(stops) };
        match *event {
            Event::KernelWrite { offset, ref bytes } => {
                let addr = case.place(offset, bytes.len() as u64);
                memory.write(addr, bytes);
                watched.stored(addr, bytes.len() as u64);
            }
            Event::Flush { offset, len_bytes } => {
                watched.announced(case.place(offset, len_bytes) - case.area, len_bytes);
            }
            Event::FlushAll => watched.announced(0, CODE_BYTES),
        }
        hart.pc += 4;
        if stops.len() == MAX_STOPS {
            return Err(Unsuitable);
        }
    }
}

/// Runs one start as the interpreter did.
fn compare(case: &Case, way: &mut Way, start: usize, run: &Run) {
    // Announces all writes before this start.
    way.observer.flush_icache(None);
    let mut hart = copy(&case.starts[start]);
    for (index, stop) in run.stops.iter().enumerate() {
        let trap = way.run(&mut hart);
        if !stop.is_as(&hart, trap) {
            let (found, expected) = (state(&hart, trap), state(&stop.hart, stop.trap));
            panic!("{} start {start} stop {index}: {}", way.name(), difference(&found, &expected));
        }
        if index + 1 == run.stops.len() {
            break;
        }
        match *case.event(hart.pc).expect("where the interpreter had one") {
            Event::KernelWrite { offset, ref bytes } => {
                way.memory.kernel_write(&*way.observer, case.place(offset, bytes.len() as u64), bytes);
            }
            Event::Flush { offset, len_bytes } => {
                let addr = case.place(offset, len_bytes);
                let pages = addr / PAGE_LEN_BYTES * PAGE_LEN_BYTES..(addr + len_bytes).next_multiple_of(PAGE_LEN_BYTES);
                way.observer.flush_icache(Some(way.memory.range(pages)));
            }
            Event::FlushAll => way.observer.flush_icache(None),
        }
        hart.pc += 4;
    }
    let contents = way.memory.contents();
    if let Some(at) = contents.iter().zip(&run.contents).position(|(found, expected)| found != expected) {
        panic!("{} start {start}: memory differs from its byte {at:#x} on", way.name());
    }
}

fn difference(found: &[String], expected: &[String]) -> String {
    let pairs = found.iter().zip(expected).filter(|(found, expected)| found != expected);
    let lines: Vec<String> = pairs.map(|(found, expected)| format!("{found}, interpreter {expected}")).collect();
    format!("{lines:#?}")
}
