//! Bytes that change through a file that the guest has mapped: `pwrite`,
//! `ftruncate`, `fallocate` and their kin.
//!
//! No protection of a page tells of such a write. So the observer is told of every
//! guest range that shows the bytes: of the executable ones before the call, so
//! that a hart which sees the new bytes while the call goes on meets no old code;
//! of all of them when it is over. A view that appears or becomes executable
//! between the two is told of when it does.
//!
//! Private mappings of files are copies (see [`address_space`](super::address_space)),
//! so nothing changes in them. Writes by other processes are not seen.

use std::collections::BTreeMap;
use std::ops::Range;

use codewarden::addr::HostAddr;

use super::observer::{ByteRange, MemoryObserver, UnseenWrite};
use super::vma::{FileId, Mapping, Mappings};
use crate::memory::Window;
use crate::memory::window::EXEC;

/// The changes that are under way.
#[derive(Default)]
pub(super) struct FileChanges {
    by_number: BTreeMap<u64, FileChange>,
    next: u64,
}

struct FileChange {
    file: FileId,
    bytes: Range<u64>,
    /// In force until the call is over.
    announced: Vec<UnseenWrite>,
}

/// One change that is under way.
#[derive(Debug)]
#[must_use = "the change lasts until it is ended"]
pub struct FileChangeId(u64);

/// Where a part of a mapping lies on the host.
pub(super) fn on_host(window: &Window, part: &Mapping) -> ByteRange {
    let at = |guest: u64| HostAddr(window.base() as usize + guest as usize);
    at(part.start)..at(part.end)
}

impl FileChanges {
    /// A call is about to change `bytes` of `file`.
    pub(super) fn begin(
        &mut self,
        (mappings, window, observer): (&Mappings, &Window, &dyn MemoryObserver),
        file: FileId,
        bytes: Range<u64>,
    ) -> FileChangeId {
        let code = mappings.showing(file, &bytes).into_iter().filter(|part| part.prot & EXEC != 0);
        let announced = code.map(|part| observer.unseen_write(&on_host(window, &part))).collect();
        self.next += 1;
        self.by_number.insert(self.next, FileChange { file, bytes, announced });
        FileChangeId(self.next)
    }

    /// The call is over.
    pub(super) fn end(
        &mut self,
        (mappings, window, observer): (&Mappings, &Window, &dyn MemoryObserver),
        id: FileChangeId,
    ) {
        let Some(FileChange { file, bytes, announced }) = self.by_number.remove(&id.0) else { return };
        for part in mappings.showing(file, &bytes) {
            observer.changed(&on_host(window, &part));
        }
        drop(announced);
    }

    /// `mapping` has become what it is: it shows bytes that are changing, perhaps.
    pub(super) fn mapped(&mut self, mapping: &Mapping, window: &Window, observer: &dyn MemoryObserver) {
        if self.by_number.is_empty() || mapping.prot & EXEC == 0 {
            return;
        }
        for change in self.by_number.values_mut().filter(|change| mapping.file() == Some(change.file)) {
            let part = mapping.showing(&change.bytes);
            change.announced.extend(part.map(|part| observer.unseen_write(&on_host(window, &part))));
        }
    }

    /// In a fork's child: the threads whose calls these are did not come along.
    pub(super) fn forget(&mut self) {
        self.by_number.clear();
    }
}
