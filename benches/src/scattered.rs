//! How many scattered pages can be protected, and how many VMAs that makes.
//!
//! Every second page of a large region is protected. With userfaultfd the region stays one VMA.
//! With mprotect each page becomes a VMA, and so does the page after it, until `vm.max_map_count`
//! ends the run. At that limit no thread of the process can start, and large allocations fail. So
//! each run has a process of its own, which is this program again with other arguments.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::process::Command;
use std::time::Instant;

use codewarden::addr::{GuestAddr, HostRange, PageSize};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::BeginError;
use codewarden::{CodeCache, EntryStubs};

use crate::floor::BareProtection;
use crate::library::{add_region, check_learned, learned};
use crate::side::Who;

/// The first argument of a child process.
const CHILD: &str = "--scattered-child";

/// The cost is sampled after this many pages, then at each increase by a quarter.
const FIRST_STEP: usize = 1000;

/// The outcome of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct Scattered {
    /// Pages protected.
    pub reached: usize,
    /// The errno that ended it, 0 if all pages were protected.
    pub errno: i32,
    /// VMAs that the region consists of at the end.
    pub vmas: usize,
    /// Pages protected and nanoseconds for one page since the step before.
    pub steps: Vec<(usize, f64)>,
}

impl Scattered {
    /// Nanoseconds for one page, over all.
    pub fn mean_ns(&self) -> f64 {
        let mut before = 0;
        let mut total = 0.0;
        for &(reached, ns) in &self.steps {
            total += (reached - before) as f64 * ns;
            before = reached;
        }
        total / before.max(1) as f64
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace();
        let mut next = || numbers.next();
        let (reached, errno, vmas) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?);
        let mut steps = Vec::new();
        while let (Some(pages), Some(ns)) = (next(), next()) {
            steps.push((pages.parse().ok()?, ns.parse().ok()?));
        }
        Some(Self { reached, errno, vmas, steps })
    }
}

impl fmt::Display for Scattered {
    /// The form that `Scattered::parse` reads.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.reached, self.errno, self.vmas)?;
        self.steps.iter().try_for_each(|(pages, ns)| write!(f, " {pages} {ns:.1}"))
    }
}

/// To be called first in `main`. In a child process it does the child's work and does not
/// return.
pub fn work_if_child() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, child, who, mode, pages] = &arguments[..] else { return };
    if child != CHILD {
        return;
    }
    let who = if who == Who::Library.name() { Who::Library } else { Who::Floor };
    let mode = Mode::from_name(mode).expect("the parent names a mode");
    println!("{}", protect(who, mode, pages.parse().expect("the parent gives a number")));
    std::process::exit(0);
}

/// Protects `pages` scattered pages in a process of its own.
///
/// # Panics
///
/// If the child fails.
pub fn run(who: Who, mode: Mode, pages: usize) -> Scattered {
    let this = std::env::current_exe().expect("this program has a file");
    let child = Command::new(this).args([CHILD, who.name(), mode.name(), &pages.to_string()]).output();
    let output = child.expect("the child starts");
    assert!(output.status.success(), "{mode}: {}", String::from_utf8_lossy(&output.stderr));
    Scattered::parse(&String::from_utf8_lossy(&output.stdout)).expect("the child prints what it reached")
}

/// With userfaultfd all pages lie in one VMA; mprotect makes two of each page.
///
/// # Panics
///
/// If the count of VMAs differs.
pub fn check(mode: Mode, outcome: &Scattered, pages: usize) {
    let ends = outcome.errno != 0;
    if mode == Mode::Mprotect {
        // The last page has no writable page behind it in the region.
        assert!(outcome.vmas >= 2 * outcome.reached - 1, "{mode}: {outcome:?}");
        assert!(!ends || outcome.errno == libc::ENOMEM, "{mode}: {outcome:?}");
    } else {
        assert!(!ends && outcome.reached == pages && outcome.vmas == 1, "{mode}: {outcome:?}");
    }
}

