//! Dead blocks that are kept for the day when their bytes come back.
//!
//! A program that patches an instruction to and fro, or stores beside its code, or
//! stores what was there already, ends blocks whose bytes are soon the same again.
//! The translation of a dead block is kept for its key, with the guest bytes that
//! it was made from: a ticket of the same key over the same bytes publishes it
//! again, for the price of a comparison.
//!
//! # Bounds
//!
//! A key has two formers at most: between two versions that take turns each is dead
//! when the other is wanted. All keys together have as many as the cache's limit
//! says; the one that was kept first of all goes first. What is given up goes to the
//! epoch: a vCPU may be inside it.

use std::collections::HashMap;
use std::ops::Range;

use super::record::Translation;
use super::{Key, Payload};
use crate::addr::GuestAddr;
use crate::sync::Arc;

/// Formers of one key.
const PER_KEY: usize = 2;

/// Formers of a cache whose embedder says nothing about it.
pub(super) const DEFAULT_LIMIT: usize = 4096;

/// What a block was made from.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Source {
    /// In the order of translation; neighbours are joined.
    pieces: Vec<Range<u64>>,
    /// The bytes of all pieces.
    bytes: Vec<u8>,
}

impl Source {
    /// `bytes` at `start` are a part of it; the range does not wrap.
    pub(super) fn add(&mut self, start: GuestAddr, bytes: &[u8]) {
        let end = start.0 + bytes.len() as u64;
        match self.pieces.last_mut() {
            Some(last) if last.end == start.0 => last.end = end,
            _ => self.pieces.push(start.0..end),
        }
        self.bytes.extend_from_slice(bytes);
    }
}

struct Former<P: Payload> {
    key: Key,
    translation: Arc<Translation<P>>,
}

/// The formers of a cache. Changed under its commit lock.
pub(super) struct Formers<P: Payload> {
    /// Former by place. A place that is free is in `free` too.
    places: Vec<Option<Former<P>>>,
    free: Vec<usize>,
    /// Places in use, of one key the one that was kept first in front.
    by_key: HashMap<Key, Vec<usize>>,
    /// The next place to be given up.
    hand: usize,
    limit: usize,
}

impl<P: Payload> Formers<P> {
    pub(super) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new(), by_key: HashMap::new(), hand: 0, limit: DEFAULT_LIMIT }
    }

    /// Keeps `translation` if it can be used again; returns what it gives up instead.
    pub(super) fn keep(&mut self, key: Key, translation: &Arc<Translation<P>>) -> Vec<Arc<Translation<P>>> {
        let mut given_up = Vec::new();
        if self.limit == 0 || translation.source.is_none() {
            return given_up;
        }
        let translation = translation.clone();
        // A newer translation of the same bytes is the better one.
        given_up.extend(self.take(key, |former| former.source == translation.source));
        if let Some(places) = self.by_key.get(&key).filter(|places| places.len() == PER_KEY) {
            given_up.extend(self.empty(places[0]));
        }
        let place = self.free.pop().unwrap_or_else(|| {
            if self.places.len() < self.limit {
                self.places.push(None);
                return self.places.len() - 1;
            }
            let place = self.hand;
            self.hand = (place + 1) % self.limit;
            given_up.extend(self.empty(place));
            self.free.pop().unwrap_or(place)
        });
        self.places[place] = Some(Former { key, translation });
        self.by_key.entry(key).or_default().push(place);
        given_up
    }

    /// Takes out the former of `key` that is `wanted`.
    pub(super) fn take(&mut self, key: Key, wanted: impl Fn(&Translation<P>) -> bool) -> Option<Arc<Translation<P>>> {
        let places = self.by_key.get(&key)?;
        let is_wanted = |&place: &usize| {
            let former = self.places.get(place).and_then(Option::as_ref);
            former.is_some_and(|former| wanted(&former.translation))
        };
        let place = places.iter().copied().find(is_wanted)?;
        self.empty(place)
    }

    fn empty(&mut self, place: usize) -> Option<Arc<Translation<P>>> {
        let Former { key, translation } = self.places.get_mut(place)?.take()?;
        self.free.push(place);
        if let Some(places) = self.by_key.get_mut(&key) {
            places.retain(|&other| other != place);
            if places.is_empty() {
                self.by_key.remove(&key);
            }
        }
        Some(translation)
    }

    /// Keeps `limit` at most from now on; returns what it gives up.
    pub(super) fn set_limit(&mut self, limit: usize) -> Vec<Arc<Translation<P>>> {
        if limit >= self.places.len() {
            self.limit = limit;
            return Vec::new();
        }
        let given_up = self.clear();
        self.limit = limit;
        given_up
    }

    /// Gives all up.
    pub(super) fn clear(&mut self) -> Vec<Arc<Translation<P>>> {
        let emptied = std::mem::replace(self, Self { limit: self.limit, ..Self::new() });
        emptied.places.into_iter().flatten().map(|former| former.translation).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::block::{Entry, StaleFlag};

    type Made = Arc<Translation<()>>;

    fn made(entry: usize, bytes: &[u8]) -> Made {
        let mut source = Source::default();
        source.add(GuestAddr(0x1000), bytes);
        let (entry, flag) = (Entry::plain(entry), Arc::new(StaleFlag::new()));
        Arc::new(Translation { entry, flag, source: Some(source), options: 0, _payload: () })
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
        let mut formers = Formers::new();
        formers.set_limit(3);
        let all: Vec<Made> = (0..6).map(|i| made(10 + i, &[i as u8])).collect();
        let mut given_up = Vec::new();
        for (key, one) in all.iter().enumerate() {
            given_up.extend(entries(formers.keep(Key(key as u64), one)));
        }
        assert_eq!(given_up, [10, 11, 12]);
        // A place that is free is used before one is given up.
        assert_eq!(take(&mut formers, 4, &all[4]), Some(14));
        assert!(formers.keep(Key(0), &all[0]).is_empty());
        assert_eq!(entries(formers.set_limit(0)).len(), 3);
        assert!(formers.keep(Key(0), &all[0]).is_empty());
        assert_eq!(take(&mut formers, 0, &all[0]), None);
    }

    #[test]
    fn what_says_nothing_of_its_bytes_is_not_kept() {
        let mut formers = Formers::new();
        let (entry, flag) = (Entry::plain(10), Arc::new(StaleFlag::new()));
        let unknown = Arc::new(Translation { entry, flag, source: None, options: 0, _payload: () });
        assert!(formers.keep(Key(1), &unknown).is_empty());
        assert!(formers.take(Key(1), |_| true).is_none());
    }
}
