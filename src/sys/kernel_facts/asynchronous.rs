//! Asynchronous write-protection, which `PAGEMAP_SCAN` harvests.
//!
//! # Safety
//!
//! Stores go to the tests' own mappings, by raw pointers.
#![allow(unsafe_code)]

use std::fs::File;

use rustix::mm::{MapFlags, ProtFlags};

use super::fixture::{Fixture, PAGES, SYNC, descriptor, has_or_skips, huge_bytes};
use crate::addr::{HostAddr, HostRange, PageSize};
use crate::error::Error;
use crate::sys::mmap::Mapping;
use crate::sys::pagemap::Pagemap;
use crate::sys::populate;
use crate::sys::probe::Facility;
use crate::sys::uffd::feature;

#[test]
fn regular_files_are_for_asynchronous_descriptors_alone() {
    let page = PageSize::host();
    let path = std::env::temp_dir().join(format!("codewarden-kernel-facts-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(page.bytes() as u64).unwrap();
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping without stores; it ends with the process.
    let start =
        unsafe { rustix::mm::mmap(core::ptr::null_mut(), page.bytes(), access, MapFlags::PRIVATE, &file, 0) }.unwrap();
    let range = HostRange::of_pages(HostAddr(start as usize), 1, page);
    if rustix::fs::fstatfs(&file).unwrap().f_type as u32 != libc::TMPFS_MAGIC as u32 {
        let error = descriptor(SYNC).register(range).unwrap_err();
        assert!(matches!(error, Error::System { errno: libc::EINVAL, .. }), "{error}");
    }
    if has_or_skips(&[Facility::WpAsync]) {
        descriptor(SYNC | feature::WP_ASYNC).register(range).unwrap();
    }
}

#[test]
fn asynchronous_writeprotect_hides_a_write_from_the_next_harvest() {
    if !has_or_skips(&[Facility::WpAsync, Facility::PagemapScan]) {
        return;
    }
    let fixture = Fixture::new(SYNC | feature::WP_ASYNC, false);
    let harvest = || {
        let mut written = 0;
        fixture
            .pagemap
            .harvest(fixture.memory.range(), &mut |part| written += part.len() / fixture.page.bytes())
            .unwrap();
        written
    };
    assert_eq!(harvest(), PAGES, "a fresh range counts as written");
    fixture.store(1, 1);
    fixture.store(5, 1);
    assert_eq!(harvest(), 2);
    fixture.store(1, 2);
    fixture.uffd.protect(fixture.pages(1, 1)).unwrap();
    assert_eq!(harvest(), 0, "taken over by the ioctl: this is why deferred regions never use it");
}

#[test]
fn a_harvest_of_more_regions_than_fit_in_one_call_is_whole() {
    if !has_or_skips(&[Facility::WpAsync, Facility::PagemapScan]) {
        return;
    }
    let page = PageSize::host();
    let pages = 1200;
    let memory = Mapping::anonymous(pages * page.bytes(), page).unwrap();
    // So that a page table leads to each page: see the next fact.
    for page_index in 0..pages {
        populate::read_byte(HostAddr(memory.range().start().0 + page_index * page.bytes())).unwrap();
    }
    let uffd = descriptor(SYNC | feature::WP_ASYNC);
    uffd.register(memory.range()).unwrap();
    let pagemap = Pagemap::open(page).unwrap();
    pagemap.harvest(memory.range(), &mut |_| ()).unwrap();
    let written: Vec<usize> = (0..pages).step_by(3).collect();
    for page_index in &written {
        let address = HostAddr(memory.range().start().0 + page_index * page.bytes());
        // SAFETY: in the test's own mapping.
        unsafe { address.as_ptr().write_volatile(1) };
    }
    let mut found = Vec::new();
    let index = |address: HostAddr| (address.0 - memory.range().start().0) / page.bytes();
    pagemap.harvest(memory.range(), &mut |part| found.extend(index(part.start())..index(part.end()))).unwrap();
    assert_eq!(found, written);
}

/// A harvest by Linux 6.17 passes over pages to which no page table leads: it neither reports nor
/// protects them. The first write makes the page table, whose other pages then count as written too.
/// So more is reported than was written, and nothing less.
#[test]
fn a_write_where_no_page_table_was_is_harvested() {
    if !has_or_skips(&[Facility::WpAsync, Facility::PagemapScan]) {
        return;
    }
    let page = PageSize::host();
    let memory = Mapping::anonymous(3 * huge_bytes(), page).unwrap();
    let uffd = descriptor(SYNC | feature::WP_ASYNC);
    uffd.register(memory.range()).unwrap();
    let pagemap = Pagemap::open(page).unwrap();
    let harvest = |what: &str, at: HostAddr, is_exact: bool| {
        let (mut pages, mut found) = (0, false);
        pagemap
            .harvest(memory.range(), &mut |part| {
                pages += part.len() / page.bytes();
                found |= part.contains(at);
            })
            .unwrap();
        assert!(found && (!is_exact || pages == 1), "{what}: {pages} pages");
    };
    pagemap.harvest(memory.range(), &mut |_| ()).unwrap();
    // In the middle of the part that a page of the page table leads to.
    let at = HostAddr(memory.range().start().0.next_multiple_of(huge_bytes()) + huge_bytes() + huge_bytes() / 2);
    for (what, is_exact) in [("the first write", false), ("the second", true)] {
        // SAFETY: in the test's own mapping.
        unsafe { at.as_ptr().write_volatile(1) };
        harvest(what, at, is_exact);
    }
}
