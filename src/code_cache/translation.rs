//! A translation: code, and the guest bytes that it was made from.

use std::cell::Cell;
use std::ops::Range;
use std::ptr::NonNull;

use smallvec::SmallVec;

use super::entry::Entry;
use super::key::Payload;
use super::limit::MemoryUse;
use super::stale_flag::StaleFlag;
use super::table::{CellPtr, Link};
use crate::addr::GuestAddr;
use crate::sync::Arc;

/// Sources up to this size need no memory of their own. As much as eight instructions of four bytes:
/// most blocks are not longer.
const INLINE_BYTES: usize = 32;

/// The guest bytes that a block was made from.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Source {
    /// The address of the first byte.
    start: u64,
    /// All pieces in the order of translation, neighbours joined. Only a source of several pieces
    /// has them; most have one, whose length is that of `bytes`.
    #[allow(clippy::box_collection, reason = "one word in each block")]
    pieces: Option<Box<Vec<Range<u64>>>>,
    /// The bytes of all pieces.
    bytes: SmallVec<[u8; INLINE_BYTES]>,
}

impl Source {
    /// Adds `bytes` at `start`. A piece up to the last byte of the guest's space ends at 0.
    pub(super) fn add(&mut self, start: GuestAddr, bytes: &[u8]) {
        let new = start.0..start.0.wrapping_add(bytes.len() as u64);
        let only = self.start..self.start.wrapping_add(self.bytes.len() as u64);
        match self.pieces.as_deref_mut() {
            None if self.bytes.is_empty() => self.start = new.start,
            None if only.end == new.start => {}
            None => self.pieces = Some(Box::new(vec![only, new])),
            Some(pieces) => match pieces.last_mut() {
                Some(last) if last.end == new.start => last.end = new.end,
                _ => pieces.push(new),
            },
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Its size on the heap, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        let of_pieces = |pieces: &Vec<Range<u64>>| size_of_val(pieces) + pieces.capacity() * size_of::<Range<u64>>();
        let bytes = if self.bytes.spilled() { self.bytes.capacity() } else { 0 };
        self.pieces.as_deref().map_or(0, of_pieces) + bytes
    }
}

/// A translation's place in the two lists of retained ones ([`super::retained`]). Used only under the
/// commit lock.
pub(super) struct Place<P: Payload> {
    pub(super) older: Cell<Option<NonNull<Translation<P>>>>,
    pub(super) newer: Cell<Option<NonNull<Translation<P>>>>,
    /// The cell of its key.
    pub(super) cell: Cell<Option<CellPtr>>,
    /// The next older one of its key.
    pub(super) older_of_key: Cell<Option<NonNull<Translation<P>>>>,
}

impl<P: Payload> Place<P> {
    /// That of a translation in no list.
    pub(super) fn none() -> Self {
        Self { older: Cell::new(None), newer: Cell::new(None), cell: Cell::new(None), older_of_key: Cell::new(None) }
    }
}

/// Code that was made from guest bytes. It belongs to the record of a live block, then to the list
/// of retained translations, and at last to the epoch, so that no vCPU is inside the code when it is
/// dropped.
pub(super) struct Translation<P: Payload> {
    pub(super) entry: Entry,
    /// Present if emitted code has its address.
    pub(super) flag: Option<Arc<StaleFlag>>,
    /// The guest bytes that it was made from, if the translator declared them.
    pub(super) source: Option<Source>,
    /// The number from `Ticket::set_options`.
    pub(super) options: u64,
    /// The links that its code jumps through.
    pub(super) links: Box<[Link]>,
    /// The declared size of the payload.
    pub(super) payload_bytes: usize,
    /// Its place among the retained ones.
    pub(super) place: Place<P>,
    /// Only to be dropped.
    pub(super) _payload: P,
}

impl<P: Payload> Translation<P> {
    /// The memory that it takes, without any record.
    pub(super) fn memory_use(&self) -> MemoryUse {
        // A flag has the two counts of an `Arc`.
        let flag_bytes = self.flag.as_ref().map_or(0, |_| 3 * size_of::<usize>());
        let link_bytes = size_of_val(&*self.links);
        let source_bytes = self.source.as_ref().map_or(0, Source::heap_bytes);
        MemoryUse {
            blocks: 1,
            payload_bytes: self.payload_bytes,
            record_bytes: size_of::<Self>() + flag_bytes + source_bytes + link_bytes,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_ranges_are_one() {
        let [mut whole, mut parts, mut apart] = [Source::default(), Source::default(), Source::default()];
        whole.add(GuestAddr(8), &[1, 2, 3]);
        parts.add(GuestAddr(8), &[1]);
        parts.add(GuestAddr(9), &[2, 3]);
        apart.add(GuestAddr(8), &[1]);
        apart.add(GuestAddr(10), &[2, 3]);
        assert_eq!(whole, parts);
        assert_ne!(whole, apart);
        for source in [&mut parts, &mut apart] {
            source.add(GuestAddr(20), &[4]);
            source.add(GuestAddr(21), &[5]);
        }
        assert_eq!(parts.pieces.as_deref(), Some(&vec![8..11, 20..22]));
        assert_eq!(apart.pieces.as_deref(), Some(&vec![8..9, 10..12, 20..22]));
        assert_eq!((whole.heap_bytes(), apart.bytes.len()), (0, 5));
    }
}
