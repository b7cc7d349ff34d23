//! The control flow of a region, and the knowledge about registers that holds at each block's
//! start.
//!
//! A region is a graph of blocks: branches, jumps, calls and the ways on from a long block, as far
//! as their targets are blocks of the region. A return has no constant target, but the calls of the
//! region give probable ones: a walk from a call's target over the blocks of the called function
//! ends at its returns, and these lead behind the call.
//!
//! Three analyses run forward over the graph. One finds the [restart](super::restart) at each block's
//! start. One finds the registers that may be *dirty*: changed
//! since the hart last had them. At the start of a loop these are only the ones that the loop itself
//! changes: others are stored on the way into the loop, once. The third finds registers
//! that hold addresses [near](Near) the window. A fourth runs backward: it finds the registers whose
//! value at the entry matters.

use std::ops::Range;

use super::effects::{Effects, Masks};
use super::near::Near;
use super::restart::{self, Progress, Restart};
use crate::riscv::inst::{Inst, Op};

/// The registers that a call keeps its return address in.
const LINKS: [u8; 2] = [1, 5];

/// A return compares its target with so many return addresses at most.
const MAX_RETURNS: usize = 8;

/// How many registers a region keeps. The host has 16. Its stack and frame pointers, the hart and the
/// base take four, and the values within a block want some too: with more than 8, programs were slower.
const KEPT_X: usize = 8;
const KEPT_F: usize = 14;

/// A register that is used in a loop counts so many times as much, for each loop around it.
const LOOP_WEIGHT: u32 = 8;
const MAX_DEPTH: usize = 3;

/// Whether this operation ends a block; any other may stand anywhere.
pub fn ends_block(op: Op) -> bool {
    use Op::*;
    matches!(op, Jal | Jalr | Beq | Bne | Blt | Bge | Bltu | Bgeu | Fence_i | Ecall | Ebreak | Illegal)
}

/// A basic block: instructions with their addresses. Only the last may be one that [`ends_block`];
/// if it is not, the block continues at the next instruction.
pub type Block = Vec<(u64, Inst)>;

/// The constant targets of a block that ends with `inst`, at `pc`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Targets {
    /// The next block or blocks.
    pub next: [Option<u64>; 2],
    /// If `next` is a call's target: the address that the call returns to.
    pub after_call: Option<u64>,
}

impl Targets {
    /// The targets of the block with this last instruction.
    pub fn of(pc: u64, inst: &Inst) -> Self {
        let next = pc.wrapping_add(u64::from(inst.len));
        let target = pc.wrapping_add(inst.imm as i64 as u64);
        match inst.op {
            Op::Jal => Self { next: [Some(target), None], after_call: LINKS.contains(&inst.rd).then_some(next) },
            Op::Beq | Op::Bne | Op::Blt | Op::Bge | Op::Bltu | Op::Bgeu => {
                Self { next: [Some(target), Some(next)], after_call: None }
            }
            op if ends_block(op) => Self::default(),
            _ => Self { next: [Some(next), None], after_call: None },
        }
    }
}

/// Whether a jump from `pc` to `target` may close a loop: every loop has such a jump.
pub(super) fn is_backward(pc: u64, target: u64) -> bool {
    target <= pc
}

/// A block of a region that is being compiled.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) insts: &'a [(u64, Inst)],
    /// The place of its first instruction among all of the region.
    pub(super) first_index: u32,
    /// The addresses in the region that its return may lead to.
    pub(super) returns: Vec<u64>,
    /// Registers that the hart may not have at its start.
    pub(super) dirty: Masks,
    /// Registers near the window at its start.
    pub(super) near: Near,
    /// Whether a jump backward leads here.
    pub(super) starts_loop: bool,
    /// The restart of the quiet loop that it belongs to.
    pub(super) quiet_loop: Restart,
    /// The restart at its start.
    pub(super) restart: Restart,
}

impl Node<'_> {
    pub(super) fn start(&self) -> u64 {
        self.insts[0].0
    }

    /// The guest addresses of its bytes.
    pub(super) fn bytes(&self) -> Range<u64> {
        let (pc, inst) = self.last();
        self.start()..pc.wrapping_add(u64::from(inst.len))
    }

    fn last(&self) -> (u64, &Inst) {
        let (pc, inst) = &self.insts[self.insts.len() - 1];
        (*pc, inst)
    }

    fn targets(&self) -> Targets {
        let (pc, inst) = self.last();
        Targets::of(pc, inst)
    }

    fn is_return(&self) -> bool {
        let (_, inst) = self.last();
        inst.op == Op::Jalr && inst.rd == 0 && LINKS.contains(&inst.rs1)
    }
}

