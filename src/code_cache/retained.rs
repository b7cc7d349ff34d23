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
//!
//! # Two lists
//!
//! One list goes through all retained translations, the oldest first. A second one goes through
//! those of one key; the cell of the key leads to it. Both are made of pointers in the translations,
//! so nothing is allocated for them.
//!
//! # Safety
//!
//! A translation in the lists is owned by them, and they are used only under the commit lock. A
//! sweep leaves a cell that leads to one.
#![allow(unsafe_code)]

use std::iter::successors;
use std::ptr::{NonNull, null_mut};

use smallvec::SmallVec;

use super::key::Payload;
use super::limit::{MemoryLimit, MemoryUse};
use super::table::CellRef;
use super::translation::{Place, Translation};

/// The most translations that are retained for one key.
const PER_KEY: usize = 2;

/// Translations that nobody can revive any more. Mostly none, or one.
pub(super) type Discarded<P> = SmallVec<[Box<Translation<P>>; 2]>;

/// The retained translations of a cache. Changed under its commit lock.
pub(super) struct Retained<P: Payload> {
    oldest: Option<NonNull<Translation<P>>>,
    newest: Option<NonNull<Translation<P>>>,
    used: MemoryUse,
    limit_bytes: usize,
}

/// The translations of the key of `cell`; the newest first.
fn of_key<P: Payload>(cell: CellRef<'_>) -> impl Iterator<Item = NonNull<Translation<P>>> {
    // SAFETY: in the lists.
    let older = |of: &NonNull<Translation<P>>| unsafe { of.as_ref() }.place.older_of_key.get();
    successors(NonNull::new(cell.retained().cast()), older)
}

impl<P: Payload> Retained<P> {
    pub(super) fn new() -> Self {
        let limit_bytes = MemoryLimit::default().retained_bytes;
        Self { oldest: None, newest: None, used: MemoryUse::default(), limit_bytes }
    }

    /// The memory that all of them take.
    pub(super) fn memory_use(&self) -> MemoryUse {
        self.used
    }

    /// Whether `translation` can be used again, and there may be room for it.
    pub(super) fn wants(&self, translation: &Translation<P>) -> bool {
        self.limit_bytes != 0 && translation.source.is_some()
    }

    /// Retains `translation` for the key of `cell`. Returns the translations that are discarded.
    pub(super) fn retain(&mut self, cell: CellRef<'_>, translation: Box<Translation<P>>) -> Discarded<P> {
        // A newer translation of the same bytes is the better one.
        let same = self.take(cell, |other| other.source == translation.source);
        let replaced = same.or_else(|| of_key(cell).nth(PER_KEY - 1).map(|oldest| self.remove(oldest)));
        self.add(cell, translation);
        let mut discarded = self.enforce_limit();
        if let Some(replaced) = replaced {
            discarded.insert(0, replaced);
        }
        discarded
    }

    /// Takes out the translation of the key of `cell` that is `wanted`.
    pub(super) fn take(
        &mut self,
        cell: CellRef<'_>,
        wanted: impl Fn(&Translation<P>) -> bool,
    ) -> Option<Box<Translation<P>>> {
        // SAFETY: in the lists.
        let found = of_key(cell).find(|other| wanted(unsafe { other.as_ref() }))?;
        Some(self.remove(found))
    }

    /// Enters `translation` as the newest.
    fn add(&mut self, cell: CellRef<'_>, translation: Box<Translation<P>>) {
        self.used += translation.memory_use();
        let Place { older, newer, cell: own_cell, older_of_key } = &translation.place;
        older.set(self.newest);
        newer.set(None);
        own_cell.set(Some(cell.ptr()));
        older_of_key.set(NonNull::new(cell.retained().cast()));
        let this = NonNull::from(Box::leak(translation));
        match self.newest {
            // SAFETY: in the lists.
            Some(newest) => unsafe { newest.as_ref() }.place.newer.set(Some(this)),
            None => self.oldest = Some(this),
        }
        self.newest = Some(this);
        cell.set_retained(this.as_ptr().cast());
    }

