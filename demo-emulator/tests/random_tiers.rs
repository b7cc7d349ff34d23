//! Random programs through the engine: the interpreter, tier 0 and compiled blocks
//! must leave the same registers, flags, reservation and memory behind.
//!
//! Each program overwrites the one before it, so that old translations must be discarded too, and
//! starts at another place in its page. One in eight runs often enough for the engine to compile it
//! by itself.
//!
//! By hand: a million instructions and more, with the coverage table, and a share of them in
//! `qemu-riscv64` if it is installed:
//!
//! ```text
//! RANDOM_TIERS=1500000 QEMU_PROGRAMS=1000 \
//!     cargo test --release -p demo-emulator --test random_tiers --test qemu -- --nocapture
//! ```
//!
//! `RANDOM_TIERS_SEED` sets the first program, for instance the one that a failure named.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::protection::{Access, Mode};
use demo_emulator::cli::{Tier, Tracking};
use demo_emulator::engine::Engine;
use demo_emulator::hart::Hart;
use demo_emulator::linux::machine::{Executor, Exit, Machine};
use demo_emulator::linux::observer::MemoryObserver;
use demo_emulator::memory::window::{EXEC, PAGE_LEN_BYTES, READ, WRITE};
use demo_emulator::memory::{Window, host_fault};
use demo_emulator::riscv::decode::decode;
use demo_emulator::riscv::encode::encode;
use demo_emulator::riscv::inst::{Inst, Op};
use demo_emulator::riscv::interpreter;
use demo_emulator::riscv::random::{DATA_REACH_BYTES, Generator, OPS, Program, is_rounded};
use demo_emulator::riscv::text::mnemonic;
use demo_emulator::riscv::trap::Trap;

const CODE: u64 = 0x10_0000;
const CODE_LEN_BYTES: u64 = 0x1_0000;
const DATA: u64 = 0x20_0000;
const DATA_START: u64 = DATA - DATA_REACH_BYTES;
const DATA_LEN_BYTES: u64 = 2 * DATA_REACH_BYTES;

/// Instructions of the bounded run.
const INSTRUCTIONS: u64 = 300_000;
/// Starts of a program that the engine compiles, although its blocks do not fill a batch.
const HOT_STARTS: u32 = 80;
const STARTS: u32 = 4;

const RNE_TO_RMM: [&str; 5] = ["rne", "rtz", "rdn", "rup", "rmm"];
/// By the bit of `fflags`.
const FLAGS: [&str; 5] = ["NX", "UF", "OF", "DZ", "NV"];

/// A guest's memory, and its engine.
struct Guest {
    name: String,
    window: Window,
    observer: Arc<dyn MemoryObserver>,
    executor: Box<dyn Executor>,
    /// Whether the guest announces its writes.
    announces: bool,
}

fn mapped(start: u64, len_bytes: u64, window: &Window) -> HostRange {
    HostRange::new(HostAddr(window.host(start).unwrap() as usize), len_bytes as usize, PageSize::host()).unwrap()
}

fn window_for(set_access: impl Fn(HostRange)) -> impl Fn(&Window) {
    move |window| {
        for (start, len_bytes) in [(CODE, CODE_LEN_BYTES), (DATA_START, DATA_LEN_BYTES)] {
            set_access(mapped(start, len_bytes, window));
            window.set_permissions(start..start + len_bytes, READ | WRITE | EXEC);
        }
    }
}

fn fill(window: &Window, addr: u64, bytes: &[u8]) {
    let (words, rest) = bytes.as_chunks();
    for (addr, &word) in (addr..).step_by(8).zip(words) {
        window.store_u64(addr, u64::from_le_bytes(word)).unwrap();
    }
    for (addr, &byte) in (addr + 8 * words.len() as u64..).zip(rest) {
        window.store_u8(addr, byte).unwrap();
    }
}

fn data(window: &Window) -> Vec<u64> {
    (DATA_START..DATA_START + DATA_LEN_BYTES).step_by(8).map(|addr| window.load_u64(addr).unwrap()).collect()
}

impl Guest {
    /// A guest in the engine; the reason if this machine lacks the mode.
    fn new(mode: Mode, tier: Tier) -> Result<Self, String> {
        let window = Window::reserve().unwrap();
        let engine = Engine::new(window, Tracking::Mode(mode), tier, 64 << 20).map_err(|error| error.to_string())?;
        let observer = engine.observer();
        window_for(|range| observer.set_access(range, Access::ReadWrite).unwrap())(&window);
        let executor = engine.executor().unwrap();
        let name = format!("{} {tier:?}", mode.name());
        Ok(Self { name, window, observer, executor, announces: mode == Mode::Deferred })
    }

