//! Runs every side in turn, and has the results.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use codewarden::policy::{Adaptive, Policy};
use codewarden::protection::Mode;

use super::rows::{Row, Threads};
use super::side::Side;
use super::translator::Machine;
use super::workload::{Took, Worker, Workload};
use crate::floor::BareBulk;
use crate::spread::Spread;

/// The result of one run.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Nanoseconds for one operation of a thread, by the slowest one.
    pub work_ns: f64,
    /// The same with the announcement after it.
    pub announced_ns: f64,
    /// Faults, of all operations of all threads.
    pub faults: u64,
    /// System calls that protect, un-protect or harvest.
    pub calls: u64,
    /// Blocks that ran without a translation.
    pub interpreted: u64,
}

/// The results of a row's sides.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The row.
    pub row: Row,
    /// Each side's samples, in rounds. Off comes last.
    pub sides: Vec<(Side, Vec<Sample>)>,
    /// Off once more in each round, to show how far two runs of the same thing differ.
    pub control: Vec<Sample>,
    /// The bare system calls of a mode, in nanoseconds for one operation, in rounds: of
    /// [`Workload::Bulk`] in one thread.
    pub floors: Vec<(Mode, Vec<f64>)>,
}

/// How many times cheaper a side is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Times {
    /// By the medians.
    About(f64),
    /// The side costs no more than two runs with tracking off differ by. The number is the
    /// baseline's cost over the most that the side may cost.
    AtLeast(f64),
}

impl Times {
    /// The factor that is certain.
    pub fn least(self) -> f64 {
        match self {
            Times::About(times) | Times::AtLeast(times) => times,
        }
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = |times: f64| if times < 100.0 { 1 } else { 0 };
        match *self {
            Times::About(times) => write!(f, "{times:.*}", digits(times)),
            Times::AtLeast(times) => write!(f, "≥ {times:.*}", digits(times)),
        }
    }
}

/// One figure of a sample.
pub type Figure = fn(&Sample) -> f64;

impl Measured {
    fn of(&self, side: Side) -> Option<&[Sample]> {
        self.sides.iter().find(|(other, _)| *other == side).map(|(_, samples)| samples.as_slice())
    }

    fn off(&self) -> &[Sample] {
        self.of(Side::Off).unwrap_or_default()
    }

    /// The wall time of an operation.
    pub fn wall(&self, side: Side, figure: Figure) -> Option<Spread> {
        Some(Spread::of(&self.of(side)?.iter().map(figure).collect::<Vec<_>>()))
    }

    /// The tracking cost of an operation, round by round.
    pub fn cost(&self, side: Side, figure: Figure) -> Option<Spread> {
        Some(self.less_off(self.of(side)?, figure))
    }

    /// Faults, system calls and interpreted blocks of an operation, over all rounds.
    pub fn counts(&self, side: Side) -> Option<[f64; 3]> {
        let samples = self.of(side)?;
        let operations = (samples.len() * self.row.threads.working() * self.row.size.operations) as f64;
        let each = |count: fn(&Sample) -> u64| samples.iter().map(count).sum::<u64>() as f64 / operations;
        Some([each(|sample| sample.faults), each(|sample| sample.calls), each(|sample| sample.interpreted)])
    }

    /// The control's wall time.
    pub fn control_wall(&self, figure: Figure) -> Spread {
        Spread::of(&self.control.iter().map(figure).collect::<Vec<_>>())
    }

    /// The apparent cost of the control, which tracks nothing.
    pub fn control_cost(&self, figure: Figure) -> Spread {
        self.less_off(&self.control, figure)
    }

    fn less_off(&self, samples: &[Sample], figure: Figure) -> Spread {
        let values = |samples: &[Sample]| samples.iter().map(figure).collect::<Vec<_>>();
        Spread::of_differences(&values(samples), &values(self.off()))
    }

    /// The difference of two runs with tracking off: nine tenths of the runs differ by less.
    pub fn noise_ns(&self, figure: Figure) -> f64 {
        let pairs = self.control.iter().zip(self.off());
        Spread::of(&pairs.map(|(one, other)| (figure(one) - figure(other)).abs()).collect::<Vec<_>>()).p90_ns
    }

    /// The bare system calls of an operation in `mode`.
    pub fn floor(&self, mode: Mode) -> Option<Spread> {
        let (_, samples) = self.floors.iter().find(|(other, _)| *other == mode)?;
        Some(Spread::of(samples))
    }

    /// How many times cheaper the bare system calls of `mode` are than the baseline.
    pub fn floor_times(&self, mode: Mode, figure: Figure) -> Option<Times> {
        let (plain, floor) = (self.cost(Side::Plain, figure)?, self.floor(mode)?);
        Some(times(plain, floor, self.noise_ns(figure)))
    }

    /// How many times cheaper `side` tracks than the baseline.
    pub fn times_cheaper(&self, side: Side, figure: Figure) -> Option<Times> {
        let (plain, cost) = (self.cost(Side::Plain, figure)?, self.cost(side, figure)?);
        Some(times(plain, cost, self.noise_ns(figure)))
    }
}

fn times(plain: Spread, cost: Spread, noise_ns: f64) -> Times {
    if cost.p10_ns > 0.0 && cost.median_ns > noise_ns {
        Times::About(plain.median_ns / cost.median_ns)
    } else {
        Times::AtLeast(plain.median_ns / cost.p90_ns.max(noise_ns))
    }
}

