//! The calls that a first embedding needs, none of them unsafe: memory that the library makes,
//! bytes read through a ticket, code emitted in one call, one error to match on.

#[path = "support/modes.rs"]
mod modes;

use std::sync::Arc;

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::code_buffer::{Allocation, CodeBuffer};
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::tracker::{BeginError, Generations, Tracker};
use codewarden::{Busy, CodeCache, CommitError, EntryStubs, Key, TranslateError};

const GUEST: u64 = 0x10_0000;

struct Guest {
    cache: CodeCache<Allocation>,
    memory: Arc<GuestMemory>,
    code: CodeBuffer,
    mode: Mode,
}

impl Guest {
    fn new(mode: Mode) -> Self {
        let memory = Arc::new(GuestMemory::anonymous(4 * page()).unwrap());
        let cache = CodeCache::new(EntryStubs::NOT_CODE).unwrap();
        cache.add_memory(GuestAddr(GUEST), memory.clone(), mode).unwrap();
        Self { cache, memory, code: CodeBuffer::new(1 << 20).unwrap(), mode }
    }

    fn translate(&self, pc: u64, len: usize) -> Result<Vec<u8>, TranslateError> {
        let mut ticket = self.cache.begin(Key::new(pc));
        let mut bytes = vec![0; len];
        ticket.read(GuestAddr(pc), &mut bytes)?;
        let code = self.code.emit(&bytes)?;
        ticket.commit(code.entry(0)?, code)?;
        Ok(bytes)
    }

    fn store(&self, guest: u64, value: u8) {
        self.memory.write((guest - GUEST) as usize, &[value]).unwrap();
        if self.mode == Mode::Deferred {
            self.cache.tracker().sync().unwrap();
        }
    }

    fn lookup(&self, pc: u64) -> Option<usize> {
        self.cache.attach_vcpu().pin().lookup(Key::new(pc))
    }
}

fn page() -> usize {
    PageSize::host().bytes()
}

/// The bytes read are the guest's, on one page and over three.
#[test]
fn a_ticket_reads_and_its_block_dies_of_a_store_to_any_byte() {
    for mode in modes::tracking_modes() {
        let guest = Guest::new(mode);
        for (at, value) in (0..4 * page()).zip((0..251).cycle()) {
            guest.memory.write(at, &[value]).unwrap();
        }
        let from = GUEST + page() as u64 - 7;
        for len in [1, 4, 7, 8, 300, page() + 40] {
            for written in [0, len / 2, len - 1] {
                // In thread mode the store may go on a moment before the page can be claimed.
                let bytes = loop {
                    match guest.translate(from, len) {
                        Err(TranslateError::Interpret) => std::thread::yield_now(),
                        bytes => break bytes.unwrap(),
                    }
                };
                let mut expected = vec![0; len];
                guest.memory.read((from - GUEST) as usize, &mut expected).unwrap();
                assert_eq!(bytes, expected, "{mode}, {len} bytes");
                assert!(guest.lookup(from).is_some());
                guest.store(from + written as u64, bytes[written] ^ 0xff);
                assert_eq!(guest.lookup(from), None, "{mode}: byte {written} of {len}");
            }
        }
    }
}

/// A retained block is found by the bytes that a ticket read.
#[test]
fn the_bytes_that_were_read_are_the_source() {
    for mode in modes::tracking_modes() {
        let guest = Guest::new(mode);
        let pc = GUEST + 16;
        guest.translate(pc, 8).unwrap();
        guest.store(pc, 1);
        guest.store(pc, 0);
        let revived = std::iter::repeat_with(|| {
            let mut ticket = guest.cache.begin(Key::new(pc));
            ticket.read(GuestAddr(pc), &mut [0; 8])?;
            Ok::<_, TranslateError>(ticket.revive()?.is_none())
        });
        let revived = revived.into_iter().find(|revived| *revived != Err(TranslateError::Interpret));
        assert_eq!(revived, Some(Ok(true)), "{mode}");
        assert!(guest.lookup(pc).is_some());
    }
}

#[test]
fn what_cannot_be_read_is_said() {
    let guest = Guest::new(Mode::None);
    let failed = |at: u64, len| guest.translate(at, len).unwrap_err();
    assert!(matches!(failed(GUEST - 4, 8), TranslateError::Failed(Error::NotTracked { .. })));
    assert!(matches!(failed(GUEST + 4 * page() as u64 - 4, 8), TranslateError::Failed(Error::NotTracked { .. })));
    assert!(matches!(failed(u64::MAX - 3, 8), TranslateError::Failed(Error::BadRange { .. })));
    // No bytes are read, so nothing is claimed.
    assert!(matches!(failed(GUEST, 0), TranslateError::Failed(Error::BadArgument(_))));
}

