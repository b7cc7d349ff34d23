//! The cost of a region beside many others of the same tracker.
//!
//! # Safety
//!
//! Memory outlives its tracker. A store goes to a page of it, by a raw pointer.
#![allow(unsafe_code)]

use std::fmt::Write;
use std::time::Instant;

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::{Mode, Probe};
use codewarden::tracker::{BeginError, Generations, RegionOptions, Tracker};

use crate::spread::Spread;

/// The steps of a region's life, in their order.
pub const STEPS: [&str; 4] = ["added", "claimed from", "stored to", "removed"];

/// Nanoseconds of each step, with `count` regions there.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its mode.
    pub mode: Mode,
    /// The regions, with the one that comes and goes.
    pub count: usize,
    /// By the number of the step.
    pub steps: [Spread; STEPS.len()],
}

/// Each mode that is available here with each number of regions.
pub fn measure(rounds: usize, counts: &[usize]) -> Vec<Row> {
    let probe = Probe::of_this_process();
    let modes = [Mode::Sigbus, Mode::Thread, Mode::Mprotect, Mode::Deferred];
    let available = modes.into_iter().filter(|mode| probe.check(*mode).is_ok());
    available.flat_map(|mode| counts.iter().map(move |&count| row(mode, count, rounds))).collect()
}

fn row(mode: Mode, count: usize, rounds: usize) -> Row {
    let page = PageSize::host();
    // A page between two regions, as mappings of one kind would become one.
    let memory = GuestMemory::anonymous(2 * count * page.bytes()).expect("memory");
    let tracker = Tracker::new(Generations::observer());
    let guest = |number: usize| GuestAddr((2 * number * page.bytes()) as u64);
    let host = |number: usize| HostAddr(memory.range().start().0 + 2 * number * page.bytes());
    let options = |number: usize| {
        let host = HostRange::new(host(number), page.bytes(), page).expect("whole pages");
        RegionOptions::new(guest(number), host, mode)
    };
    // SAFETY: the memory outlives the tracker.
    let add = |number: usize| unsafe { tracker.add_region(options(number)) }.expect("a region");
    let begin = |number: usize| loop {
        match tracker.begin(guest(number)) {
            Ok(claim) => break claim,
            Err(error) => assert!(matches!(error, BeginError::Busy(_)), "{error}"),
        }
    };
    for number in 0..count {
        memory.write(2 * number * page.bytes(), &[1]).expect("in the memory");
        add(number);
        assert!(begin(number).is_current());
    }
    let mut samples = [const { Vec::new() }; STEPS.len()];
    let mut seed = 1u64;
    for round in 0..rounds {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let number = (seed >> 33) as usize % count;
        let mut times = [0.0; STEPS.len()];
        let mut timed = |step: usize, run: &mut dyn FnMut()| {
            let start = Instant::now();
            run();
            times[step] = start.elapsed().as_nanos() as f64;
        };
        timed(3, &mut || tracker.remove_region(guest(number)).expect("a region"));
        timed(0, &mut || add(number));
        timed(1, &mut || drop(begin(number)));
        // SAFETY: a byte of the memory.
        timed(2, &mut || unsafe { host(number).as_ptr().write_volatile(round as u8) });
        let seen = tracker.data(guest(number)).map(|data| data.get());
        assert_eq!(seen, Some(u64::from(mode != Mode::Deferred)), "the store is noticed");
        samples.iter_mut().zip(times).for_each(|(samples, time)| samples.push(time));
    }
    Row { mode, count, steps: samples.map(|samples| Spread::of(&samples)) }
}

/// A table: medians and spreads in microseconds.
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from("| µs, median (p10–p90) | regions |");
    STEPS.iter().for_each(|step| write!(text, " {step} |").expect("a string"));
    text.push_str("\n|---|---:|---:|---:|---:|---:|\n");
    for Row { mode, count, steps } in rows {
        write!(text, "| {mode} | {count} |").expect("a string");
        for Spread { p10_ns, median_ns, p90_ns } in steps {
            let [median, p10, p90] = [median_ns, p10_ns, p90_ns].map(|ns| ns / 1000.0);
            write!(text, " {median:.1} ({p10:.1}–{p90:.1}) |").expect("a string");
        }
        text.push('\n');
    }
    text
}
