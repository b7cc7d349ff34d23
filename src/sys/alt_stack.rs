//! An alternate signal stack for one thread.
//!
//! The handler runs with `SA_ONSTACK`: a thread without an alternate stack runs
//! it below its stack pointer, which is wrong where guest code owns that
//! register or the guest's stack is tracked memory. The standard library gives
//! its own threads a small one; this one has room for embedders' handlers too.
//!
//! # Safety
//!
//! The stack is mapped for as long as the kernel may switch to it: until the
//! drop, on the same thread, put the previous one back.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem::MaybeUninit;

use rustix::io::Errno;
use rustix::mm::MprotectFlags;

use crate::addr::PageSize;
use crate::error::Error;
use crate::sys::mmap::Mapping;

/// Room for the handlers' own frames, beside the register frame.
const ROOM_BYTES: usize = 64 * 1024;

/// An alternate signal stack of the thread that made it, until it is dropped.
#[derive(Debug)]
pub struct AltStack {
    memory: Mapping,
    before: libc::stack_t,
    /// The kernel keeps one per thread: not `Send`.
    thread: PhantomData<*mut ()>,
}

impl AltStack {
    /// Gives this thread an alternate signal stack with a guard page below it.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where memory is short, or where the thread is running
    /// on its present alternate stack.
    pub fn for_this_thread() -> Result<Self, Error> {
        let page = PageSize::host();
        // SAFETY: reads a number. The frame grows with the machine's vector registers.
        let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let len = page.ceil(ROOM_BYTES + frame).unwrap_or(ROOM_BYTES);
        let memory = Mapping::anonymous(len + page.bytes(), page)?;
        let guard = memory.range().start().as_ptr().cast::<c_void>();
        // SAFETY: the lowest page of our own fresh mapping.
        unsafe { rustix::mm::mprotect(guard, page.bytes(), MprotectFlags::empty()) }
            .map_err(|errno| Error::system("mprotect", guard as usize, page.bytes(), errno))?;
        let stack = libc::stack_t { ss_sp: guard.wrapping_byte_add(page.bytes()), ss_flags: 0, ss_size: len };
        let before = exchange(&stack)?;
        Ok(Self { memory, before, thread: PhantomData })
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        let present = exchange(&self.before);
        // Another one was installed over ours and not taken away: that one stays.
        if let Ok(present) = present
            && !self.memory.range().contains(crate::addr::HostAddr::of(present.ss_sp))
        {
            let _ = exchange(&present);
        }
    }
}

fn exchange(stack: &libc::stack_t) -> Result<libc::stack_t, Error> {
    let mut before = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: both are live; the memory behind `stack` is mapped until the object's drop.
    unsafe {
        match libc::sigaltstack(stack, before.as_mut_ptr()) {
            0 => Ok(before.assume_init()),
            _ => Err(Error::system(
                "sigaltstack",
                0,
                0,
                Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present() -> libc::stack_t {
        let mut stack = MaybeUninit::<libc::stack_t>::zeroed();
        // SAFETY: only reads the present one.
        unsafe {
            assert_eq!(libc::sigaltstack(core::ptr::null(), stack.as_mut_ptr()), 0);
            stack.assume_init()
        }
    }

    #[test]
    fn comes_and_goes_with_the_object() {
        let before = present();
        let stack = AltStack::for_this_thread().unwrap();
        assert!(stack.memory.range().contains(crate::addr::HostAddr::of(present().ss_sp)));
        assert!(present().ss_size >= ROOM_BYTES);
        drop(stack);
        assert_eq!(present().ss_sp, before.ss_sp);
    }
}
