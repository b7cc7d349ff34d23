//! The decoded blocks that wait to be compiled.
//!
//! New code may be run only after a barrier on all threads, which interrupts the other processors
//! and takes several times as long as the quick compiler takes for a block. So a block that ran
//! often enough is noted, and runs on as it is. Several such blocks are then compiled together and
//! published by one barrier.

use crate::translate::HAS_QUICK;

use super::make::HOT_RUNS;

/// Runs of a decoded block before it waits to be compiled. The quick compiler takes 1 or 2 us, which
/// some runs of decoded instructions take as well.
const TIER_0_RUNS: u32 = if HAS_QUICK { 4 } else { HOT_RUNS };

/// The blocks of a batch. A region takes much longer to compile than to publish.
const BATCH_BLOCKS: usize = if HAS_QUICK { 16 } else { 1 };

/// A block that has run this often does not wait for a full batch. If it cannot be compiled, it is
/// tried again after as many more runs.
const MOST_RUNS: u32 = 16 * TIER_0_RUNS;

/// The waiting blocks of one hart.
pub(super) struct Batch {
    starts: Vec<u64>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { starts: Vec::with_capacity(BATCH_BLOCKS + 1) }
    }

    /// Notes a run of the decoded block at `pc`, which has run `runs` times before. Returns whether
    /// the batch is to be compiled now.
    #[inline]
    pub(super) fn is_due(&mut self, pc: u64, runs: u32) -> bool {
        let is_warm = runs == TIER_0_RUNS - 1;
        let is_late = runs % MOST_RUNS == MOST_RUNS - 1;
        // A block that was overwritten and decoded anew may be noted still.
        if (is_warm || is_late) && !self.starts.contains(&pc) {
            self.starts.push(pc);
        }
        is_late || (is_warm && self.starts.len() >= BATCH_BLOCKS)
    }

    /// Takes the blocks out, in the order in which they came.
    pub(super) fn take(&mut self) -> Vec<u64> {
        std::mem::replace(&mut self.starts, Vec::with_capacity(BATCH_BLOCKS + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(batch: &mut Batch, pc: u64, from: u32, to: u32) -> Option<u32> {
        (from..to).find(|&runs| batch.is_due(pc, runs))
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let mut batch = Batch::new();
        let blocks: Vec<u64> = (0..BATCH_BLOCKS as u64).map(|index| 0x1000 + 2 * index).collect();
        let (last, others) = blocks.split_last().unwrap();
        for &pc in others {
            assert_eq!(run(&mut batch, pc, 0, MOST_RUNS - 1), None);
        }
        assert_eq!(run(&mut batch, *last, 0, MOST_RUNS), Some(TIER_0_RUNS - 1));
        assert_eq!(batch.take(), blocks);
        assert!(batch.take().is_empty());
    }

    #[test]
    fn a_block_that_is_decoded_anew_is_compiled_once() {
        let mut batch = Batch::new();
        for _ in 0..2 * BATCH_BLOCKS {
            assert_eq!(run(&mut batch, 0x1000, 0, MOST_RUNS - 1), None);
        }
        assert_eq!(batch.take(), [0x1000]);
    }

    #[test]
    fn a_block_that_runs_on_waits_only_for_some_runs() {
        let mut batch = Batch::new();
        assert_eq!(run(&mut batch, 0x1000, 0, 2 * MOST_RUNS), Some(MOST_RUNS - 1));
        assert_eq!(batch.take(), [0x1000]);
        // It could not be compiled: once more, although it is noted no more.
        assert_eq!(run(&mut batch, 0x1000, MOST_RUNS, 3 * MOST_RUNS), Some(2 * MOST_RUNS - 1));
        assert_eq!(batch.take(), [0x1000]);
    }
}
