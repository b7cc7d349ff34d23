//! vCPUs: looking blocks up and running them.
//!
//! A vCPU is pinned while it looks blocks up and runs them: the blocks that it finds
//! live until it is unpinned. Unpin around guest system calls and anything else that
//! may last, and when asked to leave: pinned vCPUs keep the memory of dead blocks back.
//! A vCPU belongs to one thread at a time, and may move between threads while it is not
//! pinned.
//!
//! ```c
//! cw_vcpu_pin(vcpu);
//! entry = cw_lookup(vcpu, &front, key);                 // 0: translate, or interpret
//! if (entry) ((run *)entry)(state);
//! cw_vcpu_unpin(vcpu);
//! ```
//!
//! Emitted code may probe the front itself. The slot of a key is
//! front.slots[CW_FRONT_INDEX(key)]; if its key is the wanted one, jump to the
//! address in its cell. Do so only under the vCPU's pin: without it the cells may be
//! freed, or belong to other keys by now. cw_lookup() asserts the pin unless NDEBUG is
//! defined; emitted code can test the byte front.is_pinned itself.
//!
//! # Safety
//!
//! A vCPU's pin borrows the vCPU behind the same handle, which lies in its own box. The
//! pin is dropped first.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use engine::{EntryCell, FRONT_SLOTS, FrontSlot, Key, Pin, VCpu};

use crate::cache::cw_cache;
use crate::handle::{borrow, borrow_mut, out, out_handle, take_back};
use crate::payload::Owned;
use crate::status::{Failure, cw_status, fail, guarded};
use crate::tracker::Child;

/// Slots of a vCPU's front; a power of two.
pub const CW_FRONT_SLOTS: usize = 4096;

/// One slot of a vCPU's front, 16 bytes on 64-bit hosts.
#[repr(C)]
pub struct cw_front_slot {
    /// The key, or UINT64_MAX if the slot is empty.
    pub key: u64,
    /// Its entry cell: one word that is read atomically, with acquire. An empty slot
    /// has a cell that leads to the dead stub.
    pub cell: *const usize,
}

const _: () = assert!(
    CW_FRONT_SLOTS == FRONT_SLOTS
        && size_of::<cw_front_slot>() == size_of::<FrontSlot>()
        && offset_of!(cw_front_slot, key) == offset_of!(FrontSlot, key)
        && offset_of!(cw_front_slot, cell) == offset_of!(FrontSlot, cell)
        && size_of::<EntryCell>() == size_of::<usize>()
        && Key::new(0x1234_5678).front_index() == (0x1234_5678 >> 1) & (CW_FRONT_SLOTS - 1)
);

/// The data for a lookup without a call. Valid until the vCPU is freed.
#[repr(C)]
pub struct cw_front {
    /// CW_FRONT_SLOTS slots.
    pub slots: *const cw_front_slot,
    /// The dead stub of the cache: nothing to run.
    pub dead_stub: usize,
    /// The pending stub of the cache: nothing to run.
    pub pending_stub: usize,
    /// A byte that is 1 while the vCPU is pinned, and 0 while it is not.
    pub is_pinned: *const u8,
}

struct Asking {
    ask: Option<unsafe extern "C" fn(context: *mut c_void)>,
    context: *mut c_void,
}

// SAFETY: C promises that any thread may ask.
unsafe impl Send for Asking {}
// SAFETY: as above.
unsafe impl Sync for Asking {}

impl Asking {
    fn ask(&self) {
        if let Some(ask) = self.ask {
            // SAFETY: C's promise.
            unsafe { ask(self.context) };
        }
    }
}

/// One vCPU.
pub struct cw_vcpu {
    /// Borrows `vcpu`.
    pin: Option<Pin<'static, Owned>>,
    /// Owned; used through `pin` while there is one.
    vcpu: NonNull<VCpu<Owned>>,
    dead_stub: usize,
    pending_stub: usize,
    /// Whether there is a pin, for C to read.
    is_pinned: AtomicU8,
    _child: Child,
}

impl cw_vcpu {
    fn set_pin(&mut self, pin: Option<Pin<'static, Owned>>) {
        self.is_pinned.store(u8::from(pin.is_some()), Ordering::Relaxed);
        self.pin = pin;
    }
}

impl Drop for cw_vcpu {
    fn drop(&mut self) {
        self.pin = None;
        // SAFETY: from a box, and nothing borrows it any more.
        drop(unsafe { Box::from_raw(self.vcpu.as_ptr()) });
    }
}

