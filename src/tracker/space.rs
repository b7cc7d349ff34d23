//! The tracker's regions and views of guest memory, and the lock around them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::addr::{GuestAddr, HostAddr, HostRange, Span};
use crate::error::Error;
use crate::page_table::Hold;
use crate::protection::Mechanisms;
use crate::sync::{
    Arc, AtomicBool, Mutex, Ordering, RwLock, RwLockReadGuard, RwLockWriteGuard, lock, read, write, yield_now,
};
use crate::sys::errno::this_thread;
use crate::sys::fork::{Keeper, Keeping};

use super::observer::PageData;
use super::region::Region;
use super::views::{SharedMemory, Views};

/// The lock of a tracker's space. It is also the gate of a fork: a thread that takes
/// another lock of the tracker or of a mechanism holds this one for reading. A handle: clones
/// share the lock.
pub(super) struct Gate<D: PageData>(Arc<Shared<D>>);

/// One allocation, because every claim looks at most of it.
struct Shared<D: PageData> {
    /// The thread that holds the fork guard.
    keeper: Keeper,
    /// Whether a view was ever declared. If a translator does not see it set, it claimed
    /// its page before that view's declaration ended the claim.
    has_views: AtomicBool,
    space: RwLock<Space<D>>,
    meanwhile: Mutex<Meanwhile<D>>,
}

/// The state that the thread with the fork guard can use meanwhile.
#[derive(Debug)]
struct Meanwhile<D: PageData> {
    /// The regions that it may look at, in the order of the space.
    regions: Vec<Arc<Region<D>>>,
    /// The holds that it released.
    released: Vec<(RegionId, Hold)>,
    /// The movers ([`Space`]) of the moves that it ended.
    moved: Vec<u64>,
}

/// A region from the call that adds it to the call that removes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RegionId {
    /// Its first address, which leads to it.
    guest: GuestAddr,
    /// No other region of the tracker has this number.
    number: u64,
}

/// A region that is tracked.
#[derive(Debug)]
pub(super) struct Tracked<D: PageData> {
    pub(super) id: RegionId,
    pub(super) region: Arc<Region<D>>,
}

/// The tracker's regions and views of guest memory.
#[derive(Debug)]
pub(super) struct Space<D: PageData> {
    /// In the order of their guest ranges, which do not overlap.
    pub(super) regions: Vec<Tracked<D>>,
    pub(super) views: Views,
    pub(super) mechanisms: Mechanisms,
    /// The threads with a mapping that is being moved, once for each.
    movers: Vec<u64>,
    /// The end of each region's host range, by its start.
    hosts: BTreeMap<HostAddr, HostAddr>,
    next_number: u64,
}

impl<D: PageData> Default for Space<D> {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            views: Views::default(),
            mechanisms: Mechanisms::default(),
            movers: Vec::new(),
            hosts: BTreeMap::new(),
            next_number: 0,
        }
    }
}

impl<D: PageData> Default for Gate<D> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            keeper: Keeper::default(),
            has_views: AtomicBool::new(false),
            space: RwLock::new(Space::default()),
            meanwhile: Mutex::new(Meanwhile { regions: Vec::new(), released: Vec::new(), moved: Vec::new() }),
        }))
    }
}

impl<D: PageData> Clone for Gate<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: PageData> fmt::Debug for Gate<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl<D: PageData> Gate<D> {
    /// Whether both are handles of one lock.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the calling thread holds the fork guard: it would wait for itself here.
    pub(super) fn stands_still_here(&self) -> bool {
        self.0.keeper.is_this_thread()
    }

    /// Returns an error if the calling thread would wait for itself for ever.
    pub(super) fn check_moves(&self) -> Result<(), Error> {
        self.0.keeper.check()
    }

    /// Panics if the calling thread would wait for itself for ever.
    #[track_caller]
    pub(super) fn assert_moves(&self) {
        self.0.keeper.assert();
    }

