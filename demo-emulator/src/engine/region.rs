//! The blocks that are compiled together with a hot one.
//!
//! From the hot block the plan follows the constant targets: both ways of a branch, jumps, calls
//! and the addresses that they return to. It takes blocks that tier 0 has run often, and compiled
//! ones; the most often run first. So a loop and the functions that it calls become one function of the host.

use std::collections::BinaryHeap;

use crate::translate::Targets;

/// The most blocks of a region.
const MAX_BLOCKS: usize = 64;

/// The most instructions of a region, of which the compiler's time and memory depend.
const MAX_INSTS: usize = 600;

/// The addresses of the blocks of the region that is entered at `entry`, the entry first, then in
/// the order of their addresses. `runs` tells how often a block ran, or `None` if it is not worth
/// compiling together with a hot one. `shape` gives its number of instructions and the ways on.
pub(super) fn plan(
    entry: u64,
    mut runs: impl FnMut(u64) -> Option<u32>,
    shape: impl Fn(u64) -> Option<(usize, Targets)>,
) -> Vec<u64> {
    let (mut taken, mut insts) = (Vec::new(), 0);
    let mut open = BinaryHeap::from([(u32::MAX, entry)]);
    while let Some((_, pc)) = open.pop() {
        if taken.contains(&pc) {
            continue;
        }
        let Some((more, Targets { next, after_call })) = shape(pc) else { continue };
        if !taken.is_empty() && insts + more > MAX_INSTS {
            continue;
        }
        taken.push(pc);
        insts += more;
        if taken.len() == MAX_BLOCKS {
            break;
        }
        let targets = next.into_iter().chain([after_call]).flatten();
        open.extend(targets.filter_map(|pc| Some((runs(pc)?, pc))));
    }
    if taken.is_empty() {
        taken.push(entry);
    }
    taken[1..].sort_unstable();
    taken
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// How often a block ran, and the ways on from it.
    type Known = (u32, Targets);

    fn block(runs: u32, next: [Option<u64>; 2], after_call: Option<u64>) -> Known {
        (runs, Targets { next, after_call })
    }

    fn planned(blocks: &[(u64, Known)]) -> Vec<u64> {
        let blocks: HashMap<u64, Known> = blocks.iter().copied().collect();
        let runs = |pc| blocks.get(&pc).map(|(runs, _)| *runs).filter(|runs| *runs >= 8);
        plan(0x1000, runs, |pc| blocks.get(&pc).map(|(_, targets)| (10, *targets)))
    }

    #[test]
    fn blocks_that_run_often_are_taken_and_others_are_not() {
        let blocks = [
            (0x1000, block(50, [Some(0x1100), Some(0x1080)], None)),
            (0x1080, block(1, [Some(0x1200), None], None)),
            (0x1100, block(50, [Some(0x2000), None], Some(0x1180))),
            (0x1180, block(40, [Some(0x1000), Some(0x9000)], None)),
            (0x2000, block(90, [None, None], None)),
            (0x1200, block(99, [None, None], None)),
        ];
        assert_eq!(planned(&blocks), [0x1000, 0x1100, 0x1180, 0x2000]);
    }

    #[test]
    fn a_region_has_bounds_and_prefers_what_runs_often() {
        // A chain with side ways that run more often.
        let chain = |index: u64| (0x1000 + 0x10 * index, [Some(0x1010 + 0x10 * index), Some(0x8000 + index)]);
        let blocks: Vec<(u64, Known)> = (0..100)
            .flat_map(|index| {
                let (pc, next) = chain(index);
                [(pc, block(50, next, None)), (0x8000 + index, block(60, [None; 2], None))]
            })
            .collect();
        let region = planned(&blocks);
        assert_eq!(region.len(), MAX_BLOCKS.min(MAX_INSTS / 10));
        assert!(region.iter().filter(|&&pc| pc >= 0x8000).count() >= region.len() / 2 - 1, "{region:x?}");
        assert_eq!(region[0], 0x1000);
    }

    #[test]
    fn an_unknown_entry_is_a_region_of_one_block() {
        assert_eq!(plan(0x1000, |_| None, |_| None), [0x1000]);
    }
}
