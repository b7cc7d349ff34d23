//! Allocation, publishing, giving back and forking of a code buffer.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::sys::child::{Ended, in_child};
use crate::sys::pagemap::{Pagemap, entry};

/// The only view from outside: no two live ranges overlap, and each keeps its bytes, as seen
/// through the executable view.
#[test]
fn random_allocations_keep_to_themselves_and_leave_nothing() {
    let buffer = CodeBuffer::new(1 << 20).unwrap();
    let mut seed = 1u64;
    let mut random = |below: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % below
    };
    let mut live: Vec<(Allocation, u8)> = Vec::new();
    for round in 0..20_000u32 {
        if random(5) < 3 {
            let align = 1 << random(8);
            match buffer.alloc(random(3000) as usize, align) {
                Ok(allocation) => {
                    assert!((allocation.rx() as usize).is_multiple_of(align));
                    fill(&allocation, round as u8);
                    live.push((allocation, round as u8));
                }
                Err(Error::Full { .. }) => live.truncate(live.len() / 2),
                Err(error) => panic!("{error}"),
            }
        } else if !live.is_empty() {
            let (allocation, byte) = live.swap_remove(random(live.len() as u64) as usize);
            assert!(bytes(&allocation).iter().all(|found| *found == byte));
        }
    }
    for (allocation, byte) in live.drain(..) {
        assert!(bytes(&allocation).iter().all(|found| *found == byte));
    }
    let stats = buffer.stats();
    assert_eq!((stats.used_bytes, stats.allocations), (0, 0));
    assert_eq!(stats.largest_free_bytes, stats.limit_bytes);
}

#[test]
fn no_mapping_is_writable_and_executable() {
    let buffer = CodeBuffer::new(1 << 20).unwrap();
    let allocation = buffer.alloc(100, 16).unwrap();
    fill(&allocation, 0x90);
    allocation.publish().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let permissions = |address: usize| {
        let line = maps.lines().find(|line| {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            (usize::from_str_radix(start, 16).unwrap()..usize::from_str_radix(end, 16).unwrap()).contains(&address)
        });
        line.unwrap().split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(permissions(allocation.rw() as usize), "rw-s");
    assert_eq!(permissions(allocation.rx() as usize), "r-xs");
    assert!(buffer.executable().contains(HostAddr::of(allocation.rx())));
    assert!(!buffer.executable().contains(HostAddr::of(allocation.rw())));
}

#[test]
fn what_is_written_in_one_view_runs_in_the_other() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let [first, second] = [(); 2].map(|()| buffer.alloc(CONSTANT_BYTES, 16).unwrap());
    assert_eq!(run_constant(&first, 42), 42);
    assert_eq!(run_constant(&second, 43), 43);
}

#[test]
fn new_code_runs_where_old_code_was() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let first = buffer.alloc(CONSTANT_BYTES, 16).unwrap();
    let address = first.rx();
    assert_eq!(run_constant(&first, 42), 42);
    drop(first);
    let second = buffer.alloc(CONSTANT_BYTES, 16).unwrap();
    assert_eq!(second.rx(), address, "freed code memory is used again");
    assert_eq!(bytes(&second)[0], FREED_FILL);
    assert_eq!(run_constant(&second, 43), 43);
}

#[test]
fn free_pages_are_given_back_in_bounded_sweeps() {
    let buffer = CodeBuffer::new(64 << 20).unwrap();
    let all: Vec<_> = (0..32 * 1024)
        .map(|_| {
            let allocation = buffer.alloc(1024, 16).unwrap();
            fill(&allocation, 1);
            allocation
        })
        .collect();
    let full = memory_behind(&buffer);
    assert_eq!(full, 32 << 20);
    assert_eq!(buffer.stats().resident_bytes, full);
    drop(all);
    let stats = buffer.stats();
    assert!(stats.resident_bytes <= KEPT_FREE_BYTES, "{stats:?}");
    assert_eq!(memory_behind(&buffer), stats.resident_bytes);
    assert_eq!(stats.given_back_bytes as usize, full - stats.resident_bytes);
}

