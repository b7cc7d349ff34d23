//! The costs of a region of reserved address space: how long it takes to add one, to map and to unmap in it, to
//! claim among many mappings, and to go on in a fork's child; and its memory.
//!
//! # Safety
//!
//! Mappings are made in address space that this module has reserved.
#![allow(unsafe_code)]

use std::fmt::Write;
use std::io::{Read, Write as _};
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;
use std::time::Instant;

use codewarden::addr::{GuestAddr, HostAddr, HostRange, PageSize};
use codewarden::protection::{Access, Mode, Probe};
use codewarden::tracker::{BeginError, RegionOptions};
use codewarden::{CodeCache, EntryStubs};

use crate::spread::Spread;

/// How many rounds, and how large.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    rounds: usize,
    /// Numbers of mappings to claim among.
    mappings: &'static [usize],
    /// Claims of a round.
    claims: usize,
    /// Bytes of guest memory with code on each page.
    translated: usize,
}

impl Extent {
    /// As measured, in a minute.
    pub const FULL: Self = Self { rounds: 15, mappings: &[1, 1_000, 10_000], claims: 1_000, translated: 256 << 20 };
    /// Enough to see that it runs.
    pub const QUICK: Self = Self { rounds: 1, mappings: &[1, 100], claims: 50, translated: 1 << 20 };
}

/// Sizes of reserved regions, in bytes.
const SIZES: [(&str, usize); 3] = [("1 GiB", 1 << 30), ("256 GiB", 1 << 38), ("2^46", 1 << 46)];

/// Address space without access, unmapped when it is dropped.
struct Reservation {
    range: HostRange,
}

