//! A table with room for very many values, of which few are used: a tree whose leaves are made when
//! they are needed. Its memory and time follow the number of leaves, however far apart they lie, so
//! a region may be a whole address space.
//!
//! Readers take no lock and are async-signal-safe. A leaf stays at its address until the table is
//! dropped.
//!
//! # Safety
//!
//! A pointer in a node is null, or comes from a box and was published by a release store. Above the
//! lowest level of nodes the box holds [`FANOUT`] slots; at the lowest level it holds `leaf_len`
//! values. The box is freed when the table is dropped, and never replaced.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::ops::Range;
use core::{fmt, ptr, slice};

use crate::error::{Error, room_for};
use crate::sync::{AtomicPtr, AtomicUsize, Ordering};

const FANOUT_BITS: u32 = if cfg!(miri) { 3 } else { 10 };
/// Slots of a node.
const FANOUT: usize = 1 << FANOUT_BITS;

type Slot = AtomicPtr<()>;

/// See the module. Values are numbered from 0.
pub(crate) struct Sparse<T> {
    len: usize,
    /// Values of a leaf, as a power of two.
    leaf_bits: u32,
    /// Levels of nodes, the root's included.
    levels: u32,
    /// As many slots as `len` needs.
    root: Box<[Slot]>,
    /// Memory of all nodes and leaves, in bytes.
    bytes: AtomicUsize,
    values: PhantomData<Box<[T]>>,
}

impl<T> fmt::Debug for Sparse<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sparse").field("len", &self.len).finish_non_exhaustive()
    }
}

fn new_node(slots: usize) -> Result<Box<[Slot]>, Error> {
    room_for::<Slot>(slots, "the table of pages")?;
    Ok((0..slots).map(|_| Slot::new(ptr::null_mut())).collect())
}

impl<T> Sparse<T> {
    /// A table of `len` values, in leaves of `leaf_len`, a power of two.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`] if there is none for the root.
    pub(crate) fn new(len: usize, leaf_len: usize) -> Result<Self, Error> {
        debug_assert!(leaf_len.is_power_of_two());
        let mut levels = 1;
        let mut slots = len.div_ceil(leaf_len);
        while slots > FANOUT {
            slots = slots.div_ceil(FANOUT);
            levels += 1;
        }
        let root = new_node(slots)?;
        let bytes = AtomicUsize::new(size_of_val(&*root));
        Ok(Self { len, leaf_bits: leaf_len.trailing_zeros(), levels, root, bytes, values: PhantomData })
    }

    fn leaf_len(&self) -> usize {
        1 << self.leaf_bits
    }

    /// The place of value `index` in its leaf.
    fn in_leaf(&self, index: usize) -> usize {
        index & (self.leaf_len() - 1)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The memory that the table takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The slot of leaf `number`, or the level at which the path to it ends.
    fn slot(&self, number: usize) -> Result<&Slot, u32> {
        let mut slots = &*self.root;
        let mut level = self.levels - 1;
        loop {
            let at = number >> (FANOUT_BITS * level);
            let at = if level + 1 == self.levels { at } else { at % FANOUT };
            let slot = slots.get(at).ok_or(level)?;
            if level == 0 {
                return Ok(slot);
            }
            let below = slot.load(Ordering::Acquire);
            if below.is_null() {
                return Err(level);
            }
            // SAFETY: not null and above the lowest level: a node, which lives as long as the
            // table.
            slots = unsafe { slice::from_raw_parts(below.cast::<Slot>(), FANOUT) };
            level -= 1;
        }
    }

    /// Leaf `number`, or the level at which the path to it ends.
    fn leaf(&self, number: usize) -> Result<&[T], u32> {
        let leaf = self.slot(number)?.load(Ordering::Acquire);
        if leaf.is_null() {
            return Err(0);
        }
        // SAFETY: not null and at the lowest level: a leaf, which lives as long as the table.
        Ok(unsafe { slice::from_raw_parts(leaf.cast::<T>(), self.leaf_len()) })
    }

    /// Value `index`, if its leaf was made. Async-signal-safe.
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        self.leaf(index >> self.leaf_bits).ok()?.get(self.in_leaf(index))
    }

    /// Each value of `indices` whose leaf was made, in order. The cost follows the number of
    /// leaves. Async-signal-safe.
    pub(crate) fn existing(&self, indices: Range<usize>) -> impl Iterator<Item = (usize, &T)> {
        let end = indices.end.min(self.len);
        let mut next = indices.start;
        let mut leaf: &[T] = &[];
        core::iter::from_fn(move || {
            while next < end {
                if leaf.is_empty() || self.in_leaf(next) == 0 {
                    match self.leaf(next >> self.leaf_bits) {
                        Ok(found) => leaf = found,
                        Err(level) => {
                            leaf = &[];
                            // The first leaf behind the hole.
                            let shift = FANOUT_BITS * level;
                            let number = (((next >> self.leaf_bits) >> shift) + 1) << shift;
                            next = number.saturating_mul(self.leaf_len());
                            continue;
                        }
                    }
                }
                let index = next;
                next += 1;
                return Some((index, &leaf[self.in_leaf(index)]));
            }
            None
        })
    }