/// The blocks of a region that its entry leads to; the entry's is the first.
#[derive(Debug)]
pub(super) struct Region<'a> {
    pub(super) nodes: Vec<Node<'a>>,
    /// Registers that are variables in all blocks; the others live in the hart between blocks.
    pub(super) kept: Masks,
    /// Kept registers that are read before they are written.
    pub(super) needed: Masks,
}

impl<'a> Region<'a> {
    /// With `near_restarts` no restart is far.
    pub(super) fn new(blocks: &'a [Block], near_restarts: bool) -> Self {
        let mut first_index = 0;
        let nodes = blocks.iter().map(|insts| {
            let node = Node {
                insts,
                first_index,
                returns: Vec::new(),
                dirty: Masks::NONE,
                near: Near::new(),
                starts_loop: false,
                quiet_loop: None,
                restart: None,
            };
            first_index += insts.len() as u32;
            node
        });
        let mut region = Self { nodes: nodes.collect(), kept: Masks::NONE, needed: Masks::NONE };
        region.find_returns();
        region.drop_unreachable();
        region.choose_kept();
        let successors: Vec<Vec<usize>> = region.nodes.iter().map(|node| region.successors(node)).collect();
        region.find_loop_starts(&successors);
        if !near_restarts {
            region.find_restarts(&successors);
        }
        region.find_dirty(&successors);
        region.find_near(&successors);
        region.find_needed(&successors);
        region
    }

    fn at(&self, pc: u64) -> Option<usize> {
        self.nodes.iter().position(|node| node.start() == pc)
    }

    fn successors(&self, node: &Node<'_>) -> Vec<usize> {
        let next = node.targets().next.into_iter().flatten();
        next.chain(node.returns.iter().copied()).filter_map(|pc| self.at(pc)).collect()
    }

    /// From each call over the blocks of the called function to its returns.
    fn find_returns(&mut self) {
        for call in 0..self.nodes.len() {
            let Targets { next: [Some(callee), _], after_call: Some(back) } = self.nodes[call].targets() else {
                continue;
            };
            let (Some(callee), Some(_)) = (self.at(callee), self.at(back)) else { continue };
            let (mut seen, mut open) = (vec![false; self.nodes.len()], vec![callee]);
            while let Some(index) = open.pop() {
                if std::mem::replace(&mut seen[index], true) {
                    continue;
                }
                let node = &mut self.nodes[index];
                if node.is_return() && !node.returns.contains(&back) && node.returns.len() < MAX_RETURNS {
                    node.returns.push(back);
                }
                let targets = self.nodes[index].targets();
                let within = if targets.after_call.is_some() { [targets.after_call, None] } else { targets.next };
                open.extend(within.into_iter().flatten().filter_map(|pc| self.at(pc)));
            }
        }
    }

    fn drop_unreachable(&mut self) {
        let (mut seen, mut open) = (vec![false; self.nodes.len()], vec![0]);
        while let Some(index) = open.pop() {
            if !std::mem::replace(&mut seen[index], true) {
                open.extend(self.successors(&self.nodes[index]));
            }
        }
        let mut seen = seen.into_iter();
        self.nodes.retain(|_| seen.next() == Some(true));
        let starts: Vec<u64> = self.nodes.iter().map(Node::start).collect();
        self.nodes.iter_mut().for_each(|node| node.returns.retain(|pc| starts.contains(pc)));
    }