    fn load(&self, pc: u64, code: &[u8]) {
        fill(&self.window, pc, code);
        if self.announces {
            self.observer.flush_icache(None);
        }
    }

    /// Runs to the ECALL behind the program.
    fn run(&mut self, mut hart: Hart, data: &[u8]) -> Hart {
        fill(&self.window, DATA_START, data);
        let exit = self.executor.run(&mut hart);
        assert_eq!(exit, Exit::Trap(Trap::Ecall), "{} at {:#x}", self.name, hart.pc);
        hart
    }
}

/// The same hart once more.
fn copy(hart: &Hart) -> Hart {
    let Hart { x, f, fflags, frm, .. } = *hart;
    Hart { x, f, fflags, frm, ..Hart::new(hart.pc) }
}

/// All the state of a hart that a guest can see, one fact a line.
fn state(hart: &Hart) -> Vec<String> {
    let Hart { x, f, pc, fflags, frm, reserved, reservation_addr, .. } = hart;
    let mut lines = vec![format!("pc {pc:#x} fflags {fflags:#x} frm {frm} reserved {reserved} {reservation_addr:#x}")];
    lines.extend(x.iter().enumerate().map(|(i, value)| format!("x{i} {value:#018x}")));
    lines.extend(f.iter().enumerate().map(|(i, value)| format!("f{i} {value:#018x}")));
    lines
}

/// The instructions that the interpreter ran.
#[derive(Default)]
struct Coverage {
    retired: u64,
    compressed: u64,
    /// For each operation: its runs, and the runs in each rounding mode; the second row counts
    /// modes that came from `frm`.
    ops: BTreeMap<String, (u64, [[u64; 5]; 2])>,
    /// How often an instruction set a flag that was clear.
    flags: [u64; 5],
}

impl Coverage {
    fn count(&mut self, inst: &Inst, rounded: bool, before: (u8, u8), fflags: u8) {
        self.retired += 1;
        self.compressed += u64::from(inst.len == 2);
        let (runs, modes) = self.ops.entry(mnemonic(inst.op)).or_default();
        *runs += 1;
        if rounded {
            let dynamic = inst.rm == 7;
            modes[usize::from(dynamic)][usize::from(if dynamic { before.1 } else { inst.rm })] += 1;
        }
        let is_csr = matches!(inst.op, Op::Csrrw | Op::Csrrs | Op::Csrrc | Op::Csrrwi | Op::Csrrsi | Op::Csrrci);
        for (bit, count) in self.flags.iter_mut().enumerate() {
            *count += u64::from(!is_csr && fflags & !before.0 & 1 << bit != 0);
        }
    }

    fn table(&self) -> String {
        let mut text = format!("{} instructions retired, {} of them compressed\n", self.retired, self.compressed);
        let modes = RNE_TO_RMM.iter().map(|name| name.to_string());
        let columns = modes.clone().chain(modes.map(|name| format!("dyn={name}")));
        writeln!(text, "{:10} {:>8}{}", "", "runs", columns.map(|name| format!(" {name:>7}")).collect::<String>())
            .unwrap();
        for (op, (runs, modes)) in &self.ops {
            let counts = modes.iter().flatten().map(|count| format!(" {count:>7}")).collect::<String>();
            let rounded = modes.iter().flatten().any(|count| *count != 0);
            writeln!(text, "{op:10} {runs:>8}{}", if rounded { counts } else { String::new() }).unwrap();
        }
        let flags = FLAGS.iter().zip(self.flags).map(|(name, count)| format!(" {name} {count}"));
        writeln!(text, "flags raised:{}", flags.collect::<String>()).unwrap();
        text
    }

    /// The operations that should have run and did not. A short run need not have each operation in
    /// each rounding mode.
    fn missing(&self, is_long: bool) -> Vec<String> {
        let runs = |op: &Op| self.ops.get(&mnemonic(*op)).copied().unwrap_or_default();
        let mut missing: Vec<String> =
            OPS.iter().filter(|op| runs(op).0 == 0).map(|op| format!("no {}", mnemonic(*op))).collect();
        let rounded: Vec<&Op> = OPS.iter().filter(|op| is_rounded(**op)).collect();
        for (row, column) in (0..2).flat_map(|row| (0..5).map(move |column| (row, column))) {
            let what = format!("{}{}", ["", "dyn="][row], RNE_TO_RMM[column]);
            let lacks = |op: &&&Op| runs(op).1[row][column] == 0;
            match rounded.iter().filter(lacks).count() {
                0 => {}
                count if is_long => missing.push(format!("{count} operations without {what}")),
                count if count == rounded.len() => missing.push(format!("no {what}")),
                _ => {}
            }
        }
        missing.extend(FLAGS.iter().zip(self.flags).filter(|(_, n)| *n == 0).map(|(name, _)| format!("no {name}")));
        missing
    }
}