    /// Lets no thread in until the result is dropped. Waits until no other thread is moving a mapping: a fork's
    /// child would not know where the mapping is.
    pub(super) fn stand_still(&self) -> Standing<'_, D> {
        let this = this_thread();
        let space = loop {
            let space = self.write();
            if space.movers.iter().all(|&mover| mover == this) {
                break space;
            }
            drop(space);
            // A move is about one system call long.
            yield_now();
        };
        lock(&self.0.meanwhile).regions = space.regions.iter().map(|tracked| tracked.region.clone()).collect();
        Standing { _keeping: self.0.keeper.begin(), space, gate: self }
    }

    /// [`Gate::read`] for a call that can return an error.
    #[inline]
    pub(super) fn enter(&self) -> Result<RwLockReadGuard<'_, Space<D>>, Error> {
        self.check_moves()?;
        Ok(read(&self.0.space))
    }

    #[track_caller]
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Space<D>> {
        self.assert_moves();
        read(&self.0.space)
    }

    #[track_caller]
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Space<D>> {
        self.assert_moves();
        write(&self.0.space)
    }

    /// Ends holds. Under the guard of a fork they end with it.
    pub(super) fn release(&self, holds: impl Iterator<Item = (RegionId, Hold)>) {
        if self.stands_still_here() {
            lock(&self.0.meanwhile).released.extend(holds);
        } else {
            self.read().release(holds);
        }
    }

    /// This thread moves a mapping, until [`Gate::end_move`] gets the result.
    pub(super) fn begin_move(&self) -> Result<u64, Error> {
        self.check_moves()?;
        let mover = this_thread();
        self.write().movers.push(mover);
        Ok(mover)
    }

    /// A move by the thread `mover` is over. Under the guard of a fork it ends with that.
    pub(super) fn end_move(&self, mover: u64) {
        if self.stands_still_here() {
            lock(&self.0.meanwhile).moved.push(mover);
        } else {
            self.write().end_move(mover);
        }
    }

    /// The region that holds `guest`, even under the guard of a fork.
    pub(super) fn region_at(&self, guest: GuestAddr) -> Option<Arc<Region<D>>> {
        if !self.stands_still_here() {
            return self.read().at(guest).ok().map(|tracked| tracked.region.clone());
        }
        let regions = &lock(&self.0.meanwhile).regions;
        let behind = regions.partition_point(|region| region.guest <= guest);
        regions[..behind].last().filter(|region| region.contains(guest)).cloned()
    }

    /// Looks at every region, even under the guard of a fork.
    pub(super) fn for_each_region(&self, mut look: impl FnMut(&Arc<Region<D>>)) {
        if self.stands_still_here() {
            lock(&self.0.meanwhile).regions.iter().for_each(&mut look);
        } else {
            self.read().regions.iter().for_each(|tracked| look(&tracked.region));
        }
    }

    /// Takes every region out of the tracker, and the mechanisms that they share. A thread that
    /// forgot its guard never gives the lock back, and can still end its tracker.
    pub(super) fn take_regions(&self) -> (Vec<Arc<Region<D>>>, Mechanisms) {
        if self.stands_still_here() {
            (core::mem::take(&mut lock(&self.0.meanwhile).regions), Mechanisms::default())
        } else {
            let space = &mut *self.write();
            space.hosts.clear();
            let regions = space.regions.drain(..).map(|tracked| tracked.region).collect();
            (regions, core::mem::take(&mut space.mechanisms))
        }
    }

    /// The other pages that show the bytes of `page`. The caller has claimed `page`
    /// already.
    #[track_caller]
    pub(super) fn aliases(&self, page: Span) -> Vec<GuestAddr> {
        self.assert_moves();
        if !self.0.has_views.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.read().views.aliases(page)
    }

    /// Records a view, then ends claims that were made without it. An error as of [`Views::insert`].
    pub(super) fn declare(&self, space: &mut Space<D>, at: Span, memory: SharedMemory) -> Result<(), Error> {
        self.0.has_views.store(true, Ordering::Release);
        space.declare(at, memory)
    }
}

/// A tracker's space that stands still over a fork: no other thread is inside.
#[derive(Debug)]
pub(crate) struct Standing<'a, D: PageData> {
    _keeping: Keeping<'a>,
    pub(super) space: RwLockWriteGuard<'a, Space<D>>,
    gate: &'a Gate<D>,
}

impl<D: PageData> Drop for Standing<'_, D> {
    fn drop(&mut self) {
        let meanwhile = &mut *lock(&self.gate.0.meanwhile);
        self.space.release(meanwhile.released.drain(..));
        meanwhile.moved.drain(..).for_each(|mover| self.space.end_move(mover));
        meanwhile.regions.clear();
    }
}

impl<D: PageData> Space<D> {
    /// Tracks `region` from now on.
    pub(super) fn add(&mut self, region: Arc<Region<D>>) {
        let id = RegionId { guest: region.guest, number: self.next_number };
        self.next_number += 1;
        self.hosts.insert(region.host.start(), region.host.end());
        let at = self.behind(region.guest);
        self.regions.insert(at, Tracked { id, region });
    }