    /// If the leaf that holds value `index` (below `len`) does not exist, makes it, with `value`
    /// for each of its values. Callers take turns.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`] if there is none for it.
    pub(crate) fn make(&self, index: usize, value: impl FnMut(usize) -> T) -> Result<(), Error>
    where
        T: Send + Sync,
    {
        debug_assert!(index < self.len);
        let number = index >> self.leaf_bits;
        let slot = loop {
            match self.slot(number) {
                Ok(slot) => break slot,
                Err(level) => self.make_node(number, level)?,
            }
        };
        if !slot.load(Ordering::Acquire).is_null() {
            return Ok(());
        }
        room_for::<T>(self.leaf_len(), "the table of pages")?;
        let first = number << self.leaf_bits;
        let leaf: Box<[T]> = (first..first + self.leaf_len()).map(value).collect();
        self.bytes.fetch_add(size_of_val(&*leaf), Ordering::Relaxed);
        slot.store(Box::into_raw(leaf).cast(), Ordering::Release);
        Ok(())
    }

    /// Makes the node below `level` on the path to leaf `number`.
    fn make_node(&self, number: usize, level: u32) -> Result<(), Error> {
        let mut slots = &*self.root;
        for above in (level + 1..self.levels).rev() {
            let at = number >> (FANOUT_BITS * above);
            let at = if above + 1 == self.levels { at } else { at % FANOUT };
            let below = slots[at].load(Ordering::Acquire);
            // SAFETY: `slot` came as far as `level` on the same way: a node.
            slots = unsafe { slice::from_raw_parts(below.cast::<Slot>(), FANOUT) };
        }
        let at = number >> (FANOUT_BITS * level);
        let at = if level + 1 == self.levels { at } else { at % FANOUT };
        let node = new_node(FANOUT)?;
        self.bytes.fetch_add(size_of_val(&*node), Ordering::Relaxed);
        slots[at].store(Box::into_raw(node).cast(), Ordering::Release);
        Ok(())
    }

    /// Frees everything below `slots`, a node of `level`.
    fn free(&self, slots: &[Slot], level: u32) {
        for slot in slots {
            let below = slot.load(Ordering::Relaxed);
            if below.is_null() {
                continue;
            }
            if level == 0 {
                let leaf = ptr::slice_from_raw_parts_mut(below.cast::<T>(), self.leaf_len());
                // SAFETY: a leaf, made by `make` from a box of that length. Only `drop` calls this,
                // so no thread uses the table any more.
                drop(unsafe { Box::from_raw(leaf) });
            } else {
                let node = ptr::slice_from_raw_parts_mut(below.cast::<Slot>(), FANOUT);
                // SAFETY: a node, made by `make_node`, as above.
                let node = unsafe { Box::from_raw(node) };
                self.free(&node, level - 1);
            }
        }
    }
}

impl<T> Drop for Sparse<T> {
    fn drop(&mut self) {
        self.free(&self.root, self.levels - 1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Compared with a plain set of the leaves that were made. They lie far apart, so that every
    /// level is used; the table's end cuts the last of them.
    #[test]
    fn agrees_with_a_set_of_leaves() {
        const LEAF: usize = 4;
        let far = FANOUT * FANOUT * LEAF;
        let len = 5 * far + LEAF / 2;
        let table = Sparse::<(usize, Box<usize>)>::new(len, LEAF).unwrap();
        let mut seed = 3u64;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        let mut oracle = BTreeSet::new();
        for round in 0..if cfg!(miri) { 40 } else { 400 } {
            let near = [0, far - 2 * LEAF, far, 3 * far + FANOUT * LEAF, 5 * far - 1][next(5)];
            let index = (near + next(8 * LEAF)).min(len - 1);
            if round % 2 == 0 {
                table.make(index, |index| (index, Box::new(round))).unwrap();
                oracle.insert(index / LEAF);
            }
            assert_eq!(table.get(index).map(|value| value.0), oracle.contains(&(index / LEAF)).then_some(index));
            let from = next(len);
            let found = table.existing(from..usize::MAX).map(|(index, value)| (index, value.0));
            let leaves = oracle.iter().flat_map(|leaf| leaf * LEAF..leaf * LEAF + LEAF);
            assert!(found.eq(leaves.filter(|index| (from..len).contains(index)).map(|index| (index, index))));
        }
        assert!(table.get(len + 10 * LEAF).is_none() && table.get(usize::MAX).is_none());
        assert!(table.bytes() < 100 * FANOUT * size_of::<usize>());
    }

    #[test]
    fn what_it_costs_does_not_follow_how_many_values_there_could_be() {
        let small = Sparse::<u64>::new(512, 512).unwrap();
        let huge = Sparse::<u64>::new(1 << 44, 512).unwrap();
        for table in [&small, &huge] {
            table.make(0, |_| 1).unwrap();
            table.make(table.len() - 1, |_| 1).unwrap();
            assert!(table.existing(0..table.len()).count() <= 1024);
        }
        assert!(huge.bytes() < small.bytes() + (64 << 10), "{} and {}", huge.bytes(), small.bytes());
    }
}
