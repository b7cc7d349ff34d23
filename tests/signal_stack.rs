//! A fault takes at most [`HANDLER_STACK_BYTES`] of an alternate signal stack, in addition to the
//! kernel's own frame, in each mode with signals for faults.
//!
//! # Safety
//!
//! The painted stack outlives its use. Handlers of this file do nothing.
#![allow(unsafe_code)]

#[path = "support/modes.rs"]
mod modes;

use std::sync::Arc;

use codewarden::addr::{GuestAddr, PageSize};
use codewarden::guest_memory::GuestMemory;
use codewarden::policy::{Adaptive, Plain, Policy};
use codewarden::protection::{HANDLER_STACK_BYTES, Mode};
use codewarden::tracker::RegionOptions;
use codewarden::{CodeCache, Entry, EntryStubs, Key};
use modes::tracking_modes;

const PAINT: u8 = 0xa5;
const PAGES: u64 = 64;

/// Bytes of a signal stack that `run` uses in signal handlers of this thread.
fn used_bytes(run: impl FnOnce()) -> usize {
    let mut stack = vec![PAINT; 256 << 10];
    let ours = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: all zeroes is a valid one; the stack is live until the earlier one is put back.
    unsafe {
        let mut before: libc::stack_t = std::mem::zeroed();
        assert_eq!(libc::sigaltstack(&ours, &mut before), 0);
        run();
        assert_eq!(libc::sigaltstack(&before, std::ptr::null_mut()), 0);
    }
    stack.len() - stack.iter().take_while(|byte| **byte == PAINT).count()
}

/// The kernel's own use for a handler that does nothing.
fn kernel_bytes() -> usize {
    extern "C" fn nothing(_: libc::c_int) {}
    used_bytes(|| {
        // SAFETY: the handler does nothing; the signal is for this thread.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            action.sa_flags = libc::SA_ONSTACK;
            assert_eq!(libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut()), 0);
            libc::raise(libc::SIGUSR1);
        }
    })
}

/// Blocks on each page, two of them on the next one too.
fn translate(cache: &CodeCache<()>, page: u64, checked: bool) {
    for number in 0..PAGES {
        for block in 0..3 {
            let pc = GuestAddr(number * page + block * 0x100);
            let mut ticket = cache.begin(Key::from(pc));
            if ticket.claim(pc).is_err() || block > 0 && ticket.claim(GuestAddr((number + 1) % PAGES * page)).is_err() {
                continue;
            }
            let entry = 0x1000 + 0x10 * (3 * number + block) as usize;
            let both = if checked { Entry::with_check(entry, entry + 1) } else { Entry::plain(entry) };
            let _ = ticket.commit(both, ());
        }
    }
}

/// Faults of each kind: on code, on data, over two pages, a stream of pages.
fn faults(mode: Mode, policy: Arc<dyn Policy>, checked: bool) {
    let page = PageSize::host().bytes();
    let memory = GuestMemory::anonymous(PAGES as usize * page).unwrap();
    let cache = CodeCache::<()>::with_policy(EntryStubs::NOT_CODE, policy).unwrap();
    // SAFETY: the memory outlives the cache.
    unsafe { cache.tracker().add_region(RegionOptions::new(GuestAddr(0), memory.range(), mode)) }.unwrap();
    for offset in [0, 8, page - 4, page / 2] {
        translate(&cache, page as u64, checked);
        for number in 0..PAGES as usize - 1 {
            memory.write(number * page + offset, &[1; 8]).unwrap();
        }
    }
    assert!(cache.stats().faults > 0);
}

/// The deepest way: a descriptor is closed, and a fault in one region ends the blocks of another too.
/// The library's copy of the descriptor keeps the memory protected until then.
fn fault_of_a_loss(mode: Mode) {
    let page = PageSize::host().bytes();
    let memories = [(); 2].map(|()| GuestMemory::anonymous(page).unwrap());
    let cache = CodeCache::<()>::new(EntryStubs::NOT_CODE).unwrap();
    for (number, memory) in memories.iter().enumerate() {
        let guest = GuestAddr((number * page) as u64);
        // SAFETY: the memory outlives the cache.
        unsafe { cache.tracker().add_region(RegionOptions::new(guest, memory.range(), mode)) }.unwrap();
        let mut ticket = cache.begin(Key::from(guest));
        ticket.claim(guest).unwrap();
        ticket.commit(Entry::plain(0x1000), ()).unwrap();
    }
    let descriptors = cache.tracker().descriptors();
    // SAFETY: only the cache uses them.
    descriptors.iter().take(1).for_each(|&number| assert_eq!(unsafe { libc::close(number) }, 0));
    memories[0].write(0, &[1]).unwrap();
    let mut vcpu = cache.attach_vcpu();
    let mut pin = vcpu.pin();
    assert_eq!(pin.lookup(Key::new(0)), None);
    assert_eq!(pin.lookup(Key::new(page as u64)).is_none(), !descriptors.is_empty());
}

#[test]
fn a_fault_takes_no_more_than_is_promised() {
    // Installs the handlers, and does the work of a process's first fault.
    for mode in tracking_modes().into_iter().filter(|mode| matches!(mode, Mode::Sigbus | Mode::Mprotect)) {
        let kernel = std::thread::spawn(kernel_bytes).join().unwrap();
        let used = std::thread::spawn(move || {
            used_bytes(|| {
                faults(mode, Arc::new(Plain), false);
                faults(mode, Arc::new(Adaptive::with_checks()), true);
                fault_of_a_loss(mode);
            })
        });
        let ours = used.join().unwrap() - kernel;
        println!("{mode}: {ours} bytes beside the kernel's {kernel}");
        assert!(ours <= HANDLER_STACK_BYTES, "{mode}: {ours} bytes of {HANDLER_STACK_BYTES}");
    }
}