    /// Keeps the registers that the region uses, or as many as the host has registers for. The
    /// others would be spilled all the time, and the hart is as good a place as the stack.
    fn choose_kept(&mut self) {
        let ranges: Vec<Range<u64>> = self.nodes.iter().flat_map(|node| self.loops_closed_by(node)).collect();
        let (mut x, mut f) = ([0; 32], [0; 32]);
        for node in &self.nodes {
            let depth = ranges.iter().filter(|range| range.contains(&node.start())).count();
            let weight = LOOP_WEIGHT.pow(depth.min(MAX_DEPTH) as u32);
            for (_, inst) in node.insts {
                let Effects { reads, writes, .. } = Effects::of(inst);
                for register in 0..32 {
                    let uses = |mask: fn(Masks) -> u32| [reads, writes].map(|masks| mask(masks) >> register & 1);
                    x[register] += weight * uses(|masks| masks.x).iter().sum::<u32>();
                    f[register] += weight * uses(|masks| masks.f).iter().sum::<u32>();
                }
            }
        }
        self.kept = Masks { x: most_used(&x, KEPT_X), f: most_used(&f, KEPT_F) };
    }

    /// The addresses from the targets of a node's backward jumps to itself.
    fn loops_closed_by(&self, node: &Node<'_>) -> impl Iterator<Item = Range<u64>> {
        let (pc, _) = node.last();
        let targets = node.targets().next.into_iter().flatten();
        targets
            .filter(move |&target| is_backward(pc, target) && self.at(target).is_some())
            .map(move |target| target..pc)
    }

    fn find_loop_starts(&mut self, successors: &[Vec<usize>]) {
        for (index, next) in successors.iter().enumerate() {
            let (pc, _) = self.nodes[index].last();
            for &next in next {
                self.nodes[next].starts_loop |= is_backward(pc, self.nodes[next].start());
            }
        }
    }

    /// Finds the quiet loops, and the restart at the start of each block.
    fn find_restarts(&mut self, successors: &[Vec<usize>]) {
        self.find_quiet_loops(successors);
        // `None`: no way to it was found yet.
        let mut starts: Vec<Option<Restart>> = self.nodes.iter().map(|node| node.quiet_loop.map(Some)).collect();
        starts[0] = Some(Some(0));
        let mut open: Vec<usize> = (0..self.nodes.len()).filter(|&index| starts[index].is_some()).collect();
        while let Some(index) = open.pop() {
            let Some(start) = starts[index] else { continue };
            let end = self.restart_at_end(index, start);
            for &next in &successors[index] {
                if self.nodes[next].quiet_loop.is_some() {
                    continue;
                }
                let end = end.filter(|_| !self.stores_on_the_way(index, next));
                let joined = starts[next].map_or(end, |other| other.filter(|_| other == end));
                if starts[next] != Some(joined) {
                    starts[next] = Some(joined);
                    open.push(next);
                }
            }
        }
        for (node, start) in self.nodes.iter_mut().zip(starts) {
            node.restart = start.flatten();
        }
    }

    /// Whether kept registers are stored on the way from one block to another, because the loop that
    /// begins there does not change them.
    fn stores_on_the_way(&self, from: usize, to: usize) -> bool {
        let is_within =
            self.nodes[from].quiet_loop.is_some() && self.nodes[from].quiet_loop == self.nodes[to].quiet_loop;
        let (pc, start) = (self.nodes[from].last().0, self.nodes[to].start());
        self.nodes[to].starts_loop && !is_backward(pc, start) && !is_within
    }

    fn restart_at_end(&self, index: usize, start: Restart) -> Restart {
        let node = &self.nodes[index];
        let mut progress = Progress::new(start);
        for (index, (_, inst)) in (node.first_index..).zip(node.insts) {
            progress.pass(index, inst, self.kept);
        }
        progress.restart.filter(|_| !progress.is_waiting)
    }

    fn find_quiet_loops(&mut self, successors: &[Vec<usize>]) {
        let count = self.nodes.len();
        let is_quiet: Vec<bool> = self.nodes.iter().map(|node| self.is_quiet(node.insts)).collect();
        // The blocks that each block leads to by way of quiet ones.
        let reached: Vec<Vec<bool>> = (0..count)
            .map(|from| {
                let (mut reached, mut open) = (vec![false; count], vec![from]);
                while let Some(index) = open.pop() {
                    for &next in successors[index].iter().filter(|&&next| is_quiet[index] && is_quiet[next]) {
                        if !std::mem::replace(&mut reached[next], true) {
                            open.push(next);
                        }
                    }
                }
                reached
            })
            .collect();
        let mut is_known = vec![false; count];
        for index in 0..count {
            if is_known[index] || !reached[index][index] {
                continue;
            }
            let is_member = |other: usize| reached[index][other] && reached[other][index];
            let members: Vec<usize> = (0..count).filter(|&other| is_member(other)).collect();
            let is_entered =
                |to: usize| to == 0 || (0..count).any(|from| !is_member(from) && successors[from].contains(&to));
            let entries: Vec<usize> = members.iter().copied().filter(|&member| is_entered(member)).collect();
            let loads = members.iter().any(|&member| self.loads(member));
            for &member in &members {
                is_known[member] = true;
                if let ([entry], true) = (&entries[..], loads) {
                    self.nodes[member].quiet_loop = Some(self.nodes[*entry].first_index);
                }
            }
        }
    }