    /// Takes out `this`, which is in the lists.
    fn remove(&mut self, this: NonNull<Translation<P>>) -> Box<Translation<P>> {
        // SAFETY: from the box of `add`, and in the lists no longer than to this function's end.
        let translation = unsafe { Box::from_raw(this.as_ptr()) };
        let Place { older, newer, cell, older_of_key } = &translation.place;
        match older.get() {
            // SAFETY: in the lists.
            Some(older) => unsafe { older.as_ref() }.place.newer.set(newer.get()),
            None => self.oldest = newer.get(),
        }
        match newer.get() {
            // SAFETY: in the lists.
            Some(newer) => unsafe { newer.as_ref() }.place.older.set(older.get()),
            None => self.newest = older.get(),
        }
        let cell = cell.get().unwrap_or_else(|| unreachable!("`add` set it"));
        // SAFETY: under the commit lock; a sweep leaves the cell of a retained translation.
        let cell = unsafe { CellRef::new(cell) };
        if cell.retained() == this.as_ptr().cast() {
            cell.set_retained(older_of_key.get().map_or(null_mut(), |older| older.as_ptr().cast()));
        } else {
            // SAFETY: in the lists.
            let places = of_key::<P>(cell).map(|other| &unsafe { other.as_ref() }.place);
            if let Some(newer) = { places }.find(|other| other.older_of_key.get() == Some(this)) {
                newer.older_of_key.set(older_of_key.get());
            }
        }
        self.used -= translation.memory_use();
        translation
    }

    /// Discards the oldest until the rest is `small_enough`.
    pub(super) fn discard(&mut self, small_enough: impl Fn(MemoryUse) -> bool) -> Discarded<P> {
        let mut discarded = Discarded::new();
        while let Some(oldest) = self.oldest
            && !small_enough(self.used)
        {
            discarded.push(self.remove(oldest));
        }
        discarded
    }

    fn enforce_limit(&mut self) -> Discarded<P> {
        let limit = self.limit_bytes;
        self.discard(|used| used.bytes() <= limit)
    }

    /// Retains `bytes` at most from now on. Returns the translations that are discarded.
    pub(super) fn set_limit(&mut self, bytes: usize) -> Discarded<P> {
        self.limit_bytes = bytes;
        self.enforce_limit()
    }

    /// Discards all.
    pub(super) fn clear(&mut self) -> Discarded<P> {
        self.discard(|_| false)
    }
}

impl<P: Payload> Drop for Retained<P> {
    fn drop(&mut self) {
        drop(self.clear());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::addr::GuestAddr;
    use crate::code_cache::entry::{Entry, EntryStubs};
    use crate::code_cache::key::Key;
    use crate::code_cache::table::{Cells, Table};
    use crate::code_cache::translation::Source;

    /// What identifies a translation here: its entry, and the bytes that it was made from.
    type Made<'a> = (usize, &'a [u8]);

    fn source(bytes: &[u8]) -> Option<Source> {
        let mut source = Source::default();
        source.add(GuestAddr(0x1000), bytes);
        Some(source)
    }

    fn made((entry, bytes): Made<'_>) -> Box<Translation<()>> {
        Box::new(Translation {
            entry: Entry::plain(entry),
            flag: None,
            source: source(bytes),
            options: 0,
            payload_bytes: 100,
            links: Box::default(),
            place: Place::none(),
            _payload: (),
        })
    }

    fn entries(discarded: Discarded<()>) -> Vec<usize> {
        discarded.iter().filter_map(|made| made.entry.address(false)).collect()
    }

    /// The lists, over the cells of a table.
    struct Fixture {
        retained: Retained<()>,
        table: Table,
        cells: Cells,
    }

    impl Fixture {
        fn new() -> Self {
            let stubs = EntryStubs::NOT_CODE;
            Self { retained: Retained::new(), table: Table::new(stubs), cells: Cells::new() }
        }

        fn retain(&mut self, key: u64, one: Made<'_>) -> Vec<usize> {
            let (cell, _) = self.table.cell_or_new(&mut self.cells, Key::new(key), EntryStubs::NOT_CODE);
            entries(self.retained.retain(cell, made(one)))
        }

