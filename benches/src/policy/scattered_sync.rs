//! `sync` over scattered pages with code of which none was written, compared with one bare
//! `PAGEMAP_SCAN` from the first of them to the last.
//!
//! Each side has memory of its own with every page populated, and each calls in turn. The bare side
//! has protected all of its pages. The library calls [`WARM_UP`] times before it is measured,
//! because it learns from its calls how to ask.

use std::time::Instant;

use codewarden::protection::Mode;

use super::side::Side;
use super::sync::Bare;
use super::translator::Machine;
use crate::spread::Spread;

/// The pages of the memory: 1 GiB, if a page has 4 KiB.
pub const PAGES: usize = 1 << 18;
/// So many of them have code, at equal distances.
pub const WITH_CODE: [usize; 3] = [100, 1_000, 10_000];
/// The same, as a check.
const OF_A_CHECK: (usize, [usize; 1]) = (1 << 12, [100]);

/// Calls before the first round.
pub const WARM_UP: usize = 64;

/// A row.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Pages with code.
    pub with_code: usize,
    /// Nanoseconds of each `sync_range` of all pages.
    pub library_ns: Vec<f64>,
    /// Nanoseconds of each bare call.
    pub bare_ns: Vec<f64>,
    /// System calls of a `sync`.
    pub calls: f64,
}

impl Measured {
    /// `sync` by the bare call.
    pub fn ratio(&self) -> f64 {
        Spread::of(&self.library_ns).median_ns / Spread::of(&self.bare_ns).median_ns
    }
}

fn measure(pages: usize, with_code: usize, rounds: usize) -> Measured {
    let machine = Machine::new(Side::Adaptive(Mode::Deferred), pages);
    let bare = Bare::new(pages);
    let mut cpu = machine.cpu();
    let page_of = |index: usize| pages * index / with_code;
    for index in 0..with_code {
        cpu.run(page_of(index) * machine.page_bytes());
    }
    let sync = || machine.announce(0..pages, std::iter::empty());
    let scan = || assert_eq!(bare.harvest(0, page_of(with_code - 1) + 1), 0, "pages that the ioctl found");
    let time = |call: &dyn Fn()| {
        let start = Instant::now();
        call();
        start.elapsed().as_nanos() as f64
    };
    (0..WARM_UP).for_each(|_| sync());
    let harvests = machine.stats().harvests;
    let (mut library_ns, mut bare_ns) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        if round % 2 == 0 {
            library_ns.push(time(&sync));
            bare_ns.push(time(&scan));
        } else {
            bare_ns.push(time(&scan));
            library_ns.push(time(&sync));
        }
    }
    let stats = machine.stats();
    assert_eq!(stats.pages_harvested, 0, "pages that sync found written");
    Measured { with_code, library_ns, bare_ns, calls: (stats.harvests - harvests) as f64 / rounds as f64 }
}

/// The rows, if there is a deferred mode.
pub fn all(modes: &[Mode], rounds: usize, is_check: bool) -> Vec<Measured> {
    if !modes.contains(&Mode::Deferred) {
        return Vec::new();
    }
    let (pages, with_code) = if is_check { (OF_A_CHECK.0, &OF_A_CHECK.1[..]) } else { (PAGES, &WITH_CODE[..]) };
    let measure = |&with_code: &usize| {
        eprintln!("sync, {with_code} scattered pages");
        measure(pages, with_code, rounds)
    };
    with_code.iter().map(measure).collect()
}
