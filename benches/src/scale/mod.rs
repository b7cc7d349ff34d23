//! How much of each thread's speed is left if several threads work at once.
//!
//! Every row is measured with 1 to 16 threads, each a vCPU or a translator of its own, over one cache
//! with one region. More threads than processors share them, so each row is compared with an **empty
//! loop** on as many threads: the **share** is a thread's speed among N over its speed alone, divided
//! by the same of the empty loop. The share would be 1 if threads shared nothing. Rows with system
//! calls are beside the same bare system calls. What these lack of 1 is the kernel's.
//!
//! The library's own locks are shown apart: how many of 1,000 operations found a lock taken.

mod at_once;
mod extent;
mod ground;

use std::fmt::Write;

use codewarden::protection::Mode;

use crate::side::Who;
use crate::spread::Spread;
use at_once::Worker;
pub use extent::Extent;
use ground::{COMMITS_OF_A_PAGE, Commits, Empty, Flaps, Ground, Pages, Part};

/// The measured numbers of threads.
pub const THREADS: [usize; 5] = [1, 2, 4, 8, 16];

/// A row that should scale keeps so much of the wanted share.
const LEAST_OF_WANTED: f64 = 0.9;

/// The work of the threads of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Work {
    Empty,
    LookUp {
        is_shared: bool,
    },
    Commit {
        is_one_page: bool,
    },
    Pages {
        who: Who,
        part: Part,
    },
    /// The first thread flaps a page; the others look up.
    BesideFlapping,
    /// The same, measured at the first thread.
    Flapping,
}

impl Work {
    /// Each in its modes: `None` for those without protected pages.
    fn all(modes: &[Mode]) -> Vec<(Option<Mode>, Self)> {
        let mut all = vec![
            (None, Self::Empty),
            (None, Self::LookUp { is_shared: false }),
            (None, Self::LookUp { is_shared: true }),
            (None, Self::Commit { is_one_page: false }),
            (None, Self::Commit { is_one_page: true }),
        ];
        for mode in [Mode::Sigbus, Mode::Mprotect].into_iter().filter(|mode| modes.contains(mode)) {
            for part in [Part::Commit, Part::Store] {
                all.extend(Who::ALL.map(|who| (Some(mode), Self::Pages { who, part })));
            }
            all.extend([Self::BesideFlapping, Self::Flapping].map(|work| (Some(mode), work)));
        }
        all
    }

    fn name(self) -> &'static str {
        match self {
            Self::Empty => "an empty loop",
            Self::LookUp { is_shared: false } => "a hit in the front",
            Self::LookUp { is_shared: true } => "a hit in the shared table",
            Self::Commit { is_one_page: false } => "a commit to an own page, protected before",
            Self::Commit { is_one_page: true } => "a commit to one page of all, protected before",
            Self::Pages { who: Who::Library, part: Part::Commit } => "an own page protected, and a commit",
            Self::Pages { who: Who::Floor, part: Part::Commit } => "the same, bare system calls",
            Self::Pages { who: Who::Library, part: Part::Store } => "a fault on an own page",
            Self::Pages { who: Who::Floor, part: Part::Store } => "the same, bare system calls",
            Self::BesideFlapping => "a hit in the front, while the first thread flaps a page",
            Self::Flapping => "a flap (commit, store) of that page",
        }
    }

    fn worker(self, ground: &Ground, thread: usize) -> Box<dyn Worker + '_> {
        match self {
            Self::Empty => Box::new(Empty(ground.extent())),
            Self::LookUp { is_shared } => Box::new(ground.lookups(thread, is_shared)),
            Self::Commit { is_one_page } => Box::new(Commits { ground, thread, is_one_page }),
            Self::Pages { who, part } => Box::new(Pages::new(ground, thread, who, part)),
            Self::Flapping | Self::BesideFlapping if thread == 0 => Box::new(Flaps { ground, round: 0 }),
            Self::Flapping | Self::BesideFlapping => Box::new(ground.lookups(thread, false)),
        }
    }

    /// The operations of a worker in a phase.
    fn operations(self, extent: Extent) -> usize {
        match self {
            Self::Empty | Self::LookUp { .. } | Self::BesideFlapping => extent.lookups,
            Self::Commit { .. } => extent.pages * COMMITS_OF_A_PAGE,
            Self::Pages { .. } | Self::Flapping => extent.pages,
        }
    }

    /// Runs it on `count` threads.
    fn run(self, ground: &Ground, count: usize) -> Sample {
        let extent = ground.extent();
        // A thread alone that looks up is not the first, which flaps.
        let first = usize::from(self == Self::BesideFlapping && count == 1);
        let workers = (first..first + count).map(|thread| self.worker(ground, thread)).collect();
        let measured = match self {
            Self::Flapping => 0..1,
            Self::BesideFlapping if count > 1 => 1..count,
            _ => 0..count,
        };
        let _handler = (matches!(self, Self::Pages { who: Who::Floor, .. })).then(|| ground.handle_bare());
        let phases = at_once::run(workers, &measured, extent.time);
        ground.check(count);
        let operations = (self.operations(extent) * phases.count) as f64;
        let speed = operations / phases.time.as_secs_f64();
        Sample { speed, waits: phases.lock_waits as f64 / operations / measured.len() as f64 }
    }
}