/// A ticket that outlives its region reads nothing of it.
#[test]
fn a_region_that_went_is_not_read() {
    for mode in modes::tracking_modes() {
        let guest = Guest::new(mode);
        let mut ticket = guest.cache.begin(Key::new(GUEST));
        ticket.read(GuestAddr(GUEST), &mut [0; 4]).unwrap();
        guest.cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
        let gone = ticket.read(GuestAddr(GUEST + 8), &mut [0; 4]);
        assert!(matches!(gone, Err(TranslateError::Failed(Error::NotTracked { .. }))), "{mode}: {gone:?}");
        // Nor of the region that came in its place, for which the claim was not made.
        let other = Arc::new(GuestMemory::anonymous(4 * page()).unwrap());
        guest.cache.add_memory(GuestAddr(GUEST), other, mode).unwrap();
        assert!(ticket.read(GuestAddr(GUEST + 8), &mut [0; 4]).is_err(), "{mode}");
    }
}

/// The tracker keeps the memory as long as it needs it, and no longer.
#[test]
fn memory_lives_as_long_as_its_region() {
    for mode in modes::tracking_modes() {
        let Guest { cache, memory, .. } = Guest::new(mode);
        let weak = Arc::downgrade(&memory);
        drop(memory);
        assert!(weak.upgrade().is_some(), "{mode}");
        cache.tracker().remove_region(GuestAddr(GUEST)).unwrap();
        assert!(weak.upgrade().is_none(), "{mode}");
    }
}

#[test]
fn an_allocation_counts_by_itself() {
    let guest = Guest::new(Mode::None);
    guest.translate(GUEST, 40).unwrap();
    assert_eq!(guest.cache.footprint().live.payload_bytes, 40);
}

/// A translation is begun on one thread, and compiled and committed on another.
#[test]
fn a_ticket_goes_to_another_thread() {
    for mode in modes::tracking_modes() {
        let guest = Guest::new(mode);
        let mut ticket = guest.cache.begin(Key::new(GUEST));
        let mut bytes = [0; 16];
        ticket.read(GuestAddr(GUEST), &mut bytes).unwrap();
        let code = guest.code.clone();
        let compiler = std::thread::spawn(move || {
            let code = code.emit(&bytes)?;
            Ok::<_, TranslateError>(ticket.commit(code.entry(0)?, code)?)
        });
        assert_eq!(compiler.join().unwrap(), Ok(()));
        assert!(guest.lookup(GUEST).is_some());
    }
}

#[test]
fn each_error_says_whether_to_interpret() {
    let interpret = [
        TranslateError::from(CommitError::Written),
        CommitError::NeedsCheck.into(),
        BeginError::Busy(Busy::Protecting).into(),
    ];
    assert!(interpret.iter().all(|error| *error == TranslateError::Interpret), "{interpret:?}");
    for failed in [CommitError::NotClaimed, CommitError::NoPages, CommitError::BadEntry, CommitError::UnderForkGuard] {
        let text = failed.to_string();
        assert_eq!(TranslateError::from(failed).to_string(), text);
    }
}

/// The ready-made observer: a number for each page, which a store changes.
#[test]
fn a_generation_moves_before_the_store_retires() {
    for mode in modes::tracking_modes() {
        let memory = Arc::new(GuestMemory::anonymous(4 * page()).unwrap());
        let tracker = Tracker::new(Generations::observer());
        tracker.add_memory(GuestAddr(GUEST), memory.clone(), mode).unwrap();
        assert!(tracker.data(GuestAddr(GUEST)).is_none(), "nothing was translated there");
        let claim = tracker.begin(GuestAddr(GUEST)).unwrap();
        let made_at = claim.data().get();
        assert!(claim.is_current());
        let page = tracker.data(GuestAddr(GUEST + 5)).unwrap();
        assert_eq!(page.get(), made_at);
        memory.write(5, &[1]).unwrap();
        if mode == Mode::Deferred {
            tracker.sync().unwrap();
        }
        assert_ne!(page.get(), made_at, "{mode}");
        assert!(!claim.is_current());
    }
}
