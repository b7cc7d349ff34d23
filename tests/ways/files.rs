//! Mappings of regular files. userfaultfd's synchronous modes cannot track them: they refuse
//! with an error that names the remedy. Deferred and mprotect track them.
//!
//! # Safety
//!
//! Mappings outlive the trackers and go with the process.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use codewarden::addr::HostAddr;
use codewarden::error::Error;
use codewarden::guest_memory::GuestMemory;
use codewarden::protection::Mode;
use codewarden::{CodeCache, EntryStubs};
use rustix::mm::{MapFlags, ProtFlags};

use crate::support::{Fixture, GUEST, PAGES, page_bytes, region, skip, tracking_modes};

/// A new file that no other process finds.
pub(crate) fn temporary() -> File {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("ways-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

/// Whether it is on a file system of regular files; files in memory can be tracked.
pub(crate) fn is_regular(file: &File) -> bool {
    let kind = rustix::fs::fstatfs(file).unwrap().f_type as u32;
    if kind == libc::TMPFS_MAGIC as u32 {
        skip(&"the directory for tests' files is on tmpfs");
    }
    kind != libc::TMPFS_MAGIC as u32
}

fn map(file: &File, sharing: MapFlags) -> GuestMemory {
    let len = PAGES * page_bytes();
    file.set_len(len as u64).unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe { rustix::mm::mmap(core::ptr::null_mut(), len, access, sharing, file, 0) }.unwrap();
    // SAFETY: the mapping stays until the process ends and is this test's alone.
    unsafe { GuestMemory::from_raw(HostAddr(start as usize), len, None) }.unwrap()
}

fn in_each_mode(sharing: MapFlags) {
    for mode in tracking_modes().into_iter().chain([Mode::None]) {
        let file = temporary();
        if !is_regular(&file) {
            return;
        }
        let memory = map(&file, sharing);
        if matches!(mode, Mode::Sigbus | Mode::Thread) {
            let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
            // SAFETY: the mapping stays.
            let refused = unsafe { cache.tracker().add_region(region(GUEST, &memory, mode)) }.unwrap_err();
            assert!(matches!(refused, Error::System { errno: libc::EINVAL, .. }), "{mode}: {refused:?}");
            let text = refused.to_string();
            assert!(text.contains("regular file") && text.contains("deferred"), "{mode}: {text}");
            continue;
        }
        let guest = Fixture::new(mode, memory);
        guest.expect_tracked(1, 7);
        guest.expect_tracked(1, 8);
        if sharing == MapFlags::SHARED {
            // Writes to the file, past every mapping of it.
            let block = guest.block(2, 0);
            file.write_at(&[9], 2 * page_bytes() as u64).unwrap();
            assert_eq!(guest.bytes(2, 0, 1), [9]);
            guest.expect_reachable(block);
            guest.invalidate(2, 0, 1);
            guest.expect_dead(block);
        }
    }
}

#[test]
fn a_private_mapping() {
    in_each_mode(MapFlags::PRIVATE);
}

#[test]
fn a_shared_mapping() {
    in_each_mode(MapFlags::SHARED);
}