/// A run of a row on some threads.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Operations of a thread in a second.
    speed: f64,
    /// Locks found taken, for each operation.
    waits: f64,
}

/// A row, with its samples for each of [`THREADS`].
#[derive(Clone, Debug)]
struct Row {
    mode: Option<Mode>,
    work: Work,
    samples: [Vec<Sample>; THREADS.len()],
}

/// All rows.
#[derive(Clone, Debug)]
pub struct Scale(Vec<Row>);

/// Measures all rows by turns.
pub fn measure(modes: &[Mode], extent: Extent) -> Scale {
    let most = THREADS[THREADS.len() - 1];
    let mut rows: Vec<Row> =
        Work::all(modes).into_iter().map(|(mode, work)| Row { mode, work, samples: Default::default() }).collect();
    let grounds: Vec<(Option<Mode>, Ground)> = [None, Some(Mode::Sigbus), Some(Mode::Mprotect)]
        .into_iter()
        .filter(|mode| mode.is_none_or(|mode| modes.contains(&mode)))
        .map(|mode| {
            let blocks = if mode.is_none() { extent.blocks } else { 0 };
            (mode, Ground::new(mode.unwrap_or(Mode::None), blocks, most + 1, extent))
        })
        .collect();
    for _ in 0..extent.rounds {
        for row in &mut rows {
            let (_, ground) = grounds.iter().find(|(mode, _)| *mode == row.mode).expect("its mode has a ground");
            for (count, samples) in THREADS.into_iter().zip(&mut row.samples) {
                samples.push(row.work.run(ground, count));
            }
        }
    }
    Scale(rows)
}

impl Scale {
    fn empty(&self) -> &Row {
        self.0.iter().find(|row| row.work == Work::Empty).expect("it is measured")
    }

    /// The share of `row` in each round, with as many threads as `at` in [`THREADS`] says.
    fn shares(&self, row: &Row, at: usize) -> Spread {
        let slowed = |row: &Row, round: usize| row.samples[at][round].speed / row.samples[0][round].speed;
        let shares = (0..row.samples[at].len()).map(|round| slowed(row, round) / slowed(self.empty(), round));
        Spread::of(&shares.collect::<Vec<_>>())
    }

    /// The share that a row should have: of lookups 1, of rows with system calls that of the bare
    /// calls. None for the others, which share a lock or a page on purpose.
    fn wanted(&self, row: &Row, at: usize) -> Option<f64> {
        match row.work {
            Work::LookUp { .. } => Some(1.0),
            Work::Pages { who: Who::Library, part } => {
                let bare = Work::Pages { who: Who::Floor, part };
                let bare = self.0.iter().find(|other| (other.mode, other.work) == (row.mode, bare));
                bare.map(|bare| self.shares(bare, at).median_ns)
            }
            _ => None,
        }
    }

    /// One line for each row with an aim, at each number of threads.
    pub fn against_wanted(&self) -> String {
        let mut text = String::new();
        for row in &self.0 {
            for (at, threads) in THREADS.into_iter().enumerate().skip(1) {
                let Some(wanted) = self.wanted(row, at) else { continue };
                let share = self.shares(row, at).median_ns;
                let holds = if share >= LEAST_OF_WANTED * wanted { "holds" } else { "MISSED" };
                let (what, mode) = (row.work.name(), row.mode.map_or("–", Mode::name));
                let _ = writeln!(
                    text,
                    "- {holds}: {what}, {mode}, {threads} threads: a share of {share:.2} (wanted {LEAST_OF_WANTED} of \
                     {wanted:.2})"
                );
            }
        }
        text
    }

    /// The table.
    pub fn markdown(&self) -> String {
        let mut table = String::from("| what | mode | alone, ns |");
        THREADS[1..].iter().for_each(|threads| _ = write!(table, " {threads} threads |"));
        table += "\n|---|---|---:|---:|---:|---:|---:|\n";
        for row in &self.0 {
            let alone = Spread::of(&row.samples[0].iter().map(|sample| 1e9 / sample.speed).collect::<Vec<_>>());
            let mode = row.mode.map_or("–", Mode::name);
            let _ = write!(table, "| {} | {mode} | {:.1} |", row.work.name(), alone.median_ns);
            for at in 1..THREADS.len() {
                let waits = Spread::of(&row.samples[at].iter().map(|sample| 1e3 * sample.waits).collect::<Vec<_>>());
                let share = self.shares(row, at);
                let _ = write!(table, " {:.2} ({:.2}–{:.2})", share.median_ns, share.p10_ns, share.p90_ns);
                let _ = write!(table, ", {:.1} |", waits.median_ns);
            }
            table.push('\n');
        }
        table
    }
}
