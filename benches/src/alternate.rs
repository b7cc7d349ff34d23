//! Measures all sides of a row in turn: A B C, C B A, A B C.

use codewarden::protection::Mode;

use crate::ground::PAGES;
use crate::open::open_side;
use crate::rows::Row;
use crate::side::{Side, Who};
use crate::spread::Spread;

/// The outcome of a row in one mode.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The mode.
    pub mode: Mode,
    /// Nanoseconds for one page, one sample a round.
    pub library_ns: Vec<f64>,
    /// The same of the floor, in the same rounds.
    pub floor_ns: Vec<f64>,
}

impl Outcome {
    /// The library.
    pub fn library(&self) -> Spread {
        Spread::of(&self.library_ns)
    }

    /// The floor.
    pub fn floor(&self) -> Spread {
        Spread::of(&self.floor_ns)
    }

    /// The library's cost above the floor, round by round.
    pub fn added(&self) -> Spread {
        Spread::of_differences(&self.library_ns, &self.floor_ns)
    }
}

/// Takes `rounds` samples of every side of `row`.
pub fn measure(row: &Row, modes: &[Mode], rounds: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let mut sides: Vec<(usize, Who, Box<dyn Side>)> = Vec::new();
    for &mode in modes.iter().filter(|&&mode| row.exists_in(mode)) {
        for who in Who::ALL {
            let mut side = open_side(who, mode, row.setting);
            // The first run warms page tables, caches and the steady state of the cycle.
            side.run(row.case);
            sides.push((outcomes.len(), who, side));
        }
        outcomes.push(Outcome { mode, library_ns: Vec::new(), floor_ns: Vec::new() });
    }
    for round in 0..rounds {
        let mut turn: Vec<usize> = (0..sides.len()).collect();
        if round % 2 == 1 {
            turn.reverse();
        }
        for at in turn {
            let (outcome, who, side) = &mut sides[at];
            let sample_ns = side.run(row.case).as_nanos() as f64 / PAGES as f64;
            let outcome = &mut outcomes[*outcome];
            match who {
                Who::Library => outcome.library_ns.push(sample_ns),
                Who::Floor => outcome.floor_ns.push(sample_ns),
            }
        }
    }
    outcomes
}
