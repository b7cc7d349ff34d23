//! The ranges of one mechanism, each with its place in the table of tracked ranges. Several sinks may
//! have some.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::contract::Opening;
use super::given_up::GivenUp;
use crate::addr::{HostAddr, HostRange};
use crate::error::Error;
use crate::sys::membarrier;
use crate::sys::ranges::{Delivery, FaultSink, RangeOwner};
use crate::sys::registration::Registration;

/// Takes the ranges that lie wholly in `range` out.
fn take_within(list: &mut BTreeMap<HostAddr, Attached>, range: HostRange) -> Vec<Attached> {
    let inside = within(list, range).map(|(known, _)| known).filter(|known| range.contains_range(*known));
    let starts: Vec<HostAddr> = inside.map(HostRange::start).collect();
    starts.into_iter().filter_map(|start| list.remove(&start)).collect()
}

/// Only attach and detach lock the list, never a handler: a fork's child may lack the
/// handler.
#[derive(Debug)]
pub(super) struct Attachments {
    owner: RangeOwner,
    delivery: Delivery,
    given_up: GivenUp,
    /// By the start of the range. They do not overlap.
    list: Mutex<BTreeMap<HostAddr, Attached>>,
}

#[derive(Debug)]
struct Attached {
    registration: Registration,
    /// Address of the sink.
    sink: HostAddr,
}

/// The ranges of `list` that have a part of `range`.
fn within(list: &BTreeMap<HostAddr, Attached>, range: HostRange) -> impl Iterator<Item = (HostRange, &Attached)> {
    let before = list.range(..range.end()).rev().map(|(_, known)| (known.registration.range(), known));
    before.take_while(move |(known, _)| known.intersection(range).is_some())
}

impl Attachments {
    pub(super) fn new(delivery: Delivery) -> Self {
        let (owner, given_up) = (RangeOwner::new(), GivenUp::default());
        Self { owner, delivery, given_up, list: Mutex::new(BTreeMap::new()) }
    }

    fn list(&self) -> MutexGuard<'_, BTreeMap<HostAddr, Attached>> {
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
        let to = HostAddr::of(Arc::as_ptr(sink));
        let mut list = self.list();
        let mut missing = vec![range];
        for (known, attached) in within(&list, range) {
            if attached.sink != to {
                return Err(Error::AlreadyTracked { start: range.start().0, len: range.len() });
            }
            missing = missing.into_iter().flat_map(|part| part.without(known)).flatten().collect();
        }
        // Dropped on the way out after an error.
        let mut added = Vec::with_capacity(missing.len());
        for part in missing {
            let registration = Registration::new(part, &self.owner, self.delivery, sink)?;
            added.push((part.start(), Attached { registration, sink: to }));
        }
        self.given_up.check()?;
        attach()?;
        list.extend(added);
        Ok(())
    }

    /// Runs `detach`, then gives up the ranges that lie wholly in `range`. When it returns
    /// no handler is in their sinks.
    pub(super) fn remove(&self, range: HostRange, detach: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        // Attaching and detaching take turns.
        let mut list = self.list();
        let result = detach();
        let gone = take_within(&mut list, range);
        // Their drop waits for handlers. Other ranges of the mechanism need not wait for these.
        drop(list);
        drop(gone);
        result
    }

    /// Gives up the ranges that lie wholly in `range`, as [`Attachments::remove`] does.
    pub(super) fn give_up(&self, range: HostRange) {
        let gone = take_within(&mut self.list(), range);
        drop(gone);
    }

    /// In a fork's child: see [`GivenUp::clear`].
    pub(super) fn begin_in_child(&self) -> bool {
        self.given_up.clear()
    }

    /// In a fork's child: the faults of `range`, a whole region, go to its sink here, as in the parent.
    pub(super) fn take_over(&self, range: HostRange) -> Result<(), Error> {
        let mut list = self.list();
        list.range_mut(range.start()..range.end()).try_for_each(|(_, known)| known.registration.take_over())
    }

    /// Gives up everything, calling `detach` for each range first.
    pub(super) fn clear(&self, mut detach: impl FnMut(HostRange)) {
        let list = core::mem::take(&mut *self.list());
        list.values().for_each(|known| detach(known.registration.range()));
    }

    /// An error if the mechanism was given up.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.given_up.check()
    }

    /// All ranges are about to be opened at once. Tells every sink of those outside `told` that they
    /// are stale, and makes every thread pass a barrier, if another one may be looking at a
    /// translation there. Takes no lock.
    // Even in a debug build: a signal stack is small.
    #[inline(always)]
    pub(super) fn tell_of_loss(&self, told: Option<HostRange>) -> Result<(), Error> {
        self.given_up.mark();
        let mut look = false;
        self.owner.for_each_range(|range, sink| {
            if told.is_none_or(|told| !told.contains_range(range)) {
                let _ = sink.on_lost();
                look |= sink.others_may_look();
            }
        });
        if look { membarrier::fence_threads() } else { Ok(()) }
    }

    /// After [`Attachments::tell_of_loss`]: calls `open` for each part that may be protected. Takes no
    /// lock.
    pub(super) fn open_each(&self, mut open: impl FnMut(HostRange, Opening<'_>)) {
        self.owner.for_each_range(|range, sink| {
            let opening = Opening::without_barrier(sink.on_lost());
            sink.for_each_used(range, &mut |part| open(part, opening));
        });
    }
}
