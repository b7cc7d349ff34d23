//! mmap and its kin over a real window: the guest's permissions afterwards, the contents, and the
//! calls to the observer.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use codewarden::addr::{HostAddr, HostRange};
use codewarden::protection::Access;
use demo_emulator::linux::address_space::{AddressSpace, Place, Source};
use demo_emulator::linux::errno::Errno;
use demo_emulator::linux::observer::{ByteRange, UnseenWrite, WithoutCode};
use demo_emulator::linux::vma::FileId;
use demo_emulator::linux::{Backing, MemoryObserver, NoTracking};
use demo_emulator::memory::window::{EXEC, READ, WINDOW_LEN_BYTES, WRITE};
use demo_emulator::memory::{Window, host_fault};

const PAGE: u64 = 4096;
const RW: u8 = READ | WRITE;
const STACK_BYTES: u64 = 1 << 20;

/// Acts as `NoTracking` does and records each call, in pages from the first one reported.
struct Recorder {
    base: u64,
    events: Mutex<Vec<String>>,
}

impl Recorder {
    fn note(&self, what: &str, range: HostRange) {
        let start = range.start().0 as u64 - self.base;
        self.events.lock().unwrap().push(format!("{what} {start:#x} {}", range.len() as u64 / PAGE));
    }

    fn note_bytes(&self, what: &str, range: &ByteRange) {
        let [start, end] = [range.start, range.end].map(|at| at.0 as u64 - self.base);
        self.events.lock().unwrap().push(format!("{what} {start:#x}..{end:#x}"));
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

impl MemoryObserver for Recorder {
    fn mapping_change_begin(&self, range: HostRange) {
        self.note("begin", range);
    }
    fn mapping_change_end(&self, range: HostRange, backing: Backing) {
        let what = match backing {
            Backing::Kept => "kept".to_owned(),
            Backing::Private { access } => format!("private {access:?}"),
            Backing::Shared { .. } => "shared".to_owned(),
        };
        self.note(&what, range);
    }
    fn await_harts(&self) {
        self.events.lock().unwrap().push("await".to_owned());
    }
    fn without_code(&self, range: &ByteRange) -> WithoutCode {
        self.note_bytes("without code", range);
        None
    }
    fn set_access(&self, range: HostRange, access: Access) -> Result<(), Errno> {
        self.note(&format!("{access:?}"), range);
        NoTracking.set_access(range, access)
    }
    fn kernel_write_begin(&self, _start: HostAddr, _len_bytes: usize) {}
    fn kernel_write_end(&self, _start: HostAddr, _len_bytes: usize) {}
    fn unseen_write(&self, range: &ByteRange) -> UnseenWrite {
        self.note_bytes("write", range);
        None
    }
    fn changed(&self, range: &ByteRange) {
        self.note_bytes("changed", range);
    }
    fn flush_icache(&self, _range: Option<HostRange>) {}
    fn before_fork(&self) {}
    fn after_fork_parent(&self) {}
    fn after_fork_child(&self) {}
}

fn new_space() -> (Window, Arc<Recorder>, AddressSpace) {
    host_fault::install().unwrap();
    let window = Window::reserve().unwrap();
    let recorder = Arc::new(Recorder { base: window.base() as u64, events: Mutex::default() });
    (window, recorder.clone(), AddressSpace::new(window, recorder, STACK_BYTES))
}

const AT: u64 = 0x10_0000;

#[test]
fn unmapped_memory_is_gone_and_comes_back_as_zero() {
    let (window, recorder, mut space) = new_space();
    assert_eq!(space.map(Place::Fixed(AT), 3 * PAGE, RW, Source::Anonymous), Ok(AT));
    window.store_u64(AT + PAGE, 7).unwrap();
    assert_eq!(recorder.take(), ["ReadWrite 0x100000 3"]);
    space.unmap(AT + PAGE, PAGE).unwrap();
    assert!(window.load_u64(AT + PAGE).is_err() && window.load_u64(AT + 2 * PAGE).is_ok());
    assert_eq!(window.permissions(AT + PAGE), 0);
    assert_eq!(recorder.take(), ["begin 0x101000 1", "private None 0x101000 1"]);
    space.map(Place::FixedNoReplace(AT + PAGE), PAGE, RW, Source::Anonymous).unwrap();
    assert_eq!(window.load_u64(AT + PAGE), Ok(0));
    assert_eq!(space.mappings().iter().count(), 1);
}

#[test]
fn places_are_honoured_or_found() {
    let (_, _, mut space) = new_space();
    let first = space.map(Place::Hint(0), PAGE, RW, Source::Anonymous).unwrap();
    let second = space.map(Place::Hint(0), 2 * PAGE, RW, Source::Anonymous).unwrap();
    assert_eq!(second, first - 2 * PAGE);
    assert_eq!(space.map(Place::Hint(AT + 5), PAGE, RW, Source::Anonymous), Ok(AT));
    assert_ne!(space.map(Place::Hint(AT), PAGE, RW, Source::Anonymous), Ok(AT));
    assert_eq!(space.map(Place::FixedNoReplace(AT), PAGE, RW, Source::Anonymous), Err(Errno::EEXIST));
    assert_eq!(space.map(Place::Fixed(AT + 1), PAGE, RW, Source::Anonymous), Err(Errno::EINVAL));
    assert_eq!(space.map(Place::Fixed(WINDOW_LEN_BYTES), PAGE, RW, Source::Anonymous), Err(Errno::ENOMEM));
    assert_eq!(space.map(Place::Fixed(0), PAGE, RW, Source::Anonymous), Err(Errno::EPERM));
    assert_eq!(space.map(Place::Hint(0), WINDOW_LEN_BYTES, RW, Source::Anonymous), Err(Errno::ENOMEM));
    assert_eq!(space.map(Place::Hint(0), 0, RW, Source::Anonymous), Err(Errno::EINVAL));
}

#[test]
fn losing_the_executable_bit_is_announced_and_gaining_it_is_not() {
    let (window, recorder, mut space) = new_space();
    space.map(Place::Fixed(AT), 2 * PAGE, RW, Source::Anonymous).unwrap();
    recorder.take();
    space.protect(AT, 2 * PAGE, READ | EXEC).unwrap();
    assert_eq!(recorder.take(), ["Read 0x100000 2"]);
    assert!(window.store_u8(AT, 1).is_err() && window.fetch(AT).is_ok());
    space.protect(AT + PAGE, PAGE, RW).unwrap();
    assert_eq!(recorder.take(), ["begin 0x101000 1", "await", "ReadWrite 0x101000 1", "kept 0x101000 1"]);
    assert!(window.fetch(AT + PAGE).is_err() && window.fetch(AT).is_ok());
    // Code that becomes writable counts too.
    space.protect(AT, PAGE, RW | EXEC).unwrap();
    assert_eq!(recorder.take(), ["begin 0x100000 1", "await", "ReadWrite 0x100000 1", "kept 0x100000 1"]);
    space.protect(AT, PAGE, READ | EXEC).unwrap();
    assert_eq!(recorder.take(), ["Read 0x100000 1"]);
    assert_eq!(space.protect(AT, 3 * PAGE, READ), Err(Errno::ENOMEM));
}

#[test]
fn a_file_is_copied_or_shared() {
    let (window, recorder, mut space) = new_space();
    let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(2 * PAGE).unwrap();
    let (fd, offset) = (file.as_raw_fd(), 0);
    space.map(Place::Fixed(AT), 2 * PAGE, RW, Source::FileShared { fd, offset }).unwrap();
    assert_eq!(recorder.take(), ["begin 0x100000 2", "shared 0x100000 2"]);
    window.store_u64(AT + PAGE, 0x1234).unwrap();
    let copy = space.map(Place::Hint(0), PAGE, RW, Source::File { fd, offset: PAGE }).unwrap();
    assert_eq!(window.load_u64(copy), Ok(0x1234));
    window.store_u64(copy, 1).unwrap();
    assert_eq!(window.load_u64(AT + PAGE), Ok(0x1234));
    let alias = space.map(Place::Hint(0), PAGE, RW, Source::FileShared { fd, offset: PAGE }).unwrap();
    window.store_u64(alias, 2).unwrap();
    assert_eq!(window.load_u64(AT + PAGE), Ok(2));
    recorder.take();
    space.unmap(AT, PAGE).unwrap();
    assert_eq!(recorder.take(), ["begin 0x100000 1", "private None 0x100000 1"]);
    assert!(window.load_u64(AT).is_err());
    assert_eq!(window.load_u64(AT + PAGE), Ok(2));
    let closed = Source::File { fd: -1, offset: 0 };
    assert_eq!(space.map(Place::Fixed(AT), PAGE, RW, closed), Err(Errno::EBADF));
    assert!(window.load_u64(AT).is_err() && space.mappings().is_free(AT, AT + PAGE));
}

#[test]
fn only_another_view_of_code_waits_for_the_harts() {
    let (_, recorder, mut space) = new_space();
    let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(3 * PAGE).unwrap();
    let view = |offset| Source::FileShared { fd: file.as_raw_fd(), offset: offset * PAGE };
    space.map(Place::Fixed(AT), 2 * PAGE, READ | EXEC, view(0)).unwrap();
    space.map(Place::Hint(0), PAGE, RW, view(2)).unwrap();
    space.map(Place::Hint(0), PAGE, RW, Source::AnonymousShared).unwrap();
    // The code is gone, and none is made again, from before the view exists until it is known.
    let waits_for = |code: &str| {
        let events = recorder.take();
        let at = |what: &str| events.iter().position(|event| event.starts_with(what));
        let order = [at("without code"), at("begin"), at("await"), at("shared")];
        assert!(order.is_sorted() && order[0].is_some(), "{events:?}");
        assert_eq!(events[order[0].unwrap()], format!("without code {code}"));
    };
    assert!(!recorder.take().contains(&"await".to_owned()));
    // A part of the code, whether writable or not.
    space.map(Place::Hint(0), 2 * PAGE, RW, view(1)).unwrap();
    waits_for("0x101000..0x102000");
    space.map(Place::Hint(0), PAGE, READ, view(0)).unwrap();
    waits_for("0x100000..0x101000");
    space.remap(AT, 0, 2 * PAGE, true, None).unwrap();
    waits_for("0x100000..0x102000");
    space.remap(AT, 2 * PAGE, 2 * PAGE, true, Some(AT + 16 * PAGE)).unwrap();
    assert!(recorder.take().contains(&"await".to_owned()));
    space.map(Place::Fixed(AT), PAGE, READ | EXEC, Source::Anonymous).unwrap();
    assert!(!recorder.take().contains(&"await".to_owned()), "it shows no code");
}

#[test]
fn a_forks_child_has_no_hole_and_its_marked_mappings_are_left_out() {
    let (window, _, mut space) = new_space();
    space.map(Place::Fixed(AT), 6 * PAGE, RW, Source::Anonymous).unwrap();
    let shared = space.map(Place::Hint(0), 2 * PAGE, RW, Source::AnonymousShared).unwrap();
    (0..6).for_each(|page| window.store_u64(AT + page * PAGE, 1 + page).unwrap());
    space.advise(AT + PAGE, 2 * PAGE, libc::MADV_DONTFORK).unwrap();
    space.advise(AT + 2 * PAGE, PAGE, libc::MADV_DOFORK).unwrap();
    space.advise(AT + 3 * PAGE, 2 * PAGE, libc::MADV_WIPEONFORK).unwrap();
    space.advise(AT + 4 * PAGE, PAGE, libc::MADV_KEEPONFORK).unwrap();
    space.advise(shared, PAGE, libc::MADV_DONTFORK).unwrap();
    assert_eq!(space.advise(shared, PAGE, libc::MADV_WIPEONFORK), Err(Errno::EINVAL));
    // A moved mapping keeps it; another mapping in its place does not have it.
    space.map(Place::Fixed(AT + 5 * PAGE), PAGE, RW, Source::Anonymous).unwrap();
    space.advise(AT + 5 * PAGE, PAGE, libc::MADV_DONTFORK).unwrap();
    space.map(Place::Fixed(AT + 5 * PAGE), PAGE, RW, Source::Anonymous).unwrap();
    let moved = space.remap(AT + 3 * PAGE, PAGE, 2 * PAGE, true, Some(AT + 16 * PAGE)).unwrap();
    window.store_u64(moved + PAGE, 9).unwrap();

    // The host's own fork leaves no mapping out, so no other thread can map into the gap.
    let flags = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let base = window.base() as u64;
    let of_window = flags.split("\nVmFlags:").zip(flags.split("\nVmFlags:").skip(1)).filter(|(head, _)| {
        let range = head.lines().rev().find(|line| line.split(' ').next().is_some_and(|word| word.contains('-')));
        let start = range.and_then(|range| u64::from_str_radix(range.split('-').next()?, 16).ok());
        start.is_some_and(|start| (base..base + WINDOW_LEN_BYTES).contains(&start))
    });
    for (_, flags) in of_window {
        let flags = flags.lines().next().unwrap();
        assert!(!flags.contains(" dc") && !flags.contains(" wf"), "{flags}");
    }

    space.leave_out_on_fork();
    let at = |page: u64| window.load_u64(AT + page * PAGE);
    assert!(at(1).is_err() && space.mappings().is_free(AT + PAGE, AT + 2 * PAGE));
    assert_eq!([at(0), at(2), at(4), at(5)], [Ok(1), Ok(3), Ok(5), Ok(0)]);
    assert_eq!([window.load_u64(moved), window.load_u64(moved + PAGE)], [Ok(0), Ok(0)]);
    assert!(window.load_u64(shared).is_err() && window.load_u64(shared + PAGE).is_ok());
    // A wiped range is wiped in each generation; a range that was left out may be mapped anew.
    window.store_u64(moved, 4).unwrap();
    space.map(Place::FixedNoReplace(AT + PAGE), PAGE, RW, Source::Anonymous).unwrap();
    space.leave_out_on_fork();
    assert_eq!((window.load_u64(moved), at(1)), (Ok(0), Ok(0)));
}

#[test]
fn a_mapping_grows_in_place_or_moves() {
    let (window, _, mut space) = new_space();
    space.map(Place::Fixed(AT), 2 * PAGE, RW, Source::Anonymous).unwrap();
    window.store_u64(AT + PAGE, 11).unwrap();
    assert_eq!(space.remap(AT, 2 * PAGE, 4 * PAGE, false, None), Ok(AT));
    assert_eq!(window.load_u64(AT + 3 * PAGE), Ok(0));
    space.map(Place::Fixed(AT + 4 * PAGE), PAGE, READ, Source::Anonymous).unwrap();
    assert_eq!(space.remap(AT, 4 * PAGE, 8 * PAGE, false, None), Err(Errno::ENOMEM));
    let moved = space.remap(AT, 4 * PAGE, 8 * PAGE, true, None).unwrap();
    assert_eq!((window.load_u64(moved + PAGE), window.load_u64(moved + 7 * PAGE)), (Ok(11), Ok(0)));
    assert!(window.load_u64(AT + PAGE).is_err());
    assert_eq!(space.remap(moved, 8 * PAGE, 2 * PAGE, true, Some(AT)), Ok(AT));
    assert_eq!(window.load_u64(AT + PAGE), Ok(11));
    assert_eq!(space.remap(AT, 2 * PAGE, PAGE, false, None), Ok(AT));
    assert!(window.load_u64(AT + PAGE).is_err());
    assert_eq!(space.remap(AT, 4 * PAGE, 8 * PAGE, true, None), Err(Errno::EFAULT));
}

#[test]
fn shared_memory_moves_with_its_pages() {
    let (window, recorder, mut space) = new_space();
    space.map(Place::Fixed(AT), 2 * PAGE, RW, Source::AnonymousShared).unwrap();
    window.store_u64(AT + PAGE, 5).unwrap();
    recorder.take();
    let to = AT + 16 * PAGE;
    assert_eq!(space.remap(AT, 2 * PAGE, 2 * PAGE, true, Some(to)), Ok(to));
    assert_eq!(window.load_u64(to + PAGE), Ok(5));
    assert!(window.load_u64(AT).is_err() && space.mappings().is_free(AT, AT + 2 * PAGE));
    let events = recorder.take();
    let expected = [
        // The source becomes inaccessible first, and is released last.
        &["begin 0x100000 2", "None 0x100000 2", "kept 0x100000 2"][..],
        &["begin 0x110000 2", "shared 0x110000 2"],
        &["begin 0x100000 2", "private None 0x100000 2"],
    ];
    assert_eq!(events, expected.concat());
}

#[test]
fn the_heap_grows_and_shrinks() {
    let (window, _, mut space) = new_space();
    space.set_brk_start(AT);
    assert_eq!(space.set_brk(0), AT);
    assert_eq!(space.set_brk(AT + 100), AT + 100);
    window.store_u64(AT + PAGE - 8, 3).unwrap();
    assert_eq!(space.set_brk(AT + 2 * PAGE + 1), AT + 2 * PAGE + 1);
    assert_eq!((window.load_u64(AT + PAGE - 8), window.load_u64(AT + 2 * PAGE)), (Ok(3), Ok(0)));
    assert_eq!(space.set_brk(AT + PAGE), AT + PAGE);
    assert!(window.load_u64(AT + PAGE).is_err());
    space.map(Place::Fixed(AT + 2 * PAGE), PAGE, RW, Source::Anonymous).unwrap();
    assert_eq!(space.set_brk(AT + 4 * PAGE), AT + PAGE);
}

#[test]
fn advice_that_drops_contents_is_announced() {
    let (window, recorder, mut space) = new_space();
    space.map(Place::Fixed(AT), 2 * PAGE, RW, Source::Anonymous).unwrap();
    window.store_u64(AT, 9).unwrap();
    recorder.take();
    space.advise(AT, PAGE, libc::MADV_DONTNEED).unwrap();
    assert_eq!(recorder.take(), ["begin 0x100000 1", "kept 0x100000 1"]);
    assert_eq!(window.load_u64(AT), Ok(0));
    // The same for memory that the guest locked.
    window.store_u64(AT, 9).unwrap();
    space.advise(AT, PAGE, 24).unwrap();
    assert_eq!(recorder.take(), ["begin 0x100000 1", "kept 0x100000 1"]);
    assert_eq!(window.load_u64(AT), Ok(0));
    space.advise(AT, PAGE, libc::MADV_WILLNEED).unwrap();
    assert_eq!(recorder.take(), [""; 0]);
    assert_eq!(space.advise(AT, 3 * PAGE, libc::MADV_DONTNEED), Err(Errno::ENOMEM));
    assert_eq!(space.residency(AT, 2 * PAGE).map(|pages| pages.len()), Ok(2));
}

/// A file's bytes change while pages that show them come, become executable and go.
#[test]
fn bytes_that_change_through_a_file_are_announced_where_they_are_code() {
    let (_, recorder, mut space) = new_space();
    let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(4 * PAGE).unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    let id = FileId { device: stat.st_dev, inode: stat.st_ino };
    let shared = |offset| Source::FileShared { fd: file.as_raw_fd(), offset };
    space.map(Place::Fixed(AT), 2 * PAGE, READ | EXEC, shared(0)).unwrap();
    space.map(Place::Fixed(AT + 16 * PAGE), PAGE, RW, shared(PAGE)).unwrap();
    recorder.take();
    let change = space.file_change_begin(id, PAGE + 4..PAGE + 8);
    assert_eq!(recorder.take(), ["write 0x101004..0x101008"]);
    // Another view appears, and one becomes executable, during the call.
    space.protect(AT + 16 * PAGE, PAGE, READ | EXEC).unwrap();
    space.map(Place::Fixed(AT + 32 * PAGE), 4 * PAGE, READ | EXEC, shared(0)).unwrap();
    let announced = recorder.take();
    assert!(announced.contains(&"write 0x110004..0x110008".to_owned()), "{announced:?}");
    assert!(announced.contains(&"write 0x121004..0x121008".to_owned()), "{announced:?}");
    // A view that is gone is not announced.
    space.unmap(AT, 2 * PAGE).unwrap();
    recorder.take();
    space.file_change_end(change);
    assert_eq!(recorder.take(), ["changed 0x110004..0x110008", "changed 0x121004..0x121008"]);
    space.protect(AT + 16 * PAGE, PAGE, RW).unwrap();
    space.protect(AT + 16 * PAGE, PAGE, READ | EXEC).unwrap();
    assert!(!recorder.take().iter().any(|event| event.starts_with("write")));
    // No mapping shows the file.
    let change = space.file_change_begin(FileId { inode: 0, ..id }, 0..u64::MAX);
    space.file_change_end(change);
    assert_eq!(recorder.take(), [""; 0]);
}

#[test]
fn shared_memory_is_shown_a_second_time() {
    let (window, recorder, mut space) = new_space();
    space.map(Place::Fixed(AT), 2 * PAGE, RW, Source::AnonymousShared).unwrap();
    let once_more = space.remap(AT + PAGE, 0, PAGE, true, None).unwrap();
    window.store_u64(AT + PAGE, 5).unwrap();
    assert_eq!(window.load_u64(once_more), Ok(5));
    window.store_u64(once_more, 6).unwrap();
    assert_eq!(window.load_u64(AT + PAGE), Ok(6));
    let placed = space.remap(AT, 0, 2 * PAGE, true, Some(AT + 16 * PAGE)).unwrap();
    assert_eq!((placed, window.load_u64(placed + PAGE)), (AT + 16 * PAGE, Ok(6)));
    assert!(recorder.take().iter().any(|event| event == "shared 0x110000 2"));
    // Private memory has one place, and a second view needs a place of its own.
    space.map(Place::Fixed(AT + 32 * PAGE), PAGE, RW, Source::Anonymous).unwrap();
    assert_eq!(space.remap(AT + 32 * PAGE, 0, PAGE, true, None), Err(Errno::EINVAL));
    assert_eq!(space.remap(AT, 0, PAGE, false, None), Err(Errno::ENOMEM));
    assert_eq!(space.remap(AT + 48 * PAGE, 0, PAGE, true, None), Err(Errno::EFAULT));
}
