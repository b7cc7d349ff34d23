//! Decides when the memory of a block may be freed: once no thread can be inside the block.
//!
//! As in crossbeam-epoch, with two kinds of visitors:
//!
//! - **Participants** (vCPUs) pin themselves while they run or look up translated code. A pin
//!   may last long, so each has a hook that asks it to leave.
//! - **Walkers** (fault handlers) follow block lists for a moment, on any thread, in a signal
//!   handler. They do not register and use no thread-local; they raise a counter.
//!
//! # Definitions
//!
//! The *global epoch* `E` only grows. A participant pinned at `e` and a walker
//! that entered at `e` are *of* epoch `e`. Garbage retired while the global epoch
//! was `e` is *of* epoch `e`.
//!
//! # Invariants
//!
//! - `E` moves to `E + 1` only when no visitor of an epoch before `E` is left. So all visitors are
//!   of `E` or `E - 1`. Three counters, indexed by the epoch modulo 3, tell the walkers of these
//!   two epochs from those about to enter.
//! - Garbage was unreachable before it was retired: a visitor of a later epoch than its
//!   garbage cannot find it. It is freed once `E` is 2 further.
//!
//! A walker raises the counter of the epoch that it read, then reads the epoch again and goes back
//! if it moved. Both sides have sequentially consistent fences, so either the walker sees the new
//! epoch, or the thread that advances sees the counter.

use std::collections::VecDeque;
use std::fmt;

use smallvec::SmallVec;

use super::pins::{PinRef, Pins};
use crate::error::Error;
use crate::panics::FirstPanic;
use crate::sync::{
    Arc, AtomicU64, AtomicUsize, Mutex, MutexGuard, Ordering, Rule, fence, fence_behind_rmw, left_out, lock,
    memory_fence, try_lock, yield_now,
};

/// With this much garbage, a collection asks long pins to end.
const ASK_TO_LEAVE_ITEMS: usize = 256;

/// The capacity for garbage that is never freed.
const MIN_CAPACITY: usize = 256;

/// Any thread calls it to ask a participant to unpin soon. It is code of the embedder's, and
/// may panic.
pub(crate) type AskToLeave = Box<dyn Fn() + Send + Sync>;

pub(crate) struct Participant {
    pin: PinRef,
    ask_to_leave: AskToLeave,
    /// It left while the domain stood still. The thread that has the locks writes it.
    has_left: core::sync::atomic::AtomicBool,
}

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Participant").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// All participants, each at the index of its pin.
type Participants = Vec<Option<Arc<Participant>>>;

/// Garbage: items that are unreachable for new visitors. Its owner guards it by a lock, and files it
/// by [`Epoch::collect`].
#[derive(Debug)]
pub(crate) struct Retired<G> {
    /// The oldest is in front. An item that was added after the last collection is behind all
    /// others, and of no epoch yet.
    queue: VecDeque<(Option<u64>, G)>,
}

impl<G> Retired<G> {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new() }
    }

    /// Frees `item` once no thread can reach it. It must already be unreachable for new visitors.
    pub(crate) fn add(&mut self, item: G) {
        self.queue.push_back((None, item));
    }

    /// The new items are garbage of `epoch`.
    fn file(&mut self, epoch: u64) {
        self.queue.iter_mut().rev().take_while(|(of, _)| of.is_none()).for_each(|(of, _)| *of = Some(epoch));
    }

    /// Takes out the items that may be freed in `epoch`.
    fn take_older(&mut self, epoch: u64) -> SmallVec<[G; 4]> {
        let mut older = SmallVec::new();
        while self.queue.front().is_some_and(|(of, _)| of.is_some_and(|of| of + 2 <= epoch)) {
            older.extend(self.queue.pop_front().map(|(_, item)| item));
        }
        // One long pin must not leave a large buffer behind for ever.
        if self.queue.capacity() > 4 * self.queue.len().max(MIN_CAPACITY) {
            let places = 2 * self.queue.len().max(MIN_CAPACITY);
            self.queue.shrink_to(places);
        }
        older
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether so many items are left after a collection that long pins have to end.
    pub(crate) fn is_held_back(&self) -> bool {
        self.queue.len() >= ASK_TO_LEAVE_ITEMS
    }

    /// Hands out all: no visitor is left to reach them.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = G> {
        self.queue.drain(..).map(|(_, item)| item)
    }
}