#[test]
fn written_pages_leave_the_page_table() {
    let buffer = CodeBuffer::new(16 << 20).unwrap();
    let page_bytes = PageSize::host().bytes();
    let batch_bytes = 16 * page_bytes;
    let all: Vec<_> = (0..(8 << 20) / batch_bytes)
        .map(|_| {
            let batch = [(); 16].map(|()| buffer.alloc(page_bytes, 16).unwrap());
            batch.iter().for_each(|allocation| fill(allocation, 1));
            Allocation::publish_all(&batch).unwrap();
            assert!(mapped_to_write(&buffer) <= MAPPED_WRITTEN_BYTES + batch_bytes);
            batch
        })
        .collect();
    let mut guard = buffer.before_fork();
    guard.copy_code().unwrap();
    drop(guard);
    assert!(mapped_to_write(&buffer) <= MAPPED_WRITTEN_BYTES + batch_bytes, "a copy maps what it reads");
    // The bytes are still there. Dropping fills them, and that too leaves few pages.
    for allocation in all.into_iter().flatten() {
        assert!(bytes(&allocation).iter().all(|byte| *byte == 1));
        drop(allocation);
        assert!(mapped_to_write(&buffer) <= MAPPED_WRITTEN_BYTES + batch_bytes);
    }
}

/// Threads write while another one takes the pages out of the page table all the time.
#[test]
fn a_page_that_leaves_the_page_table_keeps_its_bytes() {
    let buffer = CodeBuffer::new(1 << 20).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                buffer.shared.views.unmap_written();
            }
        });
        let writers = [1, 2, 3].map(|byte| {
            let buffer = &buffer;
            scope.spawn(move || {
                for _ in 0..20 {
                    // The threads' allocations share pages.
                    let all: Vec<_> = (0..500).map(|_| buffer.alloc(192, 16).unwrap()).collect();
                    all.iter().for_each(|allocation| fill(allocation, byte));
                    for allocation in &all {
                        assert!(bytes(allocation).iter().all(|found| *found == byte));
                    }
                }
            })
        });
        let results = writers.map(|writer| writer.join());
        is_over.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
}

#[test]
fn a_forks_child_leaves_its_parents_code_alone() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let allocation = buffer.alloc(64, 16).unwrap();
    fill(&allocation, 7);
    let guard = buffer.before_fork();
    let mut allocation = Some(allocation);
    let status = in_child(|| {
        let fine = guard.after_fork_child().is_ok() && bytes(allocation.as_ref().unwrap())[0] == 0;
        drop(allocation.take());
        u8::from(!fine)
    });
    assert_eq!(status, Ended::Returned(0));
    assert!(bytes(&allocation.unwrap()).iter().all(|byte| *byte == 7), "the child's free wrote to the parent's code");
}

/// Also a child that drops its inherited allocations, as one that unwinds or exits does.
#[test]
fn a_child_that_was_not_announced_leaves_its_parents_code_alone() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let allocation = buffer.alloc(64, 16).unwrap();
    fill(&allocation, 7);
    let mut allocation = Some(allocation);
    let status = in_child(|| {
        let inherited = allocation.take().unwrap();
        let refused =
            inherited.publish() == Err(Error::InForkChild) && matches!(buffer.alloc(1, 1), Err(Error::InForkChild));
        drop(inherited);
        u8::from(!refused)
    });
    assert_eq!(status, Ended::Returned(0));
    assert!(bytes(&allocation.unwrap()).iter().all(|byte| *byte == 7), "the child's drop wrote to the parent's code");
}

/// Another processor may run the former bytes there.
#[test]
fn an_entry_is_that_of_published_code() {
    let buffer = CodeBuffer::new(1 << 16).unwrap();
    let allocation = buffer.alloc(64, 16).unwrap();
    assert!(matches!(allocation.entry(0), Err(Error::BadArgument(why)) if why.contains("not published")));
    allocation.publish().unwrap();
    assert_eq!(allocation.entry(0), Ok(allocation.rx() as usize));
    assert_eq!(allocation.entry(63), Ok(allocation.rx() as usize + 63));
    assert!(matches!(allocation.entry(64), Err(Error::BadArgument(why)) if why.contains("inside")));
    drop(allocation);
    let again = buffer.alloc(64, 16).unwrap();
    assert!(again.entry(0).is_err(), "the next one there is not published");
}

