//! Translations of dead blocks, retained in case their bytes come back.
//!
//! A program may patch an instruction to and fro, store to data on a page with code, or store the
//! bytes that were there already. Each kills blocks, although their bytes are soon the same again.
//! So the cache retains the translation of a dead block for its key, with the guest bytes that it
//! was made from. A ticket of the same key over the same bytes publishes it again, for the price of
//! a comparison.
//!
//! # Bounds
//!
//! A key has at most two retained translations: of two versions that alternate, each is dead when
//! the other is wanted. All together take at most the cache's limit for them; the oldest is
//! **discarded** first. The epoch frees discarded translations: a vCPU may be inside.

use std::collections::{BTreeMap, HashMap};

use super::key::{Key, Payload};
use super::limit::{MemoryLimit, MemoryUse};
use super::translation::Translation;
use crate::sync::Arc;

/// The most translations that are retained for one key.
const PER_KEY: usize = 2;

/// A retained translation.
struct Item<P: Payload> {
    key: Key,
    translation: Arc<Translation<P>>,
}

impl<P: Payload> Item<P> {
    /// The memory of the translation and of its places in the two maps.
    fn memory_use(&self) -> MemoryUse {
        const PLACES_BYTES: usize = 2 * size_of::<u64>() + size_of::<(Key, Vec<u64>)>();
        let mut used = self.translation.memory_use();
        used.record_bytes += PLACES_BYTES + size_of::<Self>();
        used
    }
}

/// The retained translations of a cache. Changed under its commit lock.
pub(super) struct Retained<P: Payload> {
    /// By a number that only grows: the oldest has the lowest one.
    all: BTreeMap<u64, Item<P>>,
    /// The numbers of each key's translations; the oldest is in front.
    by_key: HashMap<Key, Vec<u64>>,
    next: u64,
    used: MemoryUse,
    limit_bytes: usize,
}

impl<P: Payload> Retained<P> {
    pub(super) fn new() -> Self {
        let limit_bytes = MemoryLimit::default().retained_bytes;
        Self { all: BTreeMap::new(), by_key: HashMap::new(), next: 0, used: MemoryUse::default(), limit_bytes }
    }

    /// The memory that all of them take.
    pub(super) fn memory_use(&self) -> MemoryUse {
        self.used
    }

    /// Retains `translation` if it can be used again. Returns the translations that are discarded.
    pub(super) fn retain(&mut self, key: Key, translation: &Arc<Translation<P>>) -> Vec<Arc<Translation<P>>> {
        let translation = translation.clone();
        if self.limit_bytes == 0 || translation.source.is_none() {
            return vec![translation];
        }
        // A newer translation of the same bytes is the better one.
        let mut discarded: Vec<_> = self.take(key, |other| other.source == translation.source).into_iter().collect();
        if let Some(numbers) = self.by_key.get(&key).filter(|numbers| numbers.len() == PER_KEY) {
            discarded.extend(self.remove(numbers[0]));
        }
        let item = Item { key, translation };
        self.used += item.memory_use();
        self.by_key.entry(key).or_default().push(self.next);
        self.all.insert(self.next, item);
        self.next += 1;
        discarded.extend(self.enforce_limit());
        discarded
    }

