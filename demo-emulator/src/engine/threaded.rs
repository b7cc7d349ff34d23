//! Threaded code: the form in which tier 0 keeps instructions.
//!
//! Each decoded instruction has the address of a function that runs it, and that goes on to the
//! next instruction's by a jump. There is one function for each operation: the definition of all
//! instructions ([`effect`]) with the operation fixed, so the compiler keeps the code of that
//! operation alone. Neither `hart.pc` nor `hart.instret` is written before the end of the block.
//!
//! The compiler makes the last call of a function a jump when it optimises. Otherwise the calls
//! nest, as deep as the block has instructions.
//!
//! # Safety
//!
//! A sequence ends with an instruction that leaves, so a function that goes on has a next one. Only
//! [`ThreadedCode::run`] starts it, and keeps it alive by its borrow.
#![allow(unsafe_code)]

use std::sync::atomic::Ordering;

use crate::hart::Hart;
use crate::memory::Window;
use crate::riscv::exec::{After, effect};
use crate::riscv::inst::{Inst, Op, each_op};
use crate::translate::OwnStores;

/// How a run of a block ended. The hart is between two instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// At its end, or behind a store that overwrote it.
    Next,
    /// Behind a FENCE.I.
    FenceI,
    /// At an instruction that did not retire. It has had no effect.
    Trap,
}

/// The place of a block, and its action after its own stores.
#[derive(Debug)]
pub(super) struct OwnBytes {
    pub(super) start: u64,
    pub(super) len_bytes: u64,
    pub(super) own_stores: OwnStores,
}

impl OwnBytes {
    /// Whether a store of `len_bytes` to `addr` may have hit the block's bytes.
    #[inline(always)]
    pub(super) fn is_overwritten(&self, addr: u64, len_bytes: u64) -> bool {
        match self.own_stores {
            OwnStores::Ignore => false,
            OwnStores::Compare => {
                let first = self.start.wrapping_sub(len_bytes - 1);
                addr.wrapping_sub(first) < self.len_bytes + len_bytes - 1
            }
            // SAFETY: the flag lives as long as the block.
            OwnStores::Poll(flag) => unsafe { flag.as_ref() }.load(Ordering::Relaxed) != 0,
        }
    }
}

/// Runs the instruction and those behind it.
type Run = unsafe fn(at: *const Threaded, hart: &mut Hart, window: &Window, own: &OwnBytes) -> End;

/// An instruction of a sequence.
#[derive(Clone, Copy, Debug)]
struct Threaded {
    run: Run,
    inst: Inst,
    /// Its distance from the start of the block.
    offset_bytes: u16,
    /// How many instructions are before it.
    index: u16,
}

/// The instructions of a block.
#[derive(Debug)]
pub(super) struct ThreadedCode(Box<[Threaded]>);

impl ThreadedCode {
    pub(super) fn new(insts: &[Inst]) -> Self {
        let (mut offset_bytes, mut code) = (0, Vec::with_capacity(insts.len() + 1));
        for (index, &inst) in (0..).zip(insts) {
            code.push(Threaded { run: run_of(inst.op), inst, offset_bytes, index });
            offset_bytes += u16::from(inst.len);
        }
        let inst = Inst { op: Op::Illegal, rd: 0, rs1: 0, rs2: 0, rs3: 0, rm: 0, len: 0, imm: 0 };
        code.push(Threaded { run: leave, inst, offset_bytes, index: insts.len() as u16 });
        Self(code.into())
    }

    /// The instructions.
    pub(super) fn insts(&self) -> impl Iterator<Item = &Inst> {
        self.0[..self.0.len() - 1].iter().map(|threaded| &threaded.inst)
    }

    /// Its size in bytes.
    pub(super) fn len_bytes(&self) -> usize {
        size_of_val(&*self.0)
    }

    /// Runs the block, the bytes of which are `own`, on `hart`.
    #[inline]
    pub(super) fn run(&self, hart: &mut Hart, window: &Window, own: &OwnBytes) -> End {
        let first = self.0.as_ptr();
        // SAFETY: the sequence is never empty.
        unsafe { ((*first).run)(first, hart, window, own) }
    }
}

/// An operation as a type.
trait Operation {
    const OP: Op;
}

/// Runs an instruction of the operation `O`.
///
/// # Safety
///
/// `at` is an instruction of a sequence, and not its last.
unsafe fn run<O: Operation>(at: *const Threaded, hart: &mut Hart, window: &Window, own: &OwnBytes) -> End {
    // SAFETY: by this function's contract.
    let Threaded { inst, offset_bytes, index, .. } = unsafe { &*at };
    let pc = own.start.wrapping_add(u64::from(*offset_bytes));
    // The result of an AMO may overwrite the address.
    let addr = hart.x[usize::from(inst.rs1 & 31)].wrapping_add(inst.imm as i64 as u64);
    if O::OP.reads_counters() {
        hart.instret = hart.instret.wrapping_add(u64::from(*index));
    }
    let after = effect(O::OP, inst, pc, hart, window);
    if O::OP.reads_counters() {
        hart.instret = hart.instret.wrapping_sub(u64::from(*index));
    }
    let (pc, retired, end) = match after {
        Ok(After::Next) => {
            // A store into the block itself: the next instructions may have changed.
            if O::OP.stores() && own.is_overwritten(addr, O::OP.stored_bytes()) {
                (pc.wrapping_add(u64::from(inst.len)), index + 1, End::Next)
            } else {
                let next = at.wrapping_add(1);
                // SAFETY: there is a next one, by this function's contract.
                return unsafe { ((*next).run)(next, hart, window, own) };
            }
        }
        Ok(After::Jump(target)) => (target, index + 1, End::Next),
        Ok(After::FenceI) => (pc.wrapping_add(u64::from(inst.len)), index + 1, End::FenceI),
        Err(_) => (pc, *index, End::Trap),
    };
    hart.pc = pc;
    hart.instret = hart.instret.wrapping_add(u64::from(retired));
    end
}

