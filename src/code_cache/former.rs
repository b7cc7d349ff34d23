//! Dead blocks that are retained in case their bytes come back.
//!
//! A program may patch an instruction to and fro, store beside its code, or store the bytes that
//! were there already. Then blocks end whose bytes are soon the same again. The translation of a
//! dead block is kept for its key, with the guest bytes that it was made from. A ticket of the same
//! key over the same bytes publishes it again, for the price of a comparison.
//!
//! # Bounds
//!
//! A key has two formers at most: of two versions that alternate, each is dead when the other is
//! wanted. All formers together weigh at most the cache's limit for them; the one that was kept
//! first goes first. The epoch frees those that are given up: a vCPU may be inside.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use smallvec::SmallVec;

use super::limit::{MemoryLimit, Weight};
use super::record::Translation;
use super::{Key, Payload};
use crate::addr::GuestAddr;
use crate::sync::Arc;

/// The most formers of one key.
const PER_KEY: usize = 2;

/// The guest bytes that a block was made from.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Source {
    /// In the order of translation; neighbours are joined.
    pieces: SmallVec<[Range<u64>; 1]>,
    /// The bytes of all pieces.
    bytes: Vec<u8>,
}

impl Source {
    /// Adds `bytes` at `start`. A piece up to the last byte of the guest's space ends at 0.
    pub(super) fn add(&mut self, start: GuestAddr, bytes: &[u8]) {
        let end = start.0.wrapping_add(bytes.len() as u64);
        match self.pieces.last_mut() {
            Some(last) if last.end == start.0 => last.end = end,
            _ => self.pieces.push(start.0..end),
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Its size on the heap, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let spilled = if self.pieces.spilled() { self.pieces.capacity() } else { 0 };
        spilled * size_of::<Range<u64>>() + self.bytes.capacity()
    }
}

struct Former<P: Payload> {
    key: Key,
    translation: Arc<Translation<P>>,
}

impl<P: Payload> Former<P> {
    /// The weight of the translation and of its places in the two maps.
    fn weight(&self) -> Weight {
        const PLACES_BYTES: usize = 2 * size_of::<u64>() + size_of::<(Key, Vec<u64>)>();
        let mut weight = self.translation.weight();
        weight.record_bytes += PLACES_BYTES + size_of::<Self>();
        weight
    }
}

/// The formers of a cache. Changed under its commit lock.
pub(super) struct Formers<P: Payload> {
    /// By a number that only grows: the lowest number was kept first.
    all: BTreeMap<u64, Former<P>>,
    /// The numbers of each key's formers; the one that was kept first is in front.
    by_key: HashMap<Key, Vec<u64>>,
    next: u64,
    weight: Weight,
    limit_bytes: usize,
}

impl<P: Payload> Formers<P> {
    pub(super) fn new() -> Self {
        let limit_bytes = MemoryLimit::default().former_bytes;
        Self { all: BTreeMap::new(), by_key: HashMap::new(), next: 0, weight: Weight::default(), limit_bytes }
    }

    /// The weight of all formers.
    pub(super) fn weight(&self) -> Weight {
        self.weight
    }

    /// Keeps `translation` if it can be used again. Returns the translations that are given up.
    pub(super) fn keep(&mut self, key: Key, translation: &Arc<Translation<P>>) -> Vec<Arc<Translation<P>>> {
        let translation = translation.clone();
        if self.limit_bytes == 0 || translation.source.is_none() {
            return vec![translation];
        }
        // A newer translation of the same bytes is the better one.
        let mut given_up: Vec<_> = self.take(key, |former| former.source == translation.source).into_iter().collect();
        if let Some(numbers) = self.by_key.get(&key).filter(|numbers| numbers.len() == PER_KEY) {
            given_up.extend(self.remove(numbers[0]));
        }
        let former = Former { key, translation };
        self.weight += former.weight();
        self.by_key.entry(key).or_default().push(self.next);
        self.all.insert(self.next, former);
        self.next += 1;
        given_up.extend(self.keep_limit());
        given_up
    }

    /// Takes out the former of `key` that is `wanted`.
    pub(super) fn take(&mut self, key: Key, wanted: impl Fn(&Translation<P>) -> bool) -> Option<Arc<Translation<P>>> {
        let numbers = self.by_key.get(&key)?;
        let is_wanted = |number: &&u64| self.all.get(number).is_some_and(|former| wanted(&former.translation));
        let number = *numbers.iter().find(is_wanted)?;
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Translation<P>>> {
        let former = self.all.remove(&number)?;
        self.weight -= former.weight();
        if let Some(numbers) = self.by_key.get_mut(&former.key) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_key.remove(&former.key);
            }
        }
        Some(former.translation)
    }

    /// Takes out the former that was kept first.
    fn pop(&mut self) -> Option<Arc<Translation<P>>> {
        let (&number, _) = self.all.first_key_value()?;
        self.remove(number)
    }