    /// Takes out the translation of `key` that is `wanted`.
    pub(super) fn take(&mut self, key: Key, wanted: impl Fn(&Translation<P>) -> bool) -> Option<Arc<Translation<P>>> {
        let numbers = self.by_key.get(&key)?;
        let is_wanted = |number: &&u64| self.all.get(number).is_some_and(|item| wanted(&item.translation));
        let number = *numbers.iter().find(is_wanted)?;
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Translation<P>>> {
        let item = self.all.remove(&number)?;
        self.used -= item.memory_use();
        if let Some(numbers) = self.by_key.get_mut(&item.key) {
            numbers.retain(|&other| other != number);
            if numbers.is_empty() {
                self.by_key.remove(&item.key);
            }
        }
        Some(item.translation)
    }

    /// Takes out the oldest.
    fn pop(&mut self) -> Option<Arc<Translation<P>>> {
        let (&number, _) = self.all.first_key_value()?;
        self.remove(number)
    }

    /// Discards the oldest until the rest is `small_enough`.
    pub(super) fn discard(&mut self, small_enough: impl Fn(MemoryUse) -> bool) -> Vec<Arc<Translation<P>>> {
        let next = || if small_enough(self.used) { None } else { self.pop() };
        std::iter::from_fn(next).collect()
    }

    fn enforce_limit(&mut self) -> Vec<Arc<Translation<P>>> {
        let limit = self.limit_bytes;
        self.discard(|used| used.bytes() <= limit)
    }

    /// Retains `bytes` at most from now on. Returns the translations that are discarded.
    pub(super) fn set_limit(&mut self, bytes: usize) -> Vec<Arc<Translation<P>>> {
        self.limit_bytes = bytes;
        self.enforce_limit()
    }

    /// Discards all.
    pub(super) fn clear(&mut self) -> Vec<Arc<Translation<P>>> {
        self.discard(|_| false)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::addr::GuestAddr;
    use crate::code_cache::entry::Entry;
    use crate::code_cache::translation::Source;

    type Made = Arc<Translation<()>>;

    fn made(entry: usize, bytes: &[u8]) -> Made {
        let mut source = Source::default();
        source.add(GuestAddr(0x1000), bytes);
        let entry = Entry::plain(entry);
        Arc::new(Translation {
            entry,
            flag: None,
            source: Some(source),
            options: 0,
            payload_bytes: 100,
            links: Box::default(),
            _payload: (),
        })
    }

    fn entries(discarded: Vec<Made>) -> Vec<usize> {
        discarded.iter().filter_map(|made| made.entry.address(false)).collect()
    }

    fn take(retained: &mut Retained<()>, key: u64, like: &Made) -> Option<usize> {
        retained.take(Key::new(key), |other| other.source == like.source)?.entry.address(false)
    }

    #[test]
    fn two_versions_of_a_key_are_retained() {
        let mut retained = Retained::new();
        let [a, b, c] = [made(10, b"a"), made(11, b"b"), made(12, b"c")];
        assert!(retained.retain(Key::new(1), &a).is_empty() && retained.retain(Key::new(1), &b).is_empty());
        assert!(retained.retain(Key::new(2), &a).is_empty());
        assert_eq!(entries(retained.retain(Key::new(1), &c)), [10]);
        assert_eq!(take(&mut retained, 1, &a), None);
        assert_eq!(take(&mut retained, 1, &b), Some(11));
        assert_eq!(take(&mut retained, 1, &b), None);
        assert_eq!(take(&mut retained, 1, &c), Some(12));
        assert_eq!(take(&mut retained, 2, &a), Some(10));
    }

    #[test]
    fn a_newer_translation_of_the_same_bytes_takes_the_place() {
        let mut retained = Retained::new();
        let (old, new) = (made(10, b"a"), made(11, b"a"));
        retained.retain(Key::new(1), &old);
        assert_eq!(entries(retained.retain(Key::new(1), &new)), [10]);
        assert_eq!(take(&mut retained, 1, &old), Some(11));
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes() {
        let all: Vec<Made> = (0..6).map(|i| made(10 + i, &[i as u8])).collect();
        let one_bytes = Item { key: Key::new(0), translation: all[0].clone() }.memory_use().bytes();
        let mut retained = Retained::new();
        retained.set_limit(3 * one_bytes);
        let mut discarded = Vec::new();
        for (key, one) in all.iter().enumerate() {
            discarded.extend(entries(retained.retain(Key::new(key as u64), one)));
            assert!(retained.memory_use().bytes() <= 3 * one_bytes);
        }
        assert_eq!(discarded, [10, 11, 12]);
        assert_eq!(take(&mut retained, 4, &all[4]), Some(14));
        assert!(retained.retain(Key::new(0), &all[0]).is_empty());
        assert_eq!(entries(retained.discard(|left| left.blocks == 1)), [13, 15]);
        assert_eq!(entries(retained.set_limit(0)), [10]);
        assert_eq!(entries(retained.retain(Key::new(0), &all[0])), [10]);
        assert_eq!(take(&mut retained, 0, &all[0]), None);
        assert_eq!(retained.memory_use(), MemoryUse::default());
    }

    #[test]
    fn a_translation_without_source_is_not_retained() {
        let mut retained = Retained::new();
        let entry = Entry::plain(10);
        let unknown = Arc::new(Translation {
            entry,
            flag: None,
            source: None,
            options: 0,
            payload_bytes: 0,
            links: Box::default(),
            _payload: (),
        });
        assert_eq!(entries(retained.retain(Key::new(1), &unknown)), [10]);
        assert!(retained.take(Key::new(1), |_| true).is_none());
    }
}
