//! The program, and its right results.

mod guest;
mod machine;

use std::fmt;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::thread;

use codewarden::Stats;
use codewarden::protection::Mode;
use guest::Op;
use machine::{Machine, Result};

/// The addresses of the program's parts, and of its data.
const MAIN: u64 = 0x1000;
const DATA: u64 = 0x1800;
const LOOP: u64 = 0x2000;
const FUNCTION: u64 = 0x3000;
const LONG: u64 = 0x4000;
const COUNTER: u64 = 0x8000;

/// How often the main program patches itself.
const PATCHES: i16 = 1000;
/// Instructions of the long part: two pages.
const LONG_OPS: usize = 2048;

/// The results of the guest.
#[derive(Debug, PartialEq)]
pub(crate) struct Results {
    /// The sum of 1 to [`PATCHES`]: the guest writes each addition just before it runs it. Added
    /// to it: a function's results before and after the kernel overwrote the function.
    pub(crate) patched: u64,
    /// Whether the other vCPU was in its loop when the loop was overwritten.
    pub(crate) ended: bool,
    /// The result of the function that was mapped over the old one.
    pub(crate) mapped: u64,
    /// The long part's additions, twice.
    pub(crate) long: [u64; 2],
}

impl Results {
    pub(crate) const RIGHT: Results = Results {
        patched: PATCHES as u64 * (PATCHES as u64 + 1) / 2 + 1000 + 2000,
        ended: true,
        mapped: 7,
        long: [LONG_OPS as u64 - 1; 2],
    };
}

pub(crate) struct Run {
    pub(crate) results: Results,
    pub(crate) stats: Stats,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stats { committed, revived, invalidated, downgraded, evicted, .. } = self.stats;
        write!(f, "{} blocks made, {revived} revived, {invalidated} invalidated, ", committed - revived)?;
        write!(f, "{downgraded} checked instead, {evicted} evicted")
    }
}

fn main_program(mode: Mode) -> Vec<Op> {
    // In a synchronous mode the guest needs no announcement.
    let announce = if mode.is_synchronous() { Op::Add(7, 0) } else { Op::Fence };
    let at = |index: i16| MAIN as i16 + 4 * index;
    vec![
        Op::Store(2, 3), // 0: writes the instruction after the next
        announce,
        Op::Add(0, 0),   // 2: adds 1, 2, 3, ... when it runs
        Op::Add(3, 1),   //    the instruction to write next time
        Op::Store(5, 1), //    data on the same page
        Op::Add(1, -1),
        Op::Branch(1, -6),
        Op::Add(6, at(9)), //  calls the function
        Op::Jump(4),
        Op::Read(4, 8), // 9: reads another function over it
        announce,
        Op::Add(6, at(13) - at(9)), // calls it again
        Op::Jump(4),
        Op::Store(7, 1), // 13: ends the other vCPU's loop: r1 is 0, an Op::Halt
        announce,
        Op::Halt,
    ]
}

/// The registers that [`main_program`] starts with.
fn main_registers() -> [u64; 8] {
    let patch = u64::from(Op::Add(0, 1).encode());
    [0, PATCHES as u64, MAIN + 8, patch, FUNCTION, DATA, 0, LOOP + 8]
}

fn load(machine: &Machine, start: u64, program: &[Op]) -> Result<()> {
    let bytes: Vec<u8> = program.iter().flat_map(|op| op.encode().to_le_bytes()).collect();
    Ok(machine.memory.write(start as usize, &bytes)?)
}

/// Runs the program in `mode`. The other vCPU's loop would take some seconds if the main
/// program did not end it. In mode `none` nothing ends it, so it is a short one.
pub(crate) fn run(mode: Mode) -> Result<Run> {
    let (input, mut output) = std::io::pipe()?;
    for op in [Op::Add(0, 2000), Op::Jump(6)] {
        output.write_all(&op.encode().to_le_bytes())?;
    }
    let machine = Machine::new(mode, input.as_raw_fd())?;
    load(&machine, MAIN, &main_program(mode))?;
    load(&machine, FUNCTION, &[Op::Add(0, 1000), Op::Jump(6)])?;
    load(&machine, LOOP, &[Op::Add(0, -1), Op::Store(1, 0), Op::Branch(0, -2)])?;

    let turns = if mode == Mode::None { 1 } else { u32::MAX.into() };
    let (patched, turns_left) = thread::scope(|scope| {
        let looping = scope.spawn(|| machine.run(LOOP, [turns, COUNTER, 0, 0, 0, 0, 0, 0]));
        while machine.word(COUNTER)? == [0; 4] && !looping.is_finished() {
            thread::yield_now();
        }
        let patched = machine.run(MAIN, main_registers())?[0];
        let looped = looping.join().map_err(|_| "the vCPU that loops has panicked")??;
        Result::Ok((patched, looped[0]))
    })?;

    machine.map_anew(FUNCTION, 0x1000)?;
    load(&machine, FUNCTION, &[Op::Add(0, 7), Op::Halt])?;
    let mapped = machine.run(FUNCTION, [0; 8])?[0];

    let mut long = vec![Op::Add(0, 1); LONG_OPS - 1];
    long.push(Op::Halt);
    load(&machine, LONG, &long)?;
    let long = [machine.run(LONG, [0; 8])?[0], machine.run(LONG, [0; 8])?[0]];
    Ok(Run { results: Results { patched, ended: turns_left > 0, mapped, long }, stats: machine.stats() })
}