    fn loads(&self, index: usize) -> bool {
        self.nodes[index].insts.iter().any(|(_, inst)| restart::loads(inst.op))
    }

    fn is_quiet(&self, insts: &[(u64, Inst)]) -> bool {
        insts.iter().all(|(_, inst)| {
            restart::may_run_again(inst.op) && Effects::of(inst).writes.without(self.kept) == Masks::NONE
        })
    }

    fn find_dirty(&mut self, successors: &[Vec<usize>]) {
        let mut open: Vec<usize> = (0..self.nodes.len()).rev().collect();
        while let Some(index) = open.pop() {
            let node = &self.nodes[index];
            let (mut dirty, mut progress) = (node.dirty, Progress::new(node.restart));
            for (index, (_, inst)) in (node.first_index..).zip(node.insts) {
                let writes = Effects::of(inst).writes;
                dirty = if progress.updates_hart(inst) { writes } else { dirty.or(writes) };
                progress.pass(index, inst, self.kept);
            }
            for &next in &successors[index] {
                if self.stores_on_the_way(index, next)
                    || restart::enters_quiet_loop(self.nodes[index].quiet_loop, self.nodes[next].quiet_loop)
                {
                    continue;
                }
                let joined = self.nodes[next].dirty.or(dirty.and(self.kept));
                if joined != self.nodes[next].dirty {
                    self.nodes[next].dirty = joined;
                    open.push(next);
                }
            }
        }
    }

    fn find_near(&mut self, successors: &[Vec<usize>]) {
        // `None`: no way to it was found yet.
        let mut starts: Vec<Option<Near>> = vec![None; self.nodes.len()];
        starts[0] = Some(Near::new());
        let mut open = vec![0];
        while let Some(index) = open.pop() {
            let Some(mut near) = starts[index] else { continue };
            self.nodes[index].insts.iter().for_each(|(_, inst)| near.pass(inst));
            for &next in &successors[index] {
                let joined = starts[next].map_or(near, |other| other.and(&near));
                if starts[next] != Some(joined) {
                    starts[next] = Some(joined);
                    open.push(next);
                }
            }
        }
        for (node, near) in self.nodes.iter_mut().zip(starts) {
            node.near = near.unwrap_or_else(Near::new);
        }
    }

    fn find_needed(&mut self, successors: &[Vec<usize>]) {
        let count = self.nodes.len();
        let (mut reads, mut writes) = (vec![Masks::NONE; count], vec![Masks::NONE; count]);
        for (index, node) in self.nodes.iter().enumerate() {
            // A register that may be dirty is stored.
            reads[index] = node.dirty;
            for (_, inst) in node.insts {
                let effects = Effects::of(inst);
                reads[index] = reads[index].or(effects.reads.without(writes[index]));
                writes[index] = writes[index].or(effects.writes);
            }
        }
        let mut needed = reads.clone();
        let mut changed = true;
        while std::mem::take(&mut changed) {
            for index in (0..count).rev() {
                let after = successors[index].iter().fold(Masks::NONE, |all, &next| all.or(needed[next]));
                let before = reads[index].or(after.without(writes[index]));
                changed |= before != needed[index];
                needed[index] = before;
            }
        }
        self.needed = needed[0].and(self.kept);
    }
}

/// The `most` registers with the highest numbers of uses.
fn most_used(uses: &[u32; 32], most: usize) -> u32 {
    let mut used: Vec<usize> = (0..32).filter(|&register| uses[register] != 0).collect();
    used.sort_by_key(|&register| std::cmp::Reverse(uses[register]));
    used.iter().take(most).fold(0, |mask, register| mask | 1 << register)
}