    /// Gives up the first formers until the rest is `fine`.
    pub(super) fn give_up(&mut self, fine: impl Fn(Weight) -> bool) -> Vec<Arc<Translation<P>>> {
        let next = || if fine(self.weight) { None } else { self.pop() };
        std::iter::from_fn(next).collect()
    }

    fn keep_limit(&mut self) -> Vec<Arc<Translation<P>>> {
        let limit = self.limit_bytes;
        self.give_up(|formers| formers.bytes() <= limit)
    }

    /// Keeps `bytes` at most from now on. Returns the translations that are given up.
    pub(super) fn set_limit(&mut self, bytes: usize) -> Vec<Arc<Translation<P>>> {
        self.limit_bytes = bytes;
        self.keep_limit()
    }

    /// Gives up all formers.
    pub(super) fn clear(&mut self) -> Vec<Arc<Translation<P>>> {
        self.give_up(|_| false)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::block::Entry;

    type Made = Arc<Translation<()>>;

    fn made(entry: usize, bytes: &[u8]) -> Made {
        let mut source = Source::default();
        source.add(GuestAddr(0x1000), bytes);
        let entry = Entry::plain(entry);
        Arc::new(Translation { entry, flag: None, source: Some(source), options: 0, payload_bytes: 100, _payload: () })
    }

    fn entries(given_up: Vec<Made>) -> Vec<usize> {
        given_up.iter().filter_map(|made| made.entry.address(false)).collect()
    }

    fn take(formers: &mut Formers<()>, key: u64, like: &Made) -> Option<usize> {
        formers.take(Key(key), |former| former.source == like.source)?.entry.address(false)
    }

    #[test]
    fn pieces_that_are_neighbours_are_one() {
        let [mut whole, mut parts, mut apart] = [Source::default(), Source::default(), Source::default()];
        whole.add(GuestAddr(8), &[1, 2, 3]);
        parts.add(GuestAddr(8), &[1]);
        parts.add(GuestAddr(9), &[2, 3]);
        apart.add(GuestAddr(8), &[1]);
        apart.add(GuestAddr(10), &[2, 3]);
        assert_eq!(whole, parts);
        assert_ne!(whole, apart);
    }

    #[test]
    fn two_versions_of_a_key_are_kept() {
        let mut formers = Formers::new();
        let [a, b, c] = [made(10, b"a"), made(11, b"b"), made(12, b"c")];
        assert!(formers.keep(Key(1), &a).is_empty() && formers.keep(Key(1), &b).is_empty());
        assert!(formers.keep(Key(2), &a).is_empty());
        assert_eq!(entries(formers.keep(Key(1), &c)), [10]);
        assert_eq!(take(&mut formers, 1, &a), None);
        assert_eq!(take(&mut formers, 1, &b), Some(11));
        assert_eq!(take(&mut formers, 1, &b), None);
        assert_eq!(take(&mut formers, 1, &c), Some(12));
        assert_eq!(take(&mut formers, 2, &a), Some(10));
    }

    #[test]
    fn a_newer_translation_of_the_same_bytes_takes_the_place() {
        let mut formers = Formers::new();
        let (old, new) = (made(10, b"a"), made(11, b"a"));
        formers.keep(Key(1), &old);
        assert_eq!(entries(formers.keep(Key(1), &new)), [10]);
        assert_eq!(take(&mut formers, 1, &old), Some(11));
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes() {
        let all: Vec<Made> = (0..6).map(|i| made(10 + i, &[i as u8])).collect();
        let one_bytes = Former { key: Key(0), translation: all[0].clone() }.weight().bytes();
        let mut formers = Formers::new();
        formers.set_limit(3 * one_bytes);
        let mut given_up = Vec::new();
        for (key, one) in all.iter().enumerate() {
            given_up.extend(entries(formers.keep(Key(key as u64), one)));
            assert!(formers.weight().bytes() <= 3 * one_bytes);
        }
        assert_eq!(given_up, [10, 11, 12]);
        assert_eq!(take(&mut formers, 4, &all[4]), Some(14));
        assert!(formers.keep(Key(0), &all[0]).is_empty());
        assert_eq!(entries(formers.give_up(|left| left.blocks == 1)), [13, 15]);
        assert_eq!(entries(formers.set_limit(0)), [10]);
        assert_eq!(entries(formers.keep(Key(0), &all[0])), [10]);
        assert_eq!(take(&mut formers, 0, &all[0]), None);
        assert_eq!(formers.weight(), Weight::default());
    }

    #[test]
    fn what_says_nothing_of_its_bytes_is_not_kept() {
        let mut formers = Formers::new();
        let entry = Entry::plain(10);
        let unknown =
            Arc::new(Translation { entry, flag: None, source: None, options: 0, payload_bytes: 0, _payload: () });
        assert_eq!(entries(formers.keep(Key(1), &unknown)), [10]);
        assert!(formers.take(Key(1), |_| true).is_none());
    }
}