/// An epoch domain.
#[derive(Debug)]
pub(crate) struct Epoch {
    global: AtomicU64,
    walkers: [AtomicUsize; 3],
    pins: Pins,
    participants: Mutex<Participants>,
    /// Only the thread that asks participants to leave holds this lock, and a hook runs under
    /// no other. Taken before the other locks.
    asking: Mutex<()>,
}

impl Epoch {
    pub(crate) fn new() -> Self {
        Self {
            global: AtomicU64::new(2),
            walkers: [AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0)],
            pins: Pins::new(),
            participants: Mutex::new(Vec::new()),
            asking: Mutex::new(()),
        }
    }

    /// A new participant, not pinned.
    pub(crate) fn join(&self, ask_to_leave: AskToLeave) -> Arc<Participant> {
        let mut participants = lock(&self.participants);
        let index = participants.iter().position(Option::is_none).unwrap_or(participants.len());
        let participant = Arc::new(Participant { pin: self.pins.at(index), ask_to_leave, has_left: false.into() });
        if index == participants.len() {
            participants.push(None);
        }
        participants[index] = Some(participant.clone());
        participant
    }

    /// The participant leaves. After this returns its hook is not called again.
    pub(crate) fn leave(&self, participant: &Arc<Participant>) {
        // Waits for a thread that is calling hooks.
        let _asking = lock(&self.asking);
        let mut participants = lock(&self.participants);
        if let Some(left) =
            participants.iter_mut().find(|other| other.as_ref().is_some_and(|other| Arc::ptr_eq(other, participant)))
        {
            participant.pin.clear();
            *left = None;
        }
    }

    /// As [`Epoch::leave`], for the thread that holds the guard of a fork. That thread has
    /// the locks, so the hook is not called again; the guard's end takes the participant out.
    pub(crate) fn leave_under_guard(participant: &Participant) {
        participant.has_left.store(true, core::sync::atomic::Ordering::Relaxed);
    }

    /// An item that is reachable after this call is not freed before [`Epoch::unpin`]. Pins
    /// do not nest, and stay on their thread.
    pub(crate) fn pin(&self, participant: &Participant) {
        participant.pin.set(self.global.load(Ordering::Relaxed));
    }

    pub(crate) fn unpin(&self, participant: &Participant) {
        participant.pin.clear();
    }

    /// See [`Pins::has_others`].
    pub(crate) fn has_other_pins(&self) -> bool {
        self.pins.has_others()
    }

    /// Enters as a walker. Async-signal-safe.
    pub(crate) fn walk(&self) -> Walk<'_> {
        loop {
            let epoch = self.global.load(Ordering::Acquire);
            let counter = &self.walkers[(epoch % 3) as usize];
            counter.fetch_add(1, Ordering::Relaxed);
            fence_behind_rmw(Rule::FenceBehindWalker);
            if self.global.load(Ordering::Acquire) == epoch {
                return Walk { counter };
            }
            counter.fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether a walker may be inside that began before the caller took its nodes out of the
    /// lists.
    pub(crate) fn has_walkers(&self) -> bool {
        // Pairs with the fence in `walk`: either this sees the walker's counter, or the
        // walker finds the lists as they are now.
        fence(Rule::FenceBeforeWalkers);
        self.walkers.iter().any(|counter| counter.load(Ordering::Acquire) != 0)
    }

    /// Advances if it can, and hands out the items of `retired` that no thread can reach any more.
    pub(crate) fn collect<G>(&self, retired: &mut Retired<G>) -> SmallVec<[G; 4]> {
        if retired.queue.is_empty() {
            return SmallVec::new();
        }
        let participants = lock(&self.participants);
        // Read behind a fence, as the items' epoch must be: a visitor that can find one of them has
        // an epoch that is not later.
        let (epoch, has_advanced) = self.try_advance(&participants);
        retired.file(epoch);
        if has_advanced {
            self.try_advance(&participants);
        }
        drop(participants);
        retired.take_older(self.global.load(Ordering::Acquire))
    }

    /// Asks every pinned participant to unpin, and returns when each that is pinned now has
    /// unpinned once.
    ///
    /// # Errors
    ///
    /// [`Error::BadArgument`] if the calling thread has pinned one itself: it would wait for
    /// ever.
    pub(crate) fn wait_for_pins(&self) -> Result<(), Error> {
        let is_own =
            |participant: &Arc<Participant>| participant.pin.epoch().is_some() && participant.pin.is_of_this_thread();
        if lock(&self.participants).iter().flatten().any(is_own) {
            return Err(Error::BadArgument("this thread has a vCPU pinned and would wait for itself: unpin it first"));
        }
        let start = self.global.load(Ordering::Acquire);
        loop {
            // A participant that is left two epochs on has pinned after the first epoch
            // began.
            self.try_advance(&lock(&self.participants));
            if self.global.load(Ordering::Acquire) >= start + 2 {
                return Ok(());
            }
            self.ask_all_to_leave();
            yield_now();
        }
    }

    /// Asks every participant that is pinned in an earlier epoch to unpin. If another
    /// thread is asking them now, that is enough.
    pub(crate) fn ask_all_to_leave(&self) {
        let Some(asking) = try_lock(&self.asking) else { return };
        let global = self.global.load(Ordering::Acquire);
        let is_behind = |participant: &&Arc<Participant>| participant.pin.epoch().is_some_and(|epoch| epoch != global);
        let behind: Vec<_> = lock(&self.participants).iter().flatten().filter(is_behind).cloned().collect();
        let mut panics = FirstPanic::default();
        for participant in behind {
            panics.catch(|| (participant.ask_to_leave)());
        }
        drop(asking);
        panics.resume();
    }

    /// Ends the present epoch if no visitor is left of the one before. Returns the present one, read
    /// behind a fence, and whether it ended. Under the lock of the participants: no other thread
    /// advances.
    fn try_advance(&self, participants: &Participants) -> (u64, bool) {
        fence(Rule::FenceBeforePins);
        let epoch = self.global.load(Ordering::Acquire);
        let walkers = self.walkers[((epoch + 2) % 3) as usize].load(Ordering::Acquire);
        if walkers != 0 && !left_out(Rule::WaitForWalkers) {
            return (epoch, false);
        }
        let mut pinned = participants.iter().flatten().filter_map(|participant| participant.pin.epoch());
        let behind = pinned.any(|pinned| pinned != epoch);
        if behind && !left_out(Rule::WaitForPins) {
            return (epoch, false);
        }
        // Everything that visitors did happens before the freeing that follows.
        memory_fence(Ordering::Acquire);
        self.global.store(epoch + 1, Ordering::Release);
        (epoch, true)
    }

    /// Waits until no thread is inside the domain's locks. No thread gets in until the guard
    /// is dropped.
    pub(crate) fn before_fork(&self) -> EpochForkGuard<'_> {
        let _asking = lock(&self.asking);
        EpochForkGuard { walkers: &self.walkers, _asking, participants: lock(&self.participants), left: Vec::new() }
    }
}