/// A new vCPU, not pinned. Free it with cw_vcpu_free().
///
/// ask_to_leave(context), if it is not NULL, is called if this vCPU holds memory back
/// for long or cw_cache_wait_for_vcpus() waits for it. Other threads call it, and so
/// does this vCPU's own thread if that is in a call of the library while the vCPU is
/// pinned. It should make emitted code return to its dispatcher soon (set a byte that
/// back edges poll), so that the vCPU is unpinned. It must not call the library, and is
/// not called any more when cw_vcpu_free() has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_cache_attach_vcpu(
    cache: *const cw_cache,
    ask_to_leave: Option<unsafe extern "C" fn(context: *mut c_void)>,
    context: *mut c_void,
    vcpu: *mut *mut cw_vcpu,
) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (new, cache) = unsafe { (out_handle(vcpu)?, borrow(cache)?) };
        let asking = Asking { ask: ask_to_leave, context };
        let vcpu = Box::new(cache.moving()?.attach_vcpu_with(move || asking.ask()));
        let stubs = cache.stubs;
        new.give(cw_vcpu {
            pin: None,
            vcpu: NonNull::from(Box::leak(vcpu)),
            dead_stub: stubs.dead,
            pending_stub: stubs.pending,
            is_pinned: AtomicU8::new(0),
            _child: cache.child(),
        });
        Ok(())
    })
}

/// Frees a vCPU. Does nothing for NULL. CW_IN_USE while it is pinned; then it is
/// unchanged.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_vcpu_free(vcpu: *mut cw_vcpu) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        if unsafe { borrow(vcpu) }.is_ok_and(|vcpu| vcpu.pin.is_some()) {
            return Err(Failure::new(cw_status::CW_IN_USE, c"the vCPU is pinned: unpin it first"));
        }
        // SAFETY: the header's rules.
        drop(unsafe { take_back(vcpu) });
        Ok(())
    })
}

/// Pins the vCPU: the code and the payload of every block that is looked up or jumped
/// to from now on live until cw_vcpu_unpin(). Costs some nanoseconds.
///
/// CW_BAD_ARGUMENT if it is pinned already: pins do not nest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_vcpu_pin(vcpu: *mut cw_vcpu) -> cw_status {
    // SAFETY: the header's rules.
    let vcpu = match unsafe { borrow_mut(vcpu) } {
        Ok(vcpu) if vcpu.pin.is_none() => vcpu,
        Ok(_) => return fail(Failure::bad_argument(c"the vCPU is pinned already: pins do not nest")),
        Err(failure) => return fail(failure),
    };
    // SAFETY: owned by the handle, which one thread uses alone; while this borrow
    // lives, in `pin`, nothing else uses it.
    let owned: &'static mut VCpu<Owned> = unsafe { &mut *vcpu.vcpu.as_ptr() };
    vcpu.set_pin(Some(owned.pin()));
    cw_status::CW_OK
}

/// Unpins the vCPU: it is in no translated code and has no address of any. Does nothing
/// if it is not pinned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_vcpu_unpin(vcpu: *mut cw_vcpu) -> cw_status {
    // SAFETY: the header's rules.
    match unsafe { borrow_mut(vcpu) } {
        Ok(vcpu) => vcpu.set_pin(None),
        Err(failure) => return fail(failure),
    }
    cw_status::CW_OK
}

/// The entry of the valid block of the key; 0 if there is none. Lookups are lock-free
/// and write nothing that other threads read. The vCPU must be pinned: otherwise the
/// answer is 0 and cw_last_error_message() says so. cw_lookup() below does the same,
/// and is quicker if the front has the key.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_vcpu_lookup(vcpu: *mut cw_vcpu, key: u64) -> usize {
    // SAFETY: the header's rules.
    match unsafe { borrow_mut(vcpu) }.map(|vcpu| &mut vcpu.pin) {
        Ok(Some(pin)) => pin.lookup(Key::new(key)).unwrap_or(0),
        Ok(None) => {
            fail(Failure::bad_argument(c"the vCPU is not pinned: pin it before a lookup"));
            0
        }
        Err(failure) => {
            fail(failure);
            0
        }
    }
}

/// Gives the vCPU's front, for cw_lookup() and for emitted code. The vCPU need not be
/// pinned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cw_vcpu_front(vcpu: *const cw_vcpu, front: *mut cw_front) -> cw_status {
    guarded(|| {
        // SAFETY: the header's rules.
        let (vcpu, front) = unsafe { (borrow(vcpu)?, out(front)?) };
        let slots = match &vcpu.pin {
            Some(pin) => pin.front(),
            // SAFETY: owned, and not borrowed by a pin.
            None => unsafe { vcpu.vcpu.as_ref() }.front(),
        };
        let &cw_vcpu { dead_stub, pending_stub, .. } = vcpu;
        let is_pinned = vcpu.is_pinned.as_ptr().cast_const();
        front.write(cw_front { slots: slots.cast(), dead_stub, pending_stub, is_pinned });
        Ok(())
    })
}
