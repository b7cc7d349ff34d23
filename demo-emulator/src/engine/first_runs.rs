//! Which code runs for one of the first times. The oracle runs that, and nothing is
//! made of it.
//!
//! Much code runs once or twice: what starts a program, and what a guest writes and
//! soon overwrites. A block costs a ticket, memory and often a page's protection,
//! and as much again when it is killed: what the oracle takes longer than a decoded
//! block for some runs of it.

/// How many places are remembered.
const ROWS: usize = 4096;

/// Runs by the oracle before a block is made.
const COLD_RUNS: u32 = 4;

/// Every so many places that look new are taken for known: two of one row would
/// push each other out for ever.
const NEW_IN_A_ROW: u32 = 64;

#[derive(Clone, Copy)]
struct Place {
    pc: u64,
    /// The first bytes of the code: new code in an old place is new.
    bytes: u64,
    runs: u32,
}

/// What one hart has run and made no block of.
pub(super) struct FirstRuns {
    rows: Box<[Place]>,
    new: u32,
}

impl FirstRuns {
    pub(super) fn new() -> Self {
        Self { rows: vec![Place { pc: u64::MAX, bytes: 0, runs: 0 }; ROWS].into(), new: 0 }
    }

    /// Counts a run of the code at `pc`, which begins with `bytes`: whether it is
    /// one of the first, as far as is remembered.
    pub(super) fn is_cold(&mut self, pc: u64, bytes: u64) -> bool {
        let place = &mut self.rows[(pc >> 1) as usize % ROWS];
        if (place.pc, place.bytes) == (pc, bytes) {
            place.runs = place.runs.saturating_add(1);
            return place.runs <= COLD_RUNS;
        }
        *place = Place { pc, bytes, runs: 1 };
        self.new = (self.new + 1) % NEW_IN_A_ROW;
        self.new != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_some_runs_code_is_not_cold_until_its_bytes_change() {
        let mut runs = FirstRuns::new();
        for bytes in [1, 2] {
            for _ in 0..COLD_RUNS {
                assert!(runs.is_cold(0x1000, bytes));
            }
            assert!(!runs.is_cold(0x1000, bytes));
            assert!(!runs.is_cold(0x1000, bytes));
        }
    }

    #[test]
    fn places_of_one_row_do_not_stay_cold_for_ever() {
        let mut runs = FirstRuns::new();
        let other = 0x1000 + 2 * ROWS as u64;
        let mut known = [false; 2];
        for _ in 0..2 * NEW_IN_A_ROW {
            for (index, pc) in [0x1000, other].into_iter().enumerate() {
                known[index] |= !known[index] && !runs.is_cold(pc, 1);
            }
        }
        assert_eq!(known, [true; 2]);
    }
}