/// The interpreter, step by step.
fn interpret(hart: &mut Hart, window: &Window, coverage: &mut Coverage) {
    loop {
        let inst = interpreter::fetch(window, hart.pc).unwrap();
        let before = (hart.fflags, hart.frm);
        match interpreter::step(hart, window) {
            Ok(_) => coverage.count(&inst, is_rounded(inst.op), before, hart.fflags),
            Err(trap) => return assert_eq!(trap, Trap::Ecall, "{inst:?} at {:#x}", hart.pc),
        }
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{name}: {value}?")))
}

fn guests() -> Vec<Guest> {
    let wanted = [
        (Mode::Sigbus, Tier::Decoded),
        (Mode::Sigbus, Tier::Quick),
        (Mode::Sigbus, Tier::Region),
        (Mode::Sigbus, Tier::Auto),
        // Blocks do not check their own stores.
        (Mode::Deferred, Tier::Quick),
        (Mode::Deferred, Tier::Region),
        (Mode::Mprotect, Tier::Region),
    ];
    let mut guests = Vec::new();
    for (mode, tier) in wanted {
        match Guest::new(mode, tier) {
            Ok(guest) => guests.push(guest),
            Err(why) => {
                assert!(std::env::var_os("CODEWARDEN_REQUIRE_ALL").is_none(), "{}: {why}", mode.name());
                println!("skipped: {} {tier:?}: {why}", mode.name());
            }
        }
    }
    guests
}

#[test]
fn every_tier_agrees_with_the_interpreter() {
    host_fault::install().unwrap();
    let reference = Window::reserve().unwrap();
    window_for(|range| demo_emulator::linux::host_memory::protect(range, Access::ReadWrite).unwrap())(&reference);
    let mut guests = guests();
    let wanted = from_environment("RANDOM_TIERS", INSTRUCTIONS);
    let mut coverage = Coverage::default();
    let first_seed = from_environment("RANDOM_TIERS_SEED", 0);
    let mut seed = first_seed;
    while coverage.retired < wanted {
        let mut generator = Generator::new(seed);
        // Short programs show more operands, long ones more sequences.
        let mut program = generator.program(if seed.is_multiple_of(4) { 1000 } else { 150 });
        program.code.extend(encode(&Inst { op: Op::Ecall, ..decode(0x13) }).to_le_bytes());
        let pc = CODE + 2 * (seed * 7 % (PAGE_LEN_BYTES / 2));
        fill(&reference, pc, &program.code);
        guests.iter().for_each(|guest| guest.load(pc, &program.code));
        for start in 0..if seed % 8 == 1 { HOT_STARTS } else { STARTS } {
            let hart = generator.start(pc, DATA);
            let bytes = generator.data(DATA_LEN_BYTES as usize);
            let mut expected = copy(&hart);
            fill(&reference, DATA_START, &bytes);
            interpret(&mut expected, &reference, &mut coverage);
            let (expected, memory) = (state(&expected), data(&reference));
            for guest in &mut guests {
                let found = state(&guest.run(copy(&hart), &bytes));
                let found_memory = data(&guest.window);
                let same = found == expected && found_memory == memory;
                assert!(same, "{} seed {seed} start {start}: {}", guest.name, difference(&found, &expected, &program));
            }
        }
        seed += 1;
    }
    println!("{} programs\n{}", seed - first_seed, coverage.table());
    let ways: Vec<&str> = guests.iter().map(|guest| guest.name.as_str()).collect();
    println!("the interpreter and {} agree", ways.join(", "));
    let missing = coverage.missing(wanted >= 1_000_000);
    assert!(missing.is_empty(), "{missing:#?}");
}

fn difference(found: &[String], expected: &[String], program: &Program) -> String {
    let pairs = found.iter().zip(expected).filter(|(found, expected)| found != expected);
    let lines: Vec<String> = pairs.map(|(found, expected)| format!("{found}, interpreter {expected}")).collect();
    format!("{lines:#?} (memory where no line differs)\n{:#?}", program.insts)
}
