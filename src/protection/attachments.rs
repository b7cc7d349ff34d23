//! The ranges of one mechanism, each with its place in the table of tracked ranges.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::HostRange;
use crate::error::Error;
use crate::page_table::Permit;
use crate::sys::ranges::{Delivery, FaultSink, RangeOwner};
use crate::sys::registration::Registration;

/// Only attach and detach lock the list, never a handler: a fork's child may lack the
/// handler.
#[derive(Debug)]
pub(super) struct Attachments {
    owner: RangeOwner,
    delivery: Delivery,
    list: Mutex<Vec<Registration>>,
}

impl Attachments {
    pub(super) fn new(delivery: Delivery) -> Self {
        Self { owner: RangeOwner::new(), delivery, list: Mutex::new(Vec::new()) }
    }

    fn list(&self) -> MutexGuard<'_, Vec<Registration>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The faults of `range` go to `sink`.
    pub(super) fn reserve(&self, range: HostRange, sink: &Arc<dyn FaultSink>) -> Result<(), Error> {
        self.add(range, sink, || Ok(()))
    }

    /// Runs `attach` on `range` with its faults going to `sink`. Parts that are attached
    /// already stay as they are. After an error nothing was added.
    pub(super) fn add(
        &self,
        range: HostRange,
        sink: &Arc<dyn FaultSink>,
        attach: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut list = self.list();
        let mut missing = vec![range];
        for known in list.iter() {
            missing = missing.into_iter().flat_map(|part| part.without(known.range())).flatten().collect();
        }
        // Dropped on the way out after an error.
        let mut added = Vec::with_capacity(missing.len());
        for part in missing {
            added.push(Registration::new(part, &self.owner, self.delivery, sink)?);
        }
        attach()?;
        list.append(&mut added);
        Ok(())
    }

    /// Runs `detach`, then gives up the ranges that lie wholly in `range`. When it returns
    /// no handler is in their sinks.
    pub(super) fn remove(&self, range: HostRange, detach: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let mut list = self.list();
        let result = detach();
        list.retain(|known| !range.contains_range(known.range()));
        result
    }

    /// Gives up the ranges that lie wholly in `range`, as [`Attachments::remove`] does.
    pub(super) fn give_up(&self, range: HostRange) {
        self.list().retain(|known| !range.contains_range(known.range()));
    }

    /// Gives up everything, calling `detach` for each range first.
    pub(super) fn clear(&self, mut detach: impl FnMut(HostRange)) {
        let mut list = self.list();
        list.iter().for_each(|known| detach(known.range()));
        list.clear();
    }

    /// Tells every sink that its ranges are stale, then calls `open` for each part that may be
    /// protected, with a permit to open it. Takes no lock.
    pub(super) fn lose(&self, mut open: impl FnMut(HostRange, Permit<'_>)) {
        // Every sink is told before the first `open`, and again for its own range: one
        // descriptor may open all ranges at once.
        self.owner.for_each_range(|_, sink| {
            let _ = sink.on_lost();
        });
        self.owner.for_each_range(|range, sink| {
            let leave = sink.on_lost();
            sink.for_each_used(range, &mut |part| open(part, leave));
        });
    }
}