impl Reservation {
    fn new(len: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, without users.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{len:#x} bytes: {}", std::io::Error::last_os_error());
        Self { range: HostRange::new(HostAddr::of(start), len, PageSize::host()).expect("whole pages") }
    }

    fn at(&self, offset: usize) -> *mut libc::c_void {
        self.range.start().as_ptr().wrapping_add(offset).cast()
    }

    /// Anonymous memory, a file, or (without access) the reservation itself.
    fn map(&self, offset: usize, len: usize, access: i32, file: Option<&std::fs::File>) {
        assert!(offset + len <= self.range.len());
        let kind = if file.is_some() { 0 } else { libc::MAP_ANONYMOUS | libc::MAP_NORESERVE };
        let (flags, fd) = (libc::MAP_PRIVATE | libc::MAP_FIXED | kind, file.map_or(-1, AsRawFd::as_raw_fd));
        // SAFETY: in the reservation.
        let mapped = unsafe { libc::mmap(self.at(offset), len, access, flags, fd, 0) };
        assert_eq!(mapped, self.at(offset));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and not used any more.
        assert_eq!(unsafe { libc::munmap(self.at(0), self.range.len()) }, 0);
    }
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// A cache with one reserved region, at guest address 0.
struct Space {
    cache: CodeCache<()>,
    // Dropped last.
    memory: Reservation,
}

impl Space {
    fn new(mode: Mode, len: usize) -> Self {
        let space = Self {
            cache: CodeCache::new(EntryStubs::NOT_CODE).expect("the stubs differ"),
            memory: Reservation::new(len),
        };
        space.add(mode);
        space
    }

    fn add(&self, mode: Mode) {
        let options = RegionOptions::new(GuestAddr(0), self.memory.range, mode).with_reserved(true);
        // SAFETY: the memory outlives the cache, and its mappings are declared.
        unsafe { self.cache.tracker().add_region(options) }.expect("a region");
    }

    fn map(&self, offset: usize, len: usize, file: Option<&std::fs::File>) -> bool {
        let change = self.cache.tracker().change_mapping(GuestAddr(offset as u64), len as u64).expect("tracked");
        self.memory.map(offset, len, RW, file);
        change.finish_replaced(Access::ReadWrite, None).is_ok()
    }

    fn unmap(&self, offset: usize, len: usize) {
        let change = self.cache.tracker().change_mapping(GuestAddr(offset as u64), len as u64).expect("tracked");
        self.memory.map(offset, len, libc::PROT_NONE, None);
        change.finish_unmapped().expect("the region is there");
    }
}

fn each_ns(count: usize, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_nanos() as f64 / count as f64
}

/// The medians of rounds, each with some samples.
fn medians<const N: usize>(rounds: usize, mut round: impl FnMut() -> [f64; N]) -> [Spread; N] {
    let samples: Vec<[f64; N]> = (0..rounds + 1).map(|_| round()).skip(1).collect();
    std::array::from_fn(|at| Spread::of(&samples.iter().map(|sample| sample[at]).collect::<Vec<_>>()))
}

fn modes() -> Vec<Mode> {
    let probe = Probe::of_this_process();
    Mode::ALL.into_iter().filter(|mode| *mode != Mode::None && probe.check(*mode).is_ok()).collect()
}

fn table(head: &str, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let columns = head.matches('|').count() - 1;
    let mut text = format!("{head}\n|{}\n", "---|".repeat(columns));
    for row in rows {
        writeln!(text, "| {} |", row.join(" | ")).expect("a string");
    }
    text
}

fn us(spread: &Spread) -> String {
    format!("{:.1} µs", spread.median_ns / 1000.0)
}

/// A region is added and removed, and what it takes on the way.
fn added(extent: Extent) -> String {
    let rows = modes().into_iter().flat_map(|mode| {
        SIZES.map(|(name, len)| {
            let space = Space::new(mode, len);
            let bytes = space.cache.footprint().bytes();
            let [add, remove] = medians(extent.rounds, || {
                let tracker = space.cache.tracker();
                let remove = each_ns(1, || tracker.remove_region(GuestAddr(0)).expect("it is there"));
                [each_ns(1, || space.add(mode)), remove]
            });
            vec![mode.to_string(), name.to_owned(), us(&add), us(&remove), bytes.to_string()]
        })
    });
    table("| mode | reserved | add | remove | bytes |", rows)
}

/// 16 pages are mapped, and then reserved again, with the library and without, by turns.
fn mapped(extent: Extent) -> String {
    const TIMES: usize = 100;
    let len = 16 * PageSize::host().bytes();
    let rows = modes().into_iter().map(|mode| {
        let (space, bare) = (Space::new(mode, 1 << 38), Reservation::new(1 << 38));
        let offsets = || (0..TIMES).map(|time| time * 3 * len);
        let [map, unmap, bare_map, bare_unmap] = medians(extent.rounds, || {
            [
                each_ns(TIMES, || offsets().for_each(|at| assert!(space.map(at, len, None)))),
                each_ns(TIMES, || offsets().for_each(|at| space.unmap(at, len))),
                each_ns(TIMES, || offsets().for_each(|at| bare.map(at, len, RW, None))),
                each_ns(TIMES, || offsets().for_each(|at| bare.map(at, len, libc::PROT_NONE, None))),
            ]
        });
        vec![mode.to_string(), us(&map), us(&bare_map), us(&unmap), us(&bare_unmap)]
    });
    table("| mode | map | bare mmap | unmap | bare mmap, PROT_NONE |", rows)
}

/// Pages are claimed among so many mappings: for the first time, again, and in a hole between.
fn claimed(extent: Extent) -> String {
    let page = PageSize::host().bytes();
    let mut rows = Vec::new();
    for mode in modes() {
        for &count in extent.mappings {
            let space = Space::new(mode, 1 << 38);
            // Each mapping has the pages of its share of the claims, every second one of which is claimed.
            let share = extent.claims.div_ceil(count);
            let (len, stride) = (2 * share * page, 4 * share * page);
            for mapping in 0..count {
                assert!(space.map(mapping * stride, len, None));
            }
            let used = extent.claims.div_ceil(share);
            let step = count / used;
            let claims: Vec<u64> = (0..used)
                .flat_map(|at| (0..share).map(move |page_at| (at * step * stride + 2 * page_at * page) as u64))
                .collect();
            let tracker = space.cache.tracker();
            let begin = |at: &u64| _ = tracker.begin(GuestAddr(*at)).expect("nobody writes");
            let [first, again, hole] = medians(extent.rounds, || {
                let first = each_ns(claims.len(), || claims.iter().for_each(begin));
                let again = each_ns(claims.len(), || claims.iter().for_each(begin));
                let hole = each_ns(claims.len(), || {
                    for at in &claims {
                        let refused = tracker.begin(GuestAddr(at - at % stride as u64 + len as u64)).map(drop);
                        assert_eq!(refused, Err(BeginError::Untrackable));
                    }
                });
                drop(tracker.change_mapping(GuestAddr(0), (count * stride) as u64).expect("tracked"));
                [first, again, hole]
            });
            let ns = |spread: &Spread| format!("{:.0} ns", spread.median_ns);
            rows.push(vec![mode.to_string(), count.to_string(), ns(&first), ns(&again), ns(&hole)]);
        }
    }
    table("| mode | mappings | claim | claim again | untrackable |", rows)
}

/// A fork's child goes on, with 100 mappings, and with as many files between them.
fn forked(extent: Extent) -> String {
    const MAPPINGS: usize = 100;
    let page = PageSize::host().bytes();
    let path = std::env::temp_dir().join(format!("codewarden-bench-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).expect("a file");
    std::fs::remove_file(&path).expect("it is there");
    file.set_len(page as u64).expect("a page");
    let rows = modes().into_iter().map(|mode| {
        let [without, with] = [false, true].map(|has_files| {
            let space = Space::new(mode, 1 << 38);
            for mapping in 0..MAPPINGS {
                assert!(space.map(4 * mapping * page, page, None));
                if has_files {
                    space.map((4 * mapping + 1) * page, page, Some(&file));
                }
            }
            let [spread] = medians(extent.rounds, || [in_a_child(&space)]);
            us(&spread)
        });
        vec![mode.to_string(), without, with]
    });
    table("| mode | 100 mappings | and 100 of a file |", rows)
}

/// Nanoseconds of `after_fork_child`, in a child.
fn in_a_child(space: &Space) -> f64 {
    let mut ends = [0; 2];
    // SAFETY: writes two numbers.
    assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0);
    // SAFETY: two new descriptors.
    let [mut from, mut into] = ends.map(|end| unsafe { std::fs::File::from_raw_fd(end) });
    let guard = space.cache.before_fork();
    // SAFETY: this process has no thread but those of the library, which the guard is for.
    match unsafe { libc::fork() } {
        0 => {
            let ns = each_ns(1, || guard.after_fork_child().expect("all of it can be tracked"));
            into.write_all(&ns.to_ne_bytes()).expect("a pipe");
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        child => {
            drop((guard, into));
            let mut ns = [0; 8];
            from.read_exact(&mut ns).expect("the child has written it");
            // SAFETY: our own child.
            assert_eq!(unsafe { libc::waitpid(child, ptr::null_mut(), 0) }, child);
            f64::from_ne_bytes(ns)
        }
    }
}

/// Memory for a reserved GiB, and for a GiB with a claim on each page.
fn memory(extent: Extent) -> String {
    const GIB: f64 = (1 << 30) as f64;
    let page = PageSize::host().bytes();
    let rows = modes().into_iter().map(|mode| {
        let bytes = |len: usize| {
            let space = Space::new(mode, len);
            space.cache.footprint().bytes() as f64
        };
        let [small, huge] = [bytes(1 << 30), bytes(1 << 46)];
        let space = Space::new(mode, 1 << 38);
        assert!(space.map(0, extent.translated, None));
        let before = space.cache.footprint().bytes() as f64;
        for at in (0..extent.translated).step_by(page) {
            space.cache.tracker().begin(GuestAddr(at as u64)).expect("nobody writes");
        }
        let per_gib = (space.cache.footprint().bytes() as f64 - before) * GIB / extent.translated as f64;
        vec![
            mode.to_string(),
            format!("{small:.0} B"),
            format!("{huge:.0} B"),
            format!("{:.1} MiB", per_gib / (1 << 20) as f64),
        ]
    });
    table("| mode | 1 GiB reserved | 2^46 reserved | a GiB with a claim on each page |", rows)
}

/// All tables.
pub fn measure(extent: Extent) -> String {
    [added(extent), mapped(extent), claimed(extent), forked(extent), memory(extent)].join("\n")
}