/// The end of a sequence.
unsafe fn leave(at: *const Threaded, hart: &mut Hart, _: &Window, own: &OwnBytes) -> End {
    // SAFETY: the caller's `at` is the last of a sequence.
    let Threaded { offset_bytes, index, .. } = unsafe { &*at };
    hart.pc = own.start.wrapping_add(u64::from(*offset_bytes));
    hart.instret = hart.instret.wrapping_add(u64::from(*index));
    End::Next
}

macro_rules! define_run_of {
    ($($op:ident,)*) => {
        /// The function of an operation.
        fn run_of(op: Op) -> Run {
            match op {
                $(Op::$op => {
                    struct This;
                    impl Operation for This {
                        const OP: Op = Op::$op;
                    }
                    run::<This>
                })*
            }
        }
    };
}
each_op!(define_run_of);

#[cfg(test)]
mod tests {
    use codewarden::addr::{HostAddr, HostRange, PageSize};
    use codewarden::protection::Access;

    use super::*;
    use crate::linux::host_memory;
    use crate::memory::host_fault;
    use crate::memory::window::PAGE_LEN_BYTES;
    use crate::riscv::decode::decode;

    const START: u64 = 0x1_0000;
    /// addi x1, x1, 1
    const COUNT: u32 = 0x0010_8093;
    /// sw x0, 0(x2)
    const STORE: u32 = 0x0001_2023;
    /// csrr x3, instret
    const READ_COUNT: u32 = 0xc020_21f3;
    /// jal x4, -8
    const BACK: u32 = 0xff9f_f26f;
    const FENCE_I: u32 = 0x0000_100f;

    fn window() -> Window {
        host_fault::install().unwrap();
        let window = Window::reserve().unwrap();
        let host = HostAddr(window.base() as usize + START as usize);
        let range = HostRange::new(host, PAGE_LEN_BYTES as usize, PageSize::host()).unwrap();
        host_memory::protect(range, Access::ReadWrite).unwrap();
        window
    }

    /// Runs a block with x2 = `addr`; returns its end and the hart.
    fn run(code: &[u32], own_stores: OwnStores, addr: u64) -> (End, Hart) {
        let insts: Vec<Inst> = code.iter().map(|&bits| decode(bits)).collect();
        let own = OwnBytes { start: START, len_bytes: 4 * code.len() as u64, own_stores };
        let mut hart = Hart::new(START);
        (hart.x[2], hart.instret) = (addr, 100);
        let end = ThreadedCode::new(&insts).run(&mut hart, &window(), &own);
        (end, hart)
    }

    #[test]
    fn each_end_leaves_the_pc_and_the_count() {
        let (end, hart) = run(&[COUNT; 3], OwnStores::Ignore, 0);
        assert_eq!((end, hart.pc, hart.x[1], hart.instret), (End::Next, START + 12, 3, 103));
        let (end, hart) = run(&[COUNT, COUNT, BACK], OwnStores::Ignore, 0);
        assert_eq!((end, hart.pc, hart.x[4], hart.instret), (End::Next, START, START + 12, 103));
        let (end, hart) = run(&[COUNT, FENCE_I], OwnStores::Ignore, 0);
        assert_eq!((end, hart.pc, hart.instret), (End::FenceI, START + 8, 102));
    }

    #[test]
    fn a_refused_instruction_has_no_effect() {
        let (end, hart) = run(&[COUNT, STORE, COUNT], OwnStores::Ignore, 0x10);
        assert_eq!((end, hart.pc, hart.x[1], hart.instret), (End::Trap, START + 4, 1, 101));
    }

    #[test]
    fn the_count_is_exact_in_the_middle_of_a_block() {
        let (_, hart) = run(&[COUNT, COUNT, READ_COUNT, COUNT], OwnStores::Ignore, 0);
        assert_eq!((hart.x[3], hart.instret), (102, 104));
    }

    #[test]
    fn a_store_into_the_block_is_its_last_instruction() {
        for offset in 0..12 {
            let (end, hart) = run(&[COUNT, STORE, COUNT], OwnStores::Compare, START + offset);
            assert_eq!((end, hart.pc, hart.x[1], hart.instret), (End::Next, START + 8, 1, 102), "{offset}");
        }
        let (_, hart) = run(&[COUNT, STORE, COUNT], OwnStores::Compare, START + 12);
        assert_eq!((hart.pc, hart.x[1], hart.instret), (START + 12, 2, 103));
    }
}
