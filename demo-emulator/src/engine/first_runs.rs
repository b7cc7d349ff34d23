//! Detects code that runs for the first time. The interpreter runs such code, without a block.
//!
//! Much code runs once: a program's start, and code that a guest writes and soon overwrites. A
//! block costs a ticket, memory and often the protection of a page, and about the same when it is
//! killed. To interpret a few instructions costs far less.

/// How many places are remembered.
const ROWS: usize = 4096;

/// One in so many places that look new is taken for known: two places of one row would otherwise
/// push each other out for ever.
const NEW_IN_A_ROW: u32 = 16;

/// The places that one hart has run without a block. The first bytes of the code are stored too, so
/// new code in an old place is new.
pub(super) struct FirstRuns {
    rows: Box<[(u64, u64)]>,
    new: u32,
}

impl FirstRuns {
    pub(super) fn new() -> Self {
        Self { rows: vec![(u64::MAX, 0); ROWS].into(), new: 0 }
    }

    /// Whether the code at `pc`, which begins with `bytes`, runs for the first time, as far as the
    /// rows remember.
    pub(super) fn is_first(&mut self, pc: u64, bytes: u64) -> bool {
        let row = &mut self.rows[(pc >> 1) as usize % ROWS];
        if std::mem::replace(row, (pc, bytes)) == (pc, bytes) {
            return false;
        }
        self.new = (self.new + 1) % NEW_IN_A_ROW;
        self.new != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_is_none_and_new_bytes_are_new() {
        let mut runs = FirstRuns::new();
        assert!(runs.is_first(0x1000, 1));
        assert!(!runs.is_first(0x1000, 1));
        assert!(runs.is_first(0x1000, 2));
        assert!(!runs.is_first(0x1000, 2));
    }

    #[test]
    fn places_of_one_row_do_not_stay_new_for_ever() {
        let mut runs = FirstRuns::new();
        let other = 0x1000 + 2 * ROWS as u64;
        let mut known = [false; 2];
        for _ in 0..2 * NEW_IN_A_ROW {
            for (index, pc) in [0x1000, other].into_iter().enumerate() {
                known[index] |= !known[index] && !runs.is_first(pc, 1);
            }
        }
        assert_eq!(known, [true; 2]);
    }
}