#[test]
fn several_allocations_are_published_together_or_not_at_all() {
    let buffers = [(); 2].map(|()| CodeBuffer::new(1 << 16).unwrap());
    let [first, second, third] = [0, 0, 1].map(|buffer| buffers[buffer].alloc(64, 16).unwrap());
    let nothing: [&Allocation; 0] = [];
    Allocation::publish_all(nothing).unwrap();
    Allocation::publish_all([&first, &third]).unwrap();
    assert!(first.entry(0).is_ok() && second.entry(0).is_err() && third.entry(0).is_ok());
    let [own, inherited] = [0, 1].map(|buffer| buffers[buffer].alloc(64, 16).unwrap());
    let guard = buffers[0].before_fork();
    let status = in_child(|| {
        guard.after_fork_child().unwrap();
        let is_refused = Allocation::publish_all([&own, &inherited]) == Err(Error::InForkChild);
        u8::from(!is_refused || own.entry(0).is_ok())
    });
    assert_eq!(status, Ended::Returned(0));
}

#[test]
fn impossible_requests_are_errors() {
    assert!(matches!(CodeBuffer::new(0), Err(Error::BadArgument(_))));
    assert!(matches!(CodeBuffer::new(usize::MAX), Err(Error::BadArgument(_))));
    let buffer = CodeBuffer::new(4096).unwrap();
    assert!(matches!(buffer.alloc(1, 3), Err(Error::BadArgument(_))));
    assert!(matches!(buffer.alloc(1, 1 << 20), Err(Error::BadArgument(_))));
    assert!(matches!(buffer.alloc(usize::MAX, 16), Err(Error::Full { .. })));
    let all = buffer.alloc(4096, 16).unwrap();
    assert!(matches!(buffer.alloc(1, 1), Err(Error::Full { limit: 4096, .. })));
    drop(all);
    buffer.alloc(4096, 16).unwrap();
}

fn fill(allocation: &Allocation, byte: u8) {
    // SAFETY: the writable view of an allocation that is alive.
    unsafe { ptr::write_bytes(allocation.rw(), byte, allocation.len()) };
}

fn bytes(allocation: &Allocation) -> Vec<u8> {
    // SAFETY: the executable view of an allocation that is alive, copied out.
    (0..allocation.len()).map(|index| unsafe { allocation.rx().add(index).read_volatile() }).collect()
}

/// The bytes that the kernel holds for the buffer, according to `mincore`.
fn memory_behind(buffer: &CodeBuffer) -> usize {
    let Views { rw, len, .. } = buffer.shared.views;
    let page_bytes = PageSize::host().bytes();
    let mut resident = vec![0_u8; len / page_bytes];
    // SAFETY: asks about a mapping that the buffer keeps; one byte for each page of it.
    assert_eq!(unsafe { libc::mincore(rw.cast(), len, resident.as_mut_ptr()) }, 0);
    resident.iter().filter(|page| **page & 1 != 0).count() * page_bytes
}

/// The bytes of the writable view that the page table leads to.
fn mapped_to_write(buffer: &CodeBuffer) -> usize {
    let (Views { rw, len, .. }, page) = (&buffer.shared.views, PageSize::host());
    let mut entries = vec![0; len >> page.shift()];
    Pagemap::open(page).unwrap().entries(HostAddr::of(*rw), &mut entries).unwrap();
    entries.iter().filter(|found| **found & entry::PRESENT != 0).count() << page.shift()
}

const CONSTANT_BYTES: usize = 8;

/// A function that returns `value`.
fn constant(value: u8) -> [u8; CONSTANT_BYTES] {
    if cfg!(target_arch = "x86_64") {
        // mov eax, value; ret; the bytes after it are not reached
        return [0xb8, value, 0, 0, 0, 0xc3, 0xcc, 0xcc];
    }
    // mov w0, value; ret
    let words = [0x5280_0000 | u32::from(value) << 5, 0xd65f_03c0];
    (u64::from(words[1]) << 32 | u64::from(words[0])).to_le_bytes()
}

fn run_constant(allocation: &Allocation, value: u8) -> u32 {
    let code = constant(value);
    // SAFETY: the function fits the allocation, and is whole.
    unsafe {
        ptr::copy_nonoverlapping(code.as_ptr(), allocation.rw(), code.len());
        allocation.publish().unwrap();
        std::mem::transmute::<*const u8, extern "C" fn() -> u32>(allocation.rx())()
    }
}