        fn take(&mut self, key: u64, (_, bytes): Made<'_>) -> Option<usize> {
            let cell = self.table.cell(&self.cells, Key::new(key))?;
            self.retained.take(cell, |other| other.source == source(bytes))?.entry.address(false)
        }
    }

    const A: Made<'_> = (10, b"a");
    const B: Made<'_> = (11, b"b");
    const C: Made<'_> = (12, b"c");

    #[test]
    fn two_versions_of_a_key_are_retained() {
        let mut lists = Fixture::new();
        assert!(lists.retain(1, A).is_empty() && lists.retain(1, B).is_empty());
        assert!(lists.retain(2, A).is_empty());
        assert_eq!(lists.retain(1, C), [10]);
        assert_eq!(lists.take(1, A), None);
        assert_eq!(lists.take(1, B), Some(11));
        assert_eq!(lists.take(1, B), None);
        assert_eq!(lists.take(1, C), Some(12));
        assert_eq!(lists.take(2, A), Some(10));
    }

    #[test]
    fn a_newer_translation_of_the_same_bytes_takes_the_place() {
        let mut lists = Fixture::new();
        lists.retain(1, A);
        assert_eq!(lists.retain(1, (11, b"a")), [10]);
        assert_eq!(lists.take(1, A), Some(11));
    }

    #[test]
    fn beyond_the_limit_the_oldest_goes() {
        let one_bytes = made(A).memory_use().bytes();
        let mut lists = Fixture::new();
        lists.retained.set_limit(3 * one_bytes);
        let mut discarded = Vec::new();
        for key in 0..6 {
            discarded.extend(lists.retain(key, (10 + key as usize, &[key as u8])));
            assert!(lists.retained.memory_use().bytes() <= 3 * one_bytes);
        }
        assert_eq!(discarded, [10, 11, 12]);
        assert_eq!(lists.take(4, (0, &[4])), Some(14));
        assert!(lists.retain(0, A).is_empty());
        assert_eq!(entries(lists.retained.discard(|left| left.blocks == 1)), [13, 15]);
        assert_eq!(entries(lists.retained.set_limit(0)), [10]);
        assert!(!lists.retained.wants(&made(A)));
        assert_eq!(lists.take(0, A), None);
        assert_eq!(lists.retained.memory_use(), MemoryUse::default());
    }

    /// The lists, in any order of changes, against the obvious ones.
    #[test]
    fn both_lists_agree_with_a_vector() {
        let mut lists = Fixture::new();
        // Key and byte of each, the oldest first.
        let mut wanted: Vec<(u64, u8)> = Vec::new();
        let mut number = 1_u64;
        for entry in 0..if cfg!(miri) { 200 } else { 20_000 } {
            number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let (key, byte) = (number >> 33 & 3, (number >> 40) as u8 & 3);
            let same = wanted.iter().position(|&other| other == (key, byte));
            if number >> 62 == 0 {
                assert_eq!(lists.take(key, (0, &[byte])).is_some(), same.is_some());
                wanted.retain(|&other| other != (key, byte));
            } else if number >> 60 == 15 {
                let left = wanted.len() / 2;
                let discarded = lists.retained.discard(|used| used.blocks <= left);
                let gone = discarded.iter().map(|made| made.source.clone());
                assert!(gone.eq(wanted.drain(..wanted.len() - left).map(|(_, byte)| source(&[byte]))));
            } else {
                lists.retain(key, (entry + 10, &[byte]));
                let is_full = wanted.iter().filter(|other| other.0 == key).count() == PER_KEY;
                let oldest = wanted.iter().position(|other| other.0 == key).filter(|_| is_full);
                if let Some(at) = same.or(oldest) {
                    wanted.remove(at);
                }
                wanted.push((key, byte));
            }
            assert_eq!(lists.retained.memory_use().blocks, wanted.len());
        }
        let left = lists.retained.clear().into_iter().map(|made| made.source);
        assert!(left.eq(wanted.iter().map(|&(_, byte)| source(&[byte]))));
    }

    #[test]
    fn a_translation_without_source_is_not_retained() {
        let unknown = Translation { source: None, ..*made(A) };
        assert!(!Retained::new().wants(&unknown));
    }
}
