//! An alternate signal stack for one thread.
//!
//! The handler runs with `SA_ONSTACK`. A thread without an alternate stack runs it below its
//! stack pointer. That is wrong if guest code owns that register, or if the guest's stack is
//! tracked memory. The standard library gives its own threads a small one; this one has room
//! for embedders' handlers too.
//!
//! # Restoring the previous stack
//!
//! Stacks may be dropped in any order. Each remembers the previous one; if that one is dropped
//! first, its own predecessor takes its place. A stack is unmapped only if no code can put it back:
//! the kernel had it and gave it up, or a later stack of ours remembered it. Otherwise foreign code
//! has installed a stack over it and may put it back later, so its memory stays until the thread's
//! end.
//!
//! # Safety
//!
//! A thread's stacks are in a list of the thread. They are mapped until they are taken out
//! of it as above, or until the thread's end, when the kernel has none of them.
#![allow(unsafe_code)]

use core::cell::RefCell;
use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ptr;

use rustix::io::Errno;
use rustix::mm::MprotectFlags;

use crate::addr::{HostAddr, PageSize};
use crate::error::Error;
use crate::sys::mmap::Mapping;

/// Room for the handlers' own frames, in addition to the register frame.
const ROOM_BYTES: usize = 64 * 1024;

/// An alternate signal stack of the thread that made it, until it is dropped. Then the thread gets
/// its previous stack back. If a later stack is installed, that one stays.
#[derive(Debug)]
pub struct AltStack {
    /// Its key among the thread's stacks.
    first: HostAddr,
    /// The kernel keeps one per thread: not `Send`.
    thread: PhantomData<*mut ()>,
}

/// A stack that the kernel has, or that other code may give it back.
struct Stack {
    memory: Mapping,
    before: libc::stack_t,
}

impl Stack {
    fn is(&self, stack: &libc::stack_t) -> bool {
        self.memory.range().contains(HostAddr::of(stack.ss_sp))
    }
}

/// The stacks of one thread.
struct Stacks(Vec<Stack>);

thread_local! {
    static STACKS: RefCell<Stacks> = const { RefCell::new(Stacks(Vec::new())) };
}

impl AltStack {
    /// Gives this thread an alternate signal stack with a guard page below it.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if memory is short, or if the thread is running on its present
    /// alternate stack.
    pub fn for_this_thread() -> Result<Self, Error> {
        let page = PageSize::host();
        // SAFETY: reads a number. The frame grows with the machine's vector registers.
        let frame = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let len = page.ceil(ROOM_BYTES + frame).unwrap_or(ROOM_BYTES);
        let memory = Mapping::anonymous(len + page.bytes(), page)?;
        let first = memory.range().start();
        let guard = first.as_ptr().cast::<c_void>();
        // SAFETY: the lowest page of our own fresh mapping.
        unsafe { rustix::mm::mprotect(guard, page.bytes(), MprotectFlags::empty()) }
            .map_err(|errno| Error::system("mprotect", guard as usize, page.bytes(), errno))?;
        let stack = libc::stack_t { ss_sp: guard.wrapping_byte_add(page.bytes()), ss_flags: 0, ss_size: len };
        let none = Error::BadArgument("a thread that is ending cannot have a signal stack");
        STACKS
            .try_with(|stacks| {
                let stacks = &mut stacks.borrow_mut().0;
                let before = exchange(&stack)?;
                stacks.push(Stack { memory, before });
                Ok(Self { first, thread: PhantomData })
            })
            .unwrap_or(Err(none))
    }
}

impl Drop for AltStack {
    fn drop(&mut self) {
        // At the thread's end the list may be gone already, and its stacks with it.
        let _ = STACKS.try_with(|stacks| stacks.borrow_mut().remove(self.first));
    }
}

impl Stacks {
    fn remove(&mut self, first: HostAddr) {
        // Not there: another thread made it, and keeps it.
        let Some(at) = self.0.iter().position(|stack| stack.memory.range().start() == first) else { return };
        let (before, mut is_given_up) = (self.0[at].before, false);
        for other in 0..self.0.len() {
            if self.0[at].is(&self.0[other].before) {
                self.0[other].before = before;
                is_given_up = true;
            }
        }
        if present().is_ok_and(|present| self.0[at].is(&present)) {
            // Refused if the thread is running on it.
            is_given_up = exchange(&before).is_ok();
        }
        if is_given_up {
            self.0.remove(at);
        }
    }
}

impl Drop for Stacks {
    /// The thread ends. The previous stack may be gone by now: the standard library takes
    /// its own stack away first.
    fn drop(&mut self) {
        let Ok(present) = present() else {
            return core::mem::take(&mut self.0).into_iter().for_each(core::mem::forget);
        };
        if self.0.iter().any(|stack| stack.is(&present)) {
            let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            if exchange(&none).is_err() {
                core::mem::take(&mut self.0).into_iter().for_each(core::mem::forget);
            }
        }
    }
}