fn protect(who: Who, mode: Mode, pages: usize) -> Scattered {
    let memory = GuestMemory::anonymous(pages * 2 * PageSize::host().bytes()).expect("address space");
    match who {
        Who::Floor => {
            let bare = BareProtection::new(mode, memory.range());
            walk(&memory, pages, |page| bare.protect(page))
        }
        Who::Library => {
            let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).expect("the stubs differ");
            let start = memory.range().start();
            add_region(&cache, GuestAddr(0), &memory, mode);
            let outcome = walk(&memory, pages, |page| {
                match cache.tracker().begin(GuestAddr((page.start().0 - start.0) as u64)) {
                    Ok(_) => Ok(()),
                    Err(BeginError::Failed(Error::System { errno, .. })) => Err(errno),
                    Err(other) => panic!("{other}"),
                }
            });
            check_protected(&cache, &memory, mode, outcome.reached);
            drop(cache);
            outcome
        }
    }
}

/// Checks that a store to each of a sample of the pages is learned of.
fn check_protected(cache: &CodeCache<()>, memory: &GuestMemory, mode: Mode, reached: usize) {
    let before = learned(cache);
    let sample = (0..reached).step_by(reached.div_ceil(100).max(1));
    let stores = sample.len() as u64;
    for page in sample {
        memory.write(page * 2 * PageSize::host().bytes(), &[1]).expect("inside the memory");
    }
    cache.tracker().sync().expect("the region can be harvested");
    check_learned(cache, before + if mode == Mode::None { 0 } else { stores });
}

fn walk(memory: &GuestMemory, pages: usize, mut protect: impl FnMut(HostRange) -> Result<(), i32>) -> Scattered {
    let page = PageSize::host();
    // Everything needed at the limit is made before the limit is reached.
    let mut maps = Maps::new(pages);
    let mut outcome = Scattered { reached: 0, errno: 0, vmas: 0, steps: Vec::with_capacity(100) };
    let mut next_step = FIRST_STEP;
    let mut since = (0, Instant::now());
    while outcome.reached < pages && outcome.errno == 0 {
        let start = memory.range().start().0 + outcome.reached * 2 * page.bytes();
        match protect(HostRange::page_of(codewarden::addr::HostAddr(start), page)) {
            Ok(()) => outcome.reached += 1,
            Err(errno) => outcome.errno = errno,
        }
        let done = outcome.reached - since.0;
        if done > 0 && (outcome.reached == next_step || outcome.errno != 0 || outcome.reached == pages) {
            next_step += next_step / 4;
            outcome.steps.push((outcome.reached, since.1.elapsed().as_nanos() as f64 / done as f64));
            since = (outcome.reached, Instant::now());
        }
    }
    outcome.vmas = maps.count(memory.range());
    outcome
}

/// `/proc/self/maps`, opened and with room for all of it.
struct Maps {
    file: File,
    text: Vec<u8>,
}

impl Maps {
    fn new(pages: usize) -> Self {
        // At the default limit there are 65,530 lines of about 50 bytes.
        let room = (pages.min(1 << 20) * 2 + 1000) * 100;
        Self { file: File::open("/proc/self/maps").expect("/proc/self/maps"), text: vec![0; room] }
    }

    /// VMAs that have a byte in `range`.
    fn count(&mut self, range: HostRange) -> usize {
        let mut filled = 0;
        while let Ok(read @ 1..) = self.file.read(&mut self.text[filled..]) {
            filled += read;
        }
        let text = std::str::from_utf8(&self.text[..filled]).unwrap_or_default();
        let bounds = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
        };
        text.lines().filter_map(bounds).filter(|&(start, end)| start < range.end().0 && range.start().0 < end).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_prints_is_read_back() {
        let sent = Scattered { reached: 30, errno: 12, vmas: 61, steps: vec![(10, 1.5), (30, 3.0)] };
        assert_eq!(Scattered::parse(&sent.to_string()), Some(sent.clone()));
        assert_eq!(sent.mean_ns(), 2.5);
        assert_eq!(Scattered::parse("30 12"), None);
    }
}
