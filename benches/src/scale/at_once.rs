//! Runs threads at once, phase by phase.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use codewarden::lock_waits;

/// The work of one thread.
pub(super) trait Worker: Send {
    /// Before each phase; untimed.
    fn prepare(&mut self) {}

    /// One phase's work. Takes some milliseconds, so that threads that share a processor have several
    /// of its time slices.
    fn work(&mut self);
}

/// The phases of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phases {
    /// How many there were.
    pub(super) count: usize,
    /// The sum of their times: each from the first start to the last end of a measured worker.
    pub(super) time: Duration,
    /// Locks of the library that a thread found taken in a phase, the preparations left out.
    pub(super) lock_waits: u64,
}

/// Each worker on a thread of its own, again and again, for at least `time`. In a phase each of
/// `measured` does its work once, and the others theirs until the measured ones are done.
pub(super) fn run(workers: Vec<Box<dyn Worker + '_>>, measured: &Range<usize>, time: Duration) -> Phases {
    let (gate, is_over) = (&Barrier::new(workers.len()), &AtomicBool::new(false));
    let lock_waits_in_phases = &AtomicU64::new(0);
    let (left, spans) = (&AtomicUsize::new(0), &Mutex::new(Vec::new()));
    let began = Instant::now();
    std::thread::scope(|scope| {
        for (index, mut worker) in workers.into_iter().enumerate() {
            let is_measured = measured.contains(&index);
            scope.spawn(move || {
                for phase in 0.. {
                    worker.prepare();
                    if is_measured {
                        left.fetch_add(1, Ordering::SeqCst);
                    }
                    gate.wait();
                    let waits_before = lock_waits();
                    let start = Instant::now();
                    worker.work();
                    if is_measured {
                        let end = Instant::now();
                        left.fetch_sub(1, Ordering::SeqCst);
                        spans.lock().expect("no worker panicked").push((phase, start, end));
                    }
                    while !is_measured && left.load(Ordering::Relaxed) > 0 {
                        worker.work();
                    }
                    if index == 0 && began.elapsed() >= time {
                        is_over.store(true, Ordering::SeqCst);
                    }
                    gate.wait();
                    // No thread prepares the next phase before the first one has counted.
                    if index == 0 {
                        lock_waits_in_phases.fetch_add(lock_waits() - waits_before, Ordering::SeqCst);
                    }
                    gate.wait();
                    if is_over.load(Ordering::SeqCst) {
                        break;
                    }
                }
            });
        }
    });
    let spans = spans.lock().expect("no worker panicked");
    let count = 1 + spans.iter().map(|(phase, ..)| *phase).max().expect("a worker is measured");
    let of_phase = |phase: usize| {
        let of_phase = || spans.iter().filter(move |span| span.0 == phase);
        let ends = (of_phase().map(|span| span.1).min(), of_phase().map(|span| span.2).max());
        let (Some(start), Some(end)) = ends else { unreachable!("each phase has a measured worker") };
        end - start
    };
    let lock_waits = lock_waits_in_phases.load(Ordering::SeqCst);
    Phases { count, time: (0..count).map(of_phase).sum(), lock_waits }
}