/// The stack that the kernel has for this thread.
fn present() -> Result<libc::stack_t, Error> {
    sigaltstack(ptr::null())
}

fn exchange(stack: &libc::stack_t) -> Result<libc::stack_t, Error> {
    sigaltstack(stack)
}

fn sigaltstack(stack: *const libc::stack_t) -> Result<libc::stack_t, Error> {
    let mut before = MaybeUninit::<libc::stack_t>::zeroed();
    // SAFETY: null, or a live one whose memory is mapped as the module's head says; a zeroed
    // stack_t is a valid one.
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
    use crate::sys::mmap::is_mapped;

    fn is_present(stack: &AltStack) -> bool {
        let present = present().unwrap();
        STACKS
            .with_borrow(|stacks| stacks.0.iter().any(|of| of.memory.range().start() == stack.first && of.is(&present)))
    }

    fn is_safe() -> bool {
        let present = present().unwrap();
        let page = PageSize::host();
        present.ss_flags & libc::SS_DISABLE != 0 || is_mapped(HostAddr(page.floor(present.ss_sp as usize)), page)
    }

    #[test]
    fn comes_and_goes_with_the_object() {
        let before = present().unwrap();
        let stack = AltStack::for_this_thread().unwrap();
        assert!(is_present(&stack));
        assert!(present().unwrap().ss_size >= ROOM_BYTES);
        drop(stack);
        assert_eq!(present().unwrap().ss_sp, before.ss_sp);
        assert!(STACKS.with_borrow(|stacks| stacks.0.is_empty()));
    }

    /// Stacks come and go in any order; the newest remaining one is installed, and none
    /// remains in the end.
    #[test]
    fn any_order_of_drops() {
        let mut seed = 11u64;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        let before = present().unwrap().ss_sp;
        let mut left: Vec<AltStack> = Vec::new();
        for _ in 0..3000 {
            if left.len() < 6 && next(2) == 0 {
                left.push(AltStack::for_this_thread().unwrap());
            } else if !left.is_empty() {
                left.remove(next(left.len()));
            }
            match left.last() {
                Some(newest) => assert!(is_present(newest)),
                None => assert_eq!(present().unwrap().ss_sp, before),
            }
            assert!(is_safe());
            assert_eq!(STACKS.with_borrow(|stacks| stacks.0.len()), left.len());
        }
    }

    /// Foreign code installs a stack over ours and later puts back the previous one.
    #[test]
    fn any_order_with_foreign_stacks() {
        let mut seed = 17u64;
        let mut next = |below: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % below
        };
        // Never freed, so that they are safe to put back.
        let theirs: Vec<Mapping> = (0..8).map(|_| Mapping::anonymous(1 << 16, PageSize::host()).unwrap()).collect();
        let mut over: Vec<libc::stack_t> = Vec::new();
        let mut left: Vec<AltStack> = Vec::new();
        for _ in 0..1000 {
            match next(4) {
                0 if left.len() < 6 => left.push(AltStack::for_this_thread().unwrap()),
                1 if over.len() < theirs.len() => {
                    let start = theirs[over.len()].range().start().as_ptr().cast();
                    over.push(exchange(&libc::stack_t { ss_sp: start, ss_flags: 0, ss_size: 1 << 16 }).unwrap());
                }
                2 => drop(over.pop().map(|before| exchange(&before).unwrap())),
                _ if !left.is_empty() => drop(left.remove(next(left.len()))),
                _ => {}
            }
            assert!(is_safe());
        }
        while let Some(before) = over.pop() {
            exchange(&before).unwrap();
        }
        left.clear();
        assert!(is_safe());
    }

    /// In C a stack may be freed on another thread; and a thread may end with one.
    #[test]
    fn on_another_thread_and_at_the_threads_end() {
        struct Moved(AltStack);
        // SAFETY: this is the tested case; it is only dropped there.
        unsafe impl Send for Moved {}
        thread_local! { static KEPT: RefCell<Option<AltStack>> = const { RefCell::new(None) } }
        std::thread::spawn(|| {
            let stack = AltStack::for_this_thread().unwrap();
            let first = stack.first;
            let moved = Moved(stack);
            std::thread::spawn(move || drop({ moved }.0)).join().unwrap();
            assert!(is_safe() && is_mapped(first, PageSize::host()));
            let here = present().unwrap().ss_sp as usize;
            assert!(here > first.0 && here - first.0 <= PageSize::host().bytes(), "the thread still has it");
            KEPT.set(AltStack::for_this_thread().ok());
            core::mem::forget(AltStack::for_this_thread().unwrap());
        })
        .join()
        .unwrap();
    }
}
