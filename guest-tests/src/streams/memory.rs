//! The guest's memory in each way: private code, shared code that is mapped at two
//! addresses, and data.
//!
//! # Safety
//!
//! All pointers are into the parts of a [`Window`] that `Memory::new` mapped, which stay
//! mapped as long as the process. Only the guest's hart uses them too, and it stands still during
//! these calls.
#![allow(unsafe_code)]

use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use codewarden::addr::{HostAddr, HostRange, PageSize};
use codewarden::guest_memory::{BackingId, GuestMemory};
use codewarden::protection::Access;
use demo_emulator::linux::host_memory;
use demo_emulator::linux::observer::MemoryObserver;
use demo_emulator::memory::Window;
use demo_emulator::memory::window::{EXEC, READ, WRITE};

/// Private memory for code.
pub(super) const CODE: u64 = 0x10_0000;
/// Shared memory for code.
pub(super) const SHARED: u64 = 0x11_0000;
/// The same shared memory once more.
pub(super) const ALIAS: u64 = 0x12_0000;
/// Bytes of each of the three.
pub(super) const CODE_BYTES: u64 = 0x8000;

const DATA: u64 = 0x13_0000;
/// The part that the guest may read and write. A page that it may only read follows.
pub(super) const DATA_BYTES: u64 = 0x2000;
const READ_ONLY: u64 = DATA + DATA_BYTES;
const READ_ONLY_BYTES: u64 = 0x1000;
/// The address in the guest's data registers.
pub(super) const DATA_MIDDLE: u64 = DATA + DATA_BYTES / 2;

/// All of the above, with unmapped gaps.
pub(super) const ALL: Range<u64> = CODE..0x14_0000;

/// Parts, and the guest's access to each.
const PARTS: [(u64, u64, Access, u8); 5] = [
    (CODE, CODE_BYTES, Access::ReadWrite, READ | WRITE | EXEC),
    (SHARED, CODE_BYTES, Access::ReadWrite, READ | WRITE | EXEC),
    (ALIAS, CODE_BYTES, Access::ReadWrite, READ | WRITE | EXEC),
    (DATA, DATA_BYTES, Access::ReadWrite, READ | WRITE),
    (READ_ONLY, READ_ONLY_BYTES, Access::Read, READ),
];

pub(super) struct Memory {
    pub(super) window: Window,
    /// The memory that is mapped at `SHARED` and `ALIAS`.
    shared: GuestMemory,
    /// The kernel copies from this memory.
    source: GuestMemory,
}

impl Memory {
    /// Makes it in a window of its own.
    pub(super) fn new() -> Self {
        let window = Window::reserve().expect("address space");
        let shared = GuestMemory::memfd(CODE_BYTES as usize).expect("a memfd");
        let source = GuestMemory::memfd(CODE_BYTES as usize).expect("a memfd");
        let file = shared.file().expect("a memfd").as_raw_fd();
        for view in [SHARED, ALIAS] {
            let at = window.host(view).expect("in the window").cast();
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a piece of the window that is not used yet.
            let mapped =
                unsafe { libc::mmap(at, CODE_BYTES as usize, protection, libc::MAP_SHARED | libc::MAP_FIXED, file, 0) };
            assert_eq!(mapped, at, "{}", std::io::Error::last_os_error());
        }
        for (start, len_bytes, _, permissions) in PARTS {
            window.set_permissions(start..start + len_bytes, permissions);
        }
        Self { window, shared, source }
    }

    pub(super) fn range(&self, guest: Range<u64>) -> HostRange {
        range(&self.window, guest)
    }

    pub(super) fn backing(&self) -> BackingId {
        self.shared.backing_id().expect("a memfd")
    }

    /// Tells `observer` the guest's access to each part.
    pub(super) fn allow(&self, observer: &dyn MemoryObserver) {
        for (start, len_bytes, access, _) in PARTS {
            observer.set_access(self.range(start..start + len_bytes), access).expect("memory");
        }
    }

    /// Fills everything anew while it is not tracked: zeros, then the code and the data.
    pub(super) fn fill(&self, pc: u64, code: &[u8], data: &[u8]) {
        // A removed region leaves its memory with the guest's last access.
        for (start, len_bytes, access, _) in PARTS {
            host_memory::protect(self.range(start..start + len_bytes), access).expect("memory");
        }
        for start in [CODE, SHARED] {
            // SAFETY: see the module's head.
            unsafe { ptr::write_bytes(self.at(start, CODE_BYTES as usize), 0, CODE_BYTES as usize) };
        }
        self.write(pc, code);
        self.write(DATA, &data[..DATA_BYTES as usize]);
    }

    /// A write by the host.
    pub(super) fn write(&self, addr: u64, bytes: &[u8]) {
        // SAFETY: see the module's head.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(addr, bytes.len()), bytes.len()) };
    }

    /// A write by the kernel, announced to `observer`.
    pub(super) fn kernel_write(&self, observer: &dyn MemoryObserver, addr: u64, bytes: &[u8]) {
        self.source.write_untracked(0, bytes).expect("room");
        let to = self.at(addr, bytes.len());
        observer.kernel_write_begin(HostAddr(to as usize), bytes.len());
        // SAFETY: as above; the observer, which protects the memory, was told.
        let done = unsafe { libc::pread(self.source.file().expect("a memfd").as_raw_fd(), to.cast(), bytes.len(), 0) };
        observer.kernel_write_end(HostAddr(to as usize), bytes.len());
        assert_eq!(done, bytes.len() as isize, "{}", std::io::Error::last_os_error());
    }

    /// All memory that the guest can have changed.
    pub(super) fn contents(&self) -> Vec<u8> {
        let mut contents = Vec::with_capacity((2 * CODE_BYTES + DATA_BYTES) as usize);
        for (start, len_bytes) in [(CODE, CODE_BYTES), (SHARED, CODE_BYTES), (DATA, DATA_BYTES)] {
            // SAFETY: see the module's head; the guest may read all of it.
            contents
                .extend(unsafe { std::slice::from_raw_parts(self.at(start, len_bytes as usize), len_bytes as usize) });
        }
        contents
    }

    fn at(&self, addr: u64, len_bytes: usize) -> *mut u8 {
        let is_part = |(start, part_bytes, ..): (u64, u64, _, _)| {
            (start..=start + part_bytes).contains(&addr) && addr + len_bytes as u64 <= start + part_bytes
        };
        assert!(PARTS.into_iter().any(is_part), "{len_bytes} bytes at {addr:#x}");
        self.window.host(addr).expect("in the window")
    }
}

fn range(window: &Window, guest: Range<u64>) -> HostRange {
    let start = HostAddr(window.host(guest.start).expect("in the window") as usize);
    HostRange::new(start, (guest.end - guest.start) as usize, PageSize::host()).expect("whole pages")
}