/// A domain that stands still over a `fork`.
pub(crate) struct EpochForkGuard<'a> {
    walkers: &'a [AtomicUsize; 3],
    _asking: MutexGuard<'a, ()>,
    participants: MutexGuard<'a, Participants>,
    /// Dropped last, under no lock of the domain: hooks are the embedder's code.
    left: Vec<Arc<Participant>>,
}

impl Drop for EpochForkGuard<'_> {
    fn drop(&mut self) {
        let has_left =
            |participant: &mut Arc<Participant>| participant.has_left.load(core::sync::atomic::Ordering::Relaxed);
        for left in self.participants.iter_mut().filter_map(|participant| participant.take_if(has_left)) {
            left.pin.clear();
            self.left.push(left);
        }
    }
}

impl EpochForkGuard<'_> {
    /// In the child only the calling thread lives. No walker exists, and no other thread is
    /// pinned; the calling thread's own pins stay.
    pub(crate) fn after_fork_child(self) {
        for counter in self.walkers {
            counter.store(0, Ordering::SeqCst);
        }
        for participant in self.participants.iter().flatten().filter(|other| !other.pin.is_of_this_thread()) {
            participant.pin.clear();
        }
    }
}

/// A walker inside.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    counter: &'a AtomicUsize,
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn domain() -> (Epoch, Retired<u32>) {
        (Epoch::new(), Retired::new())
    }

    #[test]
    fn garbage_outlives_a_pin() {
        let (epoch, mut retired) = domain();
        let vcpu = epoch.join(Box::new(|| {}));
        epoch.pin(&vcpu);
        retired.add(7);
        for _ in 0..5 {
            assert!(epoch.collect(&mut retired).is_empty());
        }
        epoch.unpin(&vcpu);
        assert_eq!(epoch.collect(&mut retired)[..], [7]);
    }

    #[test]
    fn a_long_pin_leaves_no_places_behind() {
        const ITEMS: usize = if cfg!(miri) { 6 * MIN_CAPACITY } else { 100_000 };
        let (epoch, mut retired) = domain();
        let vcpu = epoch.join(Box::new(|| {}));
        epoch.pin(&vcpu);
        (0..ITEMS as u32).for_each(|i| retired.add(i));
        assert!(retired.queue.capacity() >= ITEMS);
        epoch.unpin(&vcpu);
        assert_eq!(epoch.collect(&mut retired).len(), ITEMS);
        let places = retired.queue.capacity();
        assert!(places <= 4 * MIN_CAPACITY, "{places}");
    }

    #[test]
    fn garbage_outlives_a_walk() {
        let (epoch, mut retired) = domain();
        let walk = epoch.walk();
        retired.add(7);
        for _ in 0..5 {
            assert!(epoch.collect(&mut retired).is_empty());
        }
        drop(walk);
        assert_eq!(epoch.collect(&mut retired)[..], [7]);
    }

    #[test]
    fn a_pin_that_is_renewed_lets_garbage_go() {
        let (epoch, mut retired) = domain();
        let vcpu = epoch.join(Box::new(|| {}));
        epoch.pin(&vcpu);
        retired.add(7);
        let mut freed = Vec::new();
        for _ in 0..3 {
            epoch.unpin(&vcpu);
            epoch.pin(&vcpu);
            freed.extend(epoch.collect(&mut retired));
        }
        assert_eq!(freed, [7]);
    }

    #[test]
    fn long_pins_are_asked_to_leave_when_garbage_piles_up() {
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (epoch, mut retired) = domain();
        let hook = asked.clone();
        let vcpu = epoch.join(Box::new(move || {
            hook.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }));
        epoch.pin(&vcpu);
        for i in 0..ASK_TO_LEAVE_ITEMS as u32 {
            retired.add(i);
            epoch.collect(&mut retired);
            if retired.is_held_back() {
                epoch.ask_all_to_leave();
            }
        }
        assert!(asked.load(std::sync::atomic::Ordering::Relaxed) > 0);
    }

    #[test]
    fn a_hook_that_panics_does_not_end_the_asking() {
        use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
        use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

        let (epoch, mut retired) = domain();
        let asked = std::sync::Arc::new(AtomicUsize::new(0));
        let vcpus = [(); 3].map(|()| {
            let hook = asked.clone();
            epoch.join(Box::new(move || resume_unwind(Box::new(hook.fetch_add(1, Relaxed)))))
        });
        vcpus.iter().for_each(|vcpu| epoch.pin(vcpu));
        retired.add(7);
        epoch.collect(&mut retired);
        for round in 1..4 {
            let end = catch_unwind(AssertUnwindSafe(|| epoch.ask_all_to_leave()));
            assert_eq!(end.unwrap_err().downcast_ref(), Some(&(3 * (round - 1))), "the first one goes on");
            assert_eq!(asked.load(Relaxed), 3 * round);
        }
        // The test holds nothing that a hook or a vCPU needs.
        vcpus.iter().for_each(|vcpu| epoch.unpin(vcpu));
        vcpus.iter().for_each(|vcpu| epoch.leave(vcpu));
        assert_eq!(epoch.collect(&mut retired)[..], [7]);
        drop(epoch.before_fork());
    }

    /// The parent's other threads, which do not exist in the child, were inside.
    #[test]
    fn a_forks_child_does_not_wait() {
        let (epoch, mut retired) = domain();
        let vcpu = epoch.join(Box::new(|| {}));
        std::thread::scope(|scope| scope.spawn(|| epoch.pin(&vcpu)).join().unwrap());
        core::mem::forget(epoch.walk());
        retired.add(7);
        epoch.before_fork().after_fork_child();
        assert_eq!(epoch.collect(&mut retired)[..], [7]);
    }

    /// The forking thread exists in the child, with everything that it can reach.
    #[test]
    fn a_pin_of_the_forking_thread_outlives_the_fork() {
        let (epoch, mut retired) = domain();
        let [own, others] = [(); 2].map(|()| epoch.join(Box::new(|| {})));
        epoch.pin(&own);
        std::thread::scope(|scope| scope.spawn(|| epoch.pin(&others)).join().unwrap());
        retired.add(7);
        epoch.before_fork().after_fork_child();
        for _ in 0..5 {
            assert!(epoch.collect(&mut retired).is_empty());
        }
        epoch.unpin(&own);
        assert_eq!(epoch.collect(&mut retired)[..], [7]);
    }

    #[test]
    fn waiting_for_pins_asks_them_and_waits() {
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

        let epoch = Epoch::new();
        let asked = std::sync::Arc::new(AtomicBool::new(false));
        let hook = asked.clone();
        let vcpu = epoch.join(Box::new(move || hook.store(true, SeqCst)));
        let left = AtomicBool::new(false);
        let is_pinned = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                epoch.pin(&vcpu);
                is_pinned.store(true, SeqCst);
                while !asked.load(SeqCst) {
                    std::thread::yield_now();
                }
                left.store(true, SeqCst);
                epoch.unpin(&vcpu);
                // A participant that pins again and again does not make it wait.
                for _ in 0..1_000 {
                    epoch.pin(&vcpu);
                    epoch.unpin(&vcpu);
                }
            });
            while !is_pinned.load(SeqCst) {
                std::thread::yield_now();
            }
            epoch.wait_for_pins().unwrap();
            assert!(left.load(SeqCst));
        });
        epoch.wait_for_pins().unwrap();
    }

    #[test]
    fn a_pinned_thread_does_not_wait_for_itself() {
        let epoch = std::sync::Arc::new(Epoch::new());
        let [own, other] = [(); 2].map(|()| epoch.join(Box::new(|| {})));
        // A thread of its own, so that the test ends if it waits for ever.
        let (told, is_told) = std::sync::mpsc::channel();
        let (waiter, pinned) = (epoch.clone(), own.clone());
        std::thread::spawn(move || {
            waiter.pin(&pinned);
            let _ = told.send(waiter.wait_for_pins());
        });
        let result = is_told.recv_timeout(std::time::Duration::from_secs(60));
        assert!(matches!(result, Ok(Err(Error::BadArgument(_)))), "{result:?}");
        epoch.unpin(&own);
        epoch.wait_for_pins().unwrap();
        // A pin of another thread's vCPU is allowed.
        std::thread::scope(|scope| scope.spawn(|| epoch.pin(&other)).join().unwrap());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| epoch.wait_for_pins());
            epoch.unpin(&other);
            waiter.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_participant_that_left_holds_nothing_back() {
        let (epoch, mut retired) = domain();
        let vcpu = epoch.join(Box::new(|| {}));
        epoch.pin(&vcpu);
        retired.add(7);
        epoch.leave(&vcpu);
        assert_eq!(epoch.collect(&mut retired)[..], [7]);
    }
}
