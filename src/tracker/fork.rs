//! Keeps a tracker consistent over a `fork`.

use std::collections::BTreeMap;

use crate::addr::HostAddr;
use crate::error::Error;
use crate::page_table::Permit;
use crate::protection::{Mechanisms, Protection, name_of};
use crate::sync::Arc;
use crate::sys::errno::this_thread;
use crate::sys::fork::Fork;

use super::observer::PageData;
use super::region::{Region, Wiring};
use super::regions::Tracker;
use super::space::{Space, Standing};

/// A tracker that stands still over a `fork`: see [`Tracker::before_fork`].
#[derive(Debug)]
#[must_use = "the tracker stands still until this is dropped"]
pub struct TrackerForkGuard<'a, D: PageData> {
    standing: Standing<'a, D>,
    fork: Fork,
}

impl<D: PageData> Tracker<D> {
    /// Call it before `fork`: it waits until no thread is inside the tracker. In the parent
    /// this lasts until the guard is dropped, in the child until
    /// [`TrackerForkGuard::after_fork_child`] is called. During that time no other thread gets in,
    /// and none adds or removes a region or a code buffer of any other instance. Faults are
    /// handled.
    ///
    /// Until then, a call of this thread that would wait for itself returns
    /// [`Error::BadArgument`]. A call that has no error to return panics, and the guard stays
    /// as it was: [`Tracker::maintain`], [`Tracker::aliases`], another `before_fork`. The thread
    /// can still read numbers, and drop its objects.
    ///
    /// A child never waits for the locks of instances without a guard: it leaves those
    /// instances alone.
    ///
    /// # Panics
    ///
    /// If this thread holds a guard of the tracker, or of its cache, already.
    #[track_caller]
    pub fn before_fork(&self) -> TrackerForkGuard<'_, D> {
        // Before the static locks are taken: a panic would lose them.
        self.assert_moves();
        let (standing, fork) = Fork::around(|| self.stand_still());
        TrackerForkGuard { standing, fork }
    }

    /// Waits until no thread is inside.
    pub(crate) fn stand_still(&self) -> Standing<'_, D> {
        self.gate.stand_still()
    }
}

impl<D: PageData> TrackerForkGuard<'_, D> {
    /// In the child: all translations become unreachable, and the child's own memory is
    /// tracked from now on. The forking thread's holds ([`Held`](super::Held),
    /// [`MappingChange`](super::MappingChange)) hold here too, until they are dropped here.
    /// Holds of the parent's other threads are released.
    ///
    /// # Errors
    ///
    /// [`Error::NotInForkChild`] in the process that made the guard: nothing was changed.
    /// Otherwise the error of a region, or of a mapping in a region, that cannot be tracked here; no
    /// translation begins in it. The others are tracked.
    pub fn after_fork_child(self) -> Result<(), Error> {
        self.fork.check_child()?;
        self.standing.continue_in_child()
    }
}

impl<D: PageData> Standing<'_, D> {
    /// In a child of the process that made it: see [`TrackerForkGuard::after_fork_child`].
    pub(crate) fn continue_in_child(mut self) -> Result<(), Error> {
        self.forget_regions();
        let mut done = Ok(());
        let thread = this_thread();
        let Space { regions, mechanisms, .. } = &mut *self.space;
        let mut own = OwnMechanisms::default();
        for tracked in regions {
            // Even if it cannot be continued.
            let leave = tracked.region.lose();
            let own = own.open(&tracked.region.protection, mechanisms);
            match own.and_then(|own| tracked.region.continue_in_child(&own, leave)) {
                Ok((child, attached)) => {
                    // Its pages are open, and no translation has begun on one.
                    mechanisms.take(&child.protection);
                    child.pages.take_over_holds(&tracked.region.pages, thread);
                    tracked.region = child;
                    done = done.and(attached);
                }
                Err(error) => done = Err(error),
            }
        }
        done
    }
}

/// The mechanisms of the child, by those of the parent's that they replace.
#[derive(Default)]
struct OwnMechanisms(BTreeMap<HostAddr, Replaced>);

struct Replaced {
    /// As long as it is there no other one has its name.
    _parents: Arc<dyn Protection>,
    own: Result<Arc<dyn Protection>, Error>,
}

impl OwnMechanisms {
    /// The one that replaces `parents`, which may be one of `shared`.
    fn open(&mut self, parents: &Arc<dyn Protection>, shared: &mut Mechanisms) -> Result<Arc<dyn Protection>, Error> {
        let open = || {
            let own = parents.clone().open_in_child();
            if let Ok(own) = &own {
                shared.replace(parents, own);
            }
            Replaced { _parents: parents.clone(), own }
        };
        self.0.entry(name_of(parents)).or_insert_with(open).own.clone()
    }
}

impl<D: PageData> Region<D> {
    /// In a fork's child: returns the region that replaces this one, which is lost, with the mechanism
    /// `own`. With it comes the error of a mapping that cannot be attached here.
    fn continue_in_child(
        &self,
        own: &Arc<dyn Protection>,
        leave: Permit<'_>,
    ) -> Result<(Arc<Self>, Result<(), Error>), Error> {
        let mut child = None;
        self.protection.continue_in_child(&**own, self.host, leave, &mut || {
            let (observer, counters) = (self.observer.clone(), self.counters.clone());
            let wiring = Wiring { observer, counters, policy: self.policy.clone() };
            // The policy was asked when the region was added.
            let region = Region::new(self.options, self.page, own.clone(), self.limits, wiring)?;
            let region = region.keeping(self.memory.clone());
            Ok(child.insert(Arc::new(region)).clone())
        })?;
        let child = child.ok_or(Error::InForkChild)?;
        let attached = child.attach_again(self, leave);
        Ok((child, attached))
    }
}
