//! Sequences of the library's calls on real memory, in a mode that the input chooses, against
//! an oracle that knows the bytes. No lookup may give a block of bytes that memory no longer
//! has. No lookup may lose a block if its pages were not touched.

#![no_main]

mod guest;
mod oracle;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

use codewarden::protection::Mode;
use guest::Guest;
use oracle::{AREA_BYTES, KEYS, PAGE_BYTES};

/// Forks of one sequence at most: each takes as long as many calls.
const MAX_FORKS: u32 = 2;

/// Calls that a fork's child makes.
const CALLS_IN_CHILD: usize = 24;

/// A place in one of the three areas, near the bounds of its pages.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Spot {
    area: u8,
    page: u8,
    byte: i8,
}

impl Spot {
    fn area(self) -> usize {
        usize::from(self.area % 3)
    }

    /// Offset in the area, `len_bytes` below its end at most.
    fn offset(self, len_bytes: usize) -> usize {
        let from_page = (usize::from(self.page) * PAGE_BYTES).wrapping_add_signed((self.byte % 8).into());
        (from_page % AREA_BYTES).min(AREA_BYTES - len_bytes)
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    AddRegion,
    RemoveRegion,
    DeclareAgain,
    /// A store of the guest's.
    Store,
    /// A store through the host's view, which is announced to the tracker.
    HostStore,
    /// The kernel writes for the guest; the pages are held until `Release`.
    KernelWrite,
    /// The same in a way that the kernel does not report.
    UnseenWrite,
    Release,
    /// The guest may write to some pages, or only read them.
    SetAccess,
    /// A link to a key, or one less.
    Link,
    /// Some of the following calls are made in a child as well.
    Fork,
    /// The mapping of some pages is replaced.
    Replace,
    /// The contents of some pages are thrown away.
    Discard,
    Sync,
    SyncRange,
    Invalidate,
    Begin,
    Claim,
    Commit,
    Revive,
    /// Begin, claim, and revive or commit.
    Translate,
    Remove,
    Collect,
    Maintain,
    /// Sets a limit for translations.
    SetLimit,
    /// The oldest are evicted.
    Evict,
}

/// Each kind is listed in proportion to its calls. The kinds that others build on come more often.
#[rustfmt::skip]
const KINDS: &[Kind] = {
    use Kind::*;
    &[
        Translate, Translate, Translate, Translate, Translate, Translate, Store, Store, Store, Store, Store, Store,
        Sync, Sync, Sync, Begin, Claim, Claim, Claim, Commit, KernelWrite, Release, Release, SyncRange,
        AddRegion, AddRegion, RemoveRegion, DeclareAgain, HostStore, Replace, Discard, Invalidate, Collect,
        Revive, Remove, Remove, Maintain, SetLimit, Evict, UnseenWrite, SetAccess, SetAccess, Link, Link, Fork,
    ]
};

impl<'a> Arbitrary<'a> for Kind {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        input.choose(KINDS).copied()
    }
}

/// Every call takes equally many bytes of the input: an input keeps its meaning if it is cut
/// or joined.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Call {
    kind: Kind,
    at: Spot,
    n: u8,
    value: u8,
}

fn run(guest: &mut Guest, call: Call) {
    let Call { kind, at, n, value } = call;
    let (area, offset) = (at.area(), at.offset(1));
    let page = offset / PAGE_BYTES;
    let (which, pages, key) = (usize::from(n % 3), usize::from(n % 3) + 1, usize::from(n) % KEYS);
    let len = usize::from(n % 16) + 1;
    let first = at.offset(len);
    match kind {
        Kind::AddRegion => guest.add_region(area),
        Kind::RemoveRegion => guest.remove_region(area),
        Kind::DeclareAgain => guest.declare(area),
        Kind::Store => guest.store(area, first, len, value),
        Kind::HostStore => guest.host_store(area, offset, value),
        Kind::KernelWrite => guest.kernel_write(area, first, len, value, false),
        Kind::UnseenWrite => guest.kernel_write(area, first, len, value, true),
        Kind::SetAccess => guest.set_access(area, page, pages, value % 4 != 0),
        Kind::Link => guest.link(key),
        Kind::Fork => {}
        Kind::Release => guest.release(which),
        Kind::Replace => guest.replace(area, page, pages),
        Kind::Discard => guest.discard(page, pages),
        Kind::Sync => guest.sync(),
        Kind::SyncRange => guest.sync_range(area, first, len),
        Kind::Invalidate => guest.invalidate(area, first, len),
        Kind::Begin => guest.begin(key),
        Kind::Claim => guest.claim(which, area, offset),
        Kind::Commit => guest.commit(which),
        Kind::Revive => guest.revive(which),
        Kind::Translate => guest.translate(key, area, offset),
        Kind::Remove => guest.remove(key),
        Kind::Collect => guest.cache.collect(),
        Kind::Maintain => guest.maintain(),
        Kind::SetLimit => guest.set_limit(usize::from(value) * 64, usize::from(n) * 64),
        Kind::Evict => guest.evict(usize::from(value)),
    }
}

/// The meaning of an input.
#[derive(Debug)]
struct Sequence {
    mode: Mode,
    /// Whether the policy has self-checking pages.
    has_checks: bool,
    calls: Vec<Call>,
}

impl<'a> Arbitrary<'a> for Sequence {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mode = *input.choose(&[Mode::Sigbus, Mode::Deferred, Mode::Mprotect, Mode::Thread])?;
        let has_checks = input.arbitrary()?;
        // A `Vec`'s own decoding would toss a coin for the end after each call.
        let mut calls = Vec::new();
        while !input.is_empty() {
            calls.push(input.arbitrary()?);
        }
        Ok(Self { mode, has_checks, calls })
    }
}

fuzz_target!(|sequence: Sequence| {
    let mut guest = Guest::new(sequence.mode, sequence.has_checks);
    (0..3).for_each(|area| guest.add_region(area));
    let mut forks = 0;
    for (index, &call) in sequence.calls.iter().enumerate() {
        if matches!(call.kind, Kind::Fork) && forks < MAX_FORKS {
            forks += 1;
            if guest.fork() {
                guest.check();
                sequence.calls[index + 1..].iter().take(CALLS_IN_CHILD).for_each(|&call| {
                    run(&mut guest, call);
                    guest.check();
                });
                guest.exit();
            }
        }
        run(&mut guest, call);
        guest.check();
    }
    guest.finish();
});