    /// Takes the region that starts at `guest` out.
    pub(super) fn remove(&mut self, guest: GuestAddr) -> Option<Arc<Region<D>>> {
        let at = self.behind(guest).checked_sub(1).filter(|&at| self.regions[at].region.guest == guest)?;
        let region = self.regions.remove(at).region;
        self.hosts.remove(&region.host.start());
        Some(region)
    }

    /// Whether a region has a byte of `host`.
    pub(super) fn has_host(&self, host: HostRange) -> bool {
        self.hosts.range(..host.end()).next_back().is_some_and(|(_, &end)| end > host.start())
    }

    /// The number of the first region that starts behind `guest`.
    fn behind(&self, guest: GuestAddr) -> usize {
        self.regions.partition_point(|tracked| tracked.region.guest <= guest)
    }

    /// The region that holds `guest`.
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`] if none does.
    #[inline]
    pub(super) fn at(&self, guest: GuestAddr) -> Result<&Tracked<D>, Error> {
        let found = self.regions[..self.behind(guest)].last();
        found.filter(|tracked| tracked.region.contains(guest)).ok_or(Error::NotTracked { start: guest.0, len: 1 })
    }

    /// The region `id`, unless it was removed.
    pub(super) fn get(&self, id: RegionId) -> Option<&Tracked<D>> {
        self.regions[..self.behind(id.guest)].last().filter(|tracked| tracked.id == id)
    }

    /// Ends holds, of regions that were not removed.
    fn release(&self, holds: impl Iterator<Item = (RegionId, Hold)>) {
        for (id, hold) in holds {
            if let Some(tracked) = self.get(id) {
                tracked.region.pages.release(hold);
            }
        }
    }

    /// Every region that has bytes in `span`, with the pages that hold them, in their order.
    pub(super) fn within(&self, span: Span) -> impl Iterator<Item = (&Tracked<D>, Range<usize>)> {
        // The region that starts before the span may reach into it.
        let first = self.behind(GuestAddr(span.first())).saturating_sub(1);
        let until = self.behind(GuestAddr(span.last()));
        let near = self.regions[first.min(until)..until].iter();
        near.filter_map(move |tracked| Some((tracked, tracked.region.pages_within(span)?)))
    }

    /// As [`Space::within`].
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`] if no region has a byte of it.
    pub(super) fn tracked(&self, span: Span) -> Result<impl Iterator<Item = (&Tracked<D>, Range<usize>)>, Error> {
        let mut found = self.within(span).peekable();
        if found.peek().is_none() {
            return Err(not_tracked(span));
        }
        Ok(found)
    }

    fn end_move(&mut self, mover: u64) {
        let at = self.movers.iter().position(|&other| other == mover);
        at.map(|at| self.movers.swap_remove(at));
    }

    /// Whether every byte of `span` lies in a region.
    ///
    /// # Errors
    ///
    /// [`Error::NotTracked`] if one does not.
    pub(super) fn tracks_all(&self, span: Span) -> Result<(), Error> {
        let mut left = Some(span);
        for (tracked, _) in self.within(span) {
            let Some(part) = left else { break };
            let [below, above] = part.without(tracked.region.span());
            if below.is_some() {
                break;
            }
            left = above;
        }
        match left {
            None => Ok(()),
            Some(_) => Err(not_tracked(span)),
        }
    }

    /// Earlier translations of `at` did not know of its other views, nor those of the
    /// other views of `at`.
    fn declare(&mut self, at: Span, memory: SharedMemory) -> Result<(), Error> {
        self.views.insert(at, memory)?;
        for span in self.views.others(at).into_iter().chain([at]) {
            self.within(span).for_each(|(tracked, pages)| tracked.region.invalidate(pages));
        }
        Ok(())
    }
}

pub(super) fn not_tracked(span: Span) -> Error {
    Error::NotTracked { start: span.first(), len: span.len_bytes() }
}

/// Calls `each` for every region, even after one failed, and returns the first error.
pub(super) fn for_all<'a, D: PageData>(
    found: impl Iterator<Item = (&'a Tracked<D>, Range<usize>)>,
    mut each: impl FnMut(&Tracked<D>, Range<usize>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut done = Ok(());
    for (tracked, pages) in found {
        done = done.and(each(tracked, pages));
    }
    done
}
