//! Sequences of the library's calls on real memory, in a mode of the input's
//! choice, against an oracle that knows the bytes: no lookup gives a block whose
//! bytes are not memory's any more, and none loses a block whose pages nobody
//! touched.

#![no_main]

mod guest;
mod oracle;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;

use codewarden::protection::Mode;
use guest::Guest;
use oracle::{AREA_BYTES, KEYS, PAGE_BYTES};

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

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Call {
    AddRegion {
        area: u8,
    },
    RemoveRegion {
        area: u8,
    },
    DeclareAgain {
        area: u8,
    },
    /// A store of the guest's.
    Store {
        to: Spot,
        len: u8,
        value: u8,
    },
    /// A store through the host's view, which the tracker is told of.
    HostStore {
        to: Spot,
        value: u8,
    },
    /// The kernel writes for the guest; the pages are held until `Release`.
    KernelWrite {
        to: Spot,
        len: u8,
        value: u8,
    },
    Release {
        which: u8,
    },
    /// The mapping of some pages is replaced.
    Replace {
        at: Spot,
        pages: u8,
    },
    /// The contents of some pages are thrown away.
    Discard {
        at: Spot,
        pages: u8,
    },
    Sync,
    SyncRange {
        at: Spot,
        len: u8,
    },
    Invalidate {
        at: Spot,
        len: u8,
    },
    Begin {
        key: u8,
    },
    Claim {
        ticket: u8,
        from: Spot,
    },
    Commit {
        ticket: u8,
    },
    /// Begin, claim, and commit.
    Translate {
        key: u8,
        from: Spot,
    },
    Collect,
}

fn run(guest: &mut Guest, call: Call) {
    let index = |n: u8| usize::from(n % 3);
    let length = |n: u8| usize::from(n % 16) + 1;
    let key = |n: u8| usize::from(n) % KEYS;
    match call {
        Call::AddRegion { area } => guest.add_region(index(area)),
        Call::RemoveRegion { area } => guest.remove_region(index(area)),
        Call::DeclareAgain { area } => guest.declare(index(area)),
        Call::Store { to, len, value } => guest.store(to.area(), to.offset(length(len)), length(len), value),
        Call::HostStore { to, value } => guest.host_store(to.area(), to.offset(1), value),
        Call::KernelWrite { to, len, value } => {
            guest.kernel_write(to.area(), to.offset(length(len)), length(len), value);
        }
        Call::Release { which } => guest.release(index(which)),
        Call::Replace { at, pages } => guest.replace(at.area(), at.offset(1) / PAGE_BYTES, index(pages) + 1),
        Call::Discard { at, pages } => guest.discard(at.offset(1) / PAGE_BYTES, index(pages) + 1),
        Call::Sync => guest.sync(),
        Call::SyncRange { at, len } => guest.sync_range(at.area(), at.offset(length(len)), length(len)),
        Call::Invalidate { at, len } => guest.invalidate(at.area(), at.offset(length(len)), length(len)),
        Call::Begin { key: of } => guest.begin(key(of)),
        Call::Claim { ticket, from } => guest.claim(index(ticket), from.area(), from.offset(1)),
        Call::Commit { ticket } => guest.commit(index(ticket)),
        Call::Translate { key: of, from } => guest.translate(key(of), from.area(), from.offset(1)),
        Call::Collect => guest.cache.collect(),
    }
}

/// What an input says.
#[derive(Debug)]
struct Sequence {
    mode: Mode,
    calls: Vec<Call>,
}

impl<'a> Arbitrary<'a> for Sequence {
    fn arbitrary(input: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mode = *input.choose(&[Mode::Sigbus, Mode::Deferred, Mode::Mprotect])?;
        // Not as a `Vec` does it, which tosses a coin for an end after each call.
        let mut calls = Vec::new();
        while !input.is_empty() {
            calls.push(input.arbitrary()?);
        }
        Ok(Self { mode, calls })
    }
}

fuzz_target!(|sequence: Sequence| {
    let mut guest = Guest::new(sequence.mode);
    (0..3).for_each(|area| guest.add_region(area));
    for call in sequence.calls {
        run(&mut guest, call);
        guest.check();
    }
    guest.finish();
});
