//! Finds the guest instruction that faulted at a host pc, in a signal handler.
//!
//! The index has one word for each cache line of the executable view. A block's first line holds
//! the address of its table, all others 0. A lookup walks back from the line of the faulting pc to
//! the first that is not 0. That line belongs to the pc's block, since blocks do not overlap and
//! the pc is within one. Only words for lines with code are touched, so the array costs memory in
//! proportion to the code.
//!
//! # Safety
//!
//! A table's address is in the index from before its block can be entered until the block is
//! dropped. By then no hart is in the block. A hart that faults inside a block keeps it alive.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering};

use codewarden::addr::{HostAddr, HostRange};

use super::fault_points::{FaultPoint, FaultPoints};

const LINE_SHIFT: u32 = 6;

/// The places in a block that can fault.
#[derive(Debug)]
pub(super) struct FaultTable {
    /// The guest address that the points are relative to: that of the first instruction.
    pub(super) guest_start: u64,
    pub(super) points: FaultPoints,
    /// The length of the code.
    pub(super) len_bytes: u32,
    /// The runs until a block of the quick compiler leaves as hot. The block's code has the address
    /// of this. [`NO_COUNTER`] in a region, which does not count its runs.
    pub(super) runs_left: AtomicI32,
}

/// The quick compiler's blocks count down from 0 at least, and are asked for their region or set
/// back at every run below that. So none of them comes down to this.
pub(super) const NO_COUNTER: i32 = i32::MIN;

impl FaultTable {
    /// The counter of a block of the quick compiler.
    pub(super) fn counter(&self) -> Option<&AtomicI32> {
        (self.runs_left.load(Ordering::Relaxed) != NO_COUNTER).then_some(&self.runs_left)
    }
}

/// The tables of all blocks of one code buffer.
#[derive(Debug)]
pub(super) struct FaultIndex {
    view: HostRange,
    lines: Box<[AtomicPtr<FaultTable>]>,
}

impl FaultIndex {
    pub(super) fn new(view: HostRange) -> Self {
        let count = view.len() >> LINE_SHIFT;
        // Zeroed by the system, page by page as they are touched.
        let lines = Box::<[AtomicPtr<FaultTable>]>::new_zeroed_slice(count);
        // SAFETY: zeros are a null pointer.
        Self { view, lines: unsafe { lines.assume_init() } }
    }

    /// Enters the table of the code at `start`. Code is aligned to lines: no two blocks share one.
    ///
    /// # Safety
    ///
    /// `table` stays in place until [`remove`](Self::remove).
    pub(super) unsafe fn insert(&self, start: usize, table: *const FaultTable) {
        let line = self.line(start);
        debug_assert!(line.is_some(), "code lies in the view");
        if let Some(line) = line {
            self.lines[line].store(table.cast_mut(), Ordering::Release);
        }
    }

    /// Takes out the table of the code at `start`.
    pub(super) fn remove(&self, start: usize) {
        if let Some(line) = self.line(start) {
            self.lines[line].store(ptr::null_mut(), Ordering::Release);
        }
    }

    /// The guest instruction that makes an access at `host_pc`. `None` if the pc is in no block, or
    /// at a place without a guest access.
    pub(super) fn guest_pc(&self, host_pc: usize) -> Option<u64> {
        self.point(host_pc).map(|(start, point)| offset(start, point.guest_offset))
    }

    /// The guest instruction whose registers the hart has at `host_pc`: that of the access, or its
    /// [restart](super::restart) before it. If the restart is far, also the start of the region. `None` as
    /// above.
    pub(super) fn restart(&self, host_pc: usize) -> Option<(u64, Option<u64>)> {
        self.point(host_pc).map(|(start, point)| (offset(start, point.restart_offset), point.is_far.then_some(start)))
    }

    /// The point at `host_pc`, and the address that its offsets begin at.
    fn point(&self, host_pc: usize) -> Option<(u64, FaultPoint)> {
        let (table, offset) = self.find(host_pc)?;
        let point = table.points.at(offset)?;
        Some((table.guest_start, point))
    }

    /// The table of the block that `host_pc` is in.
    pub(super) fn table(&self, host_pc: usize) -> Option<&FaultTable> {
        Some(self.find(host_pc)?.0)
    }

    /// The same, with the offset of `host_pc` in the block.
    fn find(&self, host_pc: usize) -> Option<(&FaultTable, u32)> {
        let lines = &self.lines[..=self.line(host_pc)?];
        let tables = lines.iter().enumerate().rev().map(|(line, table)| (line, table.load(Ordering::Acquire)));
        let (first, table) = { tables }.find(|(_, table)| !table.is_null())?;
        // SAFETY: in the index, hence alive, if the pc is in its block. If it is in no block at
        // all, the compiled code has jumped astray, and a table that goes away meanwhile is the
        // lesser problem.
        let table = unsafe { &*table };
        let offset = host_pc - (self.view.start().0 + (first << LINE_SHIFT));
        (offset < table.len_bytes as usize).then_some((table, offset as u32))
    }

    fn line(&self, address: usize) -> Option<usize> {
        let inside = self.view.contains(HostAddr(address));
        inside.then(|| (address - self.view.start().0) >> LINE_SHIFT)
    }
}

fn offset(start: u64, distance: i32) -> u64 {
    start.wrapping_add(distance as i64 as u64)
}

#[cfg(test)]
mod tests {
    use codewarden::addr::PageSize;

    use super::*;

    #[test]
    fn a_pc_is_found_only_in_its_own_block_and_at_its_own_points() {
        let index = FaultIndex::new(HostRange::new(HostAddr(0x10000), 0x1000, PageSize::from_shift(12)).unwrap());
        let points = [(4, 9, 0), (200, 204, 2)].map(|(start, end, guest_offset)| {
            let restart_offset = guest_offset - 0x10;
            FaultPoint { start, end, guest_offset, restart_offset, is_far: start == 4 }
        });
        let tables = [(); 2].map(|()| FaultTable {
            len_bytes: 300,
            guest_start: 0x100,
            points: FaultPoints::new(&points),
            runs_left: AtomicI32::new(NO_COUNTER),
        });
        for (start, table) in [0x10040, 0x10200].into_iter().zip(&tables) {
            // SAFETY: the tables outlive the index's last use below.
            unsafe { index.insert(start, table) };
        }
        assert_eq!(index.guest_pc(0x10040 + 3), None);
        assert_eq!(index.guest_pc(0x10040 + 4), Some(0x100));
        assert_eq!(index.guest_pc(0x10040 + 8), Some(0x100));
        assert_eq!(index.guest_pc(0x10040 + 9), None);
        assert_eq!(index.guest_pc(0x10040 + 203), Some(0x102), "two lines behind the block's first");
        assert_eq!(index.guest_pc(0x10200 + 201), Some(0x102));
        assert_eq!(index.restart(0x10200 + 201), Some((0xf2, None)));
        assert_eq!(index.restart(0x10200 + 4), Some((0xf0, Some(0x100))));
        assert_eq!(index.guest_pc(0x10040 + 310), None, "between the blocks");
        assert_eq!(index.guest_pc(0x10000), None);
        assert_eq!(index.guest_pc(0x11000), None);
        index.remove(0x10200);
        assert_eq!(index.guest_pc(0x10200 + 201), None);
    }
}