/// Every side of `row`, `row.rounds` times: A B C, C B A.
pub fn measure(row: Row, sides: &[Side]) -> Measured {
    eprintln!("{}", row.name());
    let mut measured = Measured {
        row,
        sides: sides.iter().map(|&side| (side, Vec::with_capacity(row.rounds))).collect(),
        control: Vec::with_capacity(row.rounds),
        floors: Vec::new(),
    };
    if row.workload == Workload::Bulk && row.threads == Threads::Working(1) {
        let mode_of = |&(side, _): &(Side, _)| matches!(side, Side::Adaptive(_)).then(|| (side.mode(), Vec::new()));
        measured.floors = measured.sides.iter().filter_map(mode_of).collect();
    }
    for round in 0..row.rounds {
        let mut turn: Vec<usize> = (0..=sides.len()).collect();
        if round % 2 == 1 {
            turn.reverse();
        }
        for at in turn {
            match measured.sides.get_mut(at) {
                Some((side, samples)) => samples.push(run(row, *side)),
                None => measured.control.push(run(row, Side::Off)),
            }
        }
        for (mode, samples) in &mut measured.floors {
            let run = |mode| BareBulk::new(mode, row.size.pages, Adaptive::with_checks().limits()).run();
            let (calls, none) = (run(*mode), run(Mode::None));
            samples.push((calls.as_nanos() as f64 - none.as_nanos() as f64) / row.size.operations as f64);
        }
    }
    measured
}

/// One run of one side, on memory of its own.
pub fn run(row: Row, side: Side) -> Sample {
    let Row { workload, threads, size, .. } = row;
    let machine = Machine::new(side, threads.all() * size.pages);
    let (ready, start, stop) = (Start::new(threads.all()), Start::new(threads.all()), AtomicBool::new(false));
    let set_up = |thread: usize| {
        let place = ready.place();
        let mut worker = Worker::new(machine.cpu(), workload, size, thread * size.pages);
        worker.set_up();
        place.wait();
        worker
    };
    let work = |thread| {
        let place = start.place();
        let mut worker = set_up(thread);
        let before = machine.stats();
        place.wait();
        let took = worker.work();
        (worker, took, before)
    };
    let run_code = |thread| {
        let place = start.place();
        let mut worker = set_up(thread);
        place.wait();
        while !stop.load(Ordering::Relaxed) {
            worker.run_all();
        }
    };
    let (mut workers, took, before) = std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..threads.working()).map(|thread| scope.spawn(move || work(thread))).collect();
        if threads == Threads::OneBesideRunning {
            scope.spawn(|| run_code(1));
        }
        let _stop = StopOnDrop(&stop);
        let (worker, mut took, before) = work(0);
        let mut workers = vec![worker];
        for other in others {
            let (worker, other, _) = other.join().expect("a working thread ends");
            took = slower(took, other);
            workers.push(worker);
        }
        (workers, took, before)
    });
    let after = machine.stats();
    let sample = Sample {
        work_ns: took.work.as_nanos() as f64 / size.operations as f64,
        announced_ns: (took.work + took.announcement).as_nanos() as f64 / size.operations as f64,
        faults: after.faults - before.faults,
        calls: after.protection_calls - before.protection_calls,
        interpreted: workers.iter().map(Worker::interpreted).sum(),
    };
    check(row, side, &sample);
    workers.iter_mut().for_each(Worker::check);
    sample
}

fn slower(one: Took, other: Took) -> Took {
    Took { work: one.work.max(other.work), announcement: one.announcement.max(other.announcement) }
}

/// Checks that the baseline is one: one fault for each operation, and all operations
/// translated but a few. The few had their commit refused, because a block came at an earlier
/// one's address while another thread's handler, inside, had lost its processor. With tracking
/// off there is none.
fn check(row: Row, side: Side, sample: &Sample) {
    let operations = (row.threads.working() * row.size.operations) as u64;
    let context = || format!("{row:?}, {}: {sample:?}", side.name());
    let few = |interpreted: u64| interpreted * 10 <= operations;
    match side {
        Side::Plain => assert!(sample.faults == operations && few(sample.interpreted), "{}", context()),
        Side::Off => assert!(sample.faults == 0 && sample.interpreted == 0, "{}", context()),
        Side::Adaptive(_) => {}
    }
}

/// The start, common to all threads.
pub(super) struct Start {
    missing: AtomicUsize,
}

impl Start {
    pub(super) fn new(threads: usize) -> Self {
        Self { missing: AtomicUsize::new(threads) }
    }

    /// To be taken before a thread's preparations.
    pub(super) fn place(&self) -> Place<'_> {
        Place(self)
    }
}

/// One thread's place at the start. It counts as arrived even if an earlier check fails:
/// else the others would wait for it.
pub(super) struct Place<'a>(&'a Start);

impl Place<'_> {
    /// Waits until every thread has arrived.
    pub(super) fn wait(self) {
        let start = self.0;
        drop(self);
        while start.missing.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.missing.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Ends the other thread even if a check fails: else the panic would wait for it.
pub(super) struct StopOnDrop<'a>(pub(super) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(p10_ns: f64, median_ns: f64, p90_ns: f64) -> Spread {
        Spread { p10_ns, median_ns, p90_ns }
    }

    #[test]
    fn a_cost_within_the_noise_gives_a_bound() {
        let plain = spread(9_000.0, 10_000.0, 11_000.0);
        assert_eq!(times(plain, spread(90.0, 100.0, 110.0), 20.0), Times::About(100.0));
        assert_eq!(times(plain, spread(-5.0, 1.0, 8.0), 20.0), Times::AtLeast(500.0), "bounded by the noise");
        assert_eq!(times(plain, spread(-5.0, 30.0, 50.0), 20.0), Times::AtLeast(200.0), "bounded by its spread");
    }
}
