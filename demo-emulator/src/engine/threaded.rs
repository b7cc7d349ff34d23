//! Threaded code: the form in which tier 0 keeps instructions.
//!
//! Each decoded instruction has the address of a function that runs it, and that goes on to the
//! next instruction's by a jump. There is one function for each operation: the definition of all
//! instructions ([`effect`]) with the operation fixed, so the compiler keeps the code of that
//! operation alone. The most frequent pairs have one function for both. Neither `hart.pc` nor `hart.instret` is written before the end of the block.
//!
//! The compiler makes the last call of a function a jump when it optimises. Otherwise the calls
//! nest, as deep as the block has instructions.
//!
//! # Safety
//!
//! A sequence ends with an instruction that leaves, so a function that goes on has a next one. Only
//! [`ThreadedBlock::run`] starts it, and keeps it alive by its borrow.
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

/// Runs the instruction, which is at `pc`, and those behind it.
type Run = unsafe fn(at: *const Threaded, pc: u64, hart: &mut Hart, window: &Window, block: &ThreadedBlock) -> End;

/// An instruction of a sequence; small, since the speed of code that runs seldom is that of the
/// processor's caches. `run` stands for the operation.
#[derive(Clone, Copy, Debug)]
struct Threaded {
    run: Run,
    rd: u8,
    rs1: u8,
    rs2: u8,
    len: u8,
    /// The immediate; `rs3` and `rm` of an operation that has those.
    rest: i32,
}

const _: () = assert!(size_of::<Threaded>() == 16);

impl Threaded {
    fn new(run: Run, inst: &Inst) -> Self {
        let &Inst { rd, rs1, rs2, len, .. } = inst;
        let rest = if inst.op.has_rs3_or_rm() { i32::from(inst.rs3) | i32::from(inst.rm) << 8 } else { inst.imm };
        Self { run, rd, rs1, rs2, len, rest }
    }

    /// The instruction again.
    #[inline(always)]
    fn inst(&self, op: Op) -> Inst {
        let &Self { rd, rs1, rs2, len, rest, .. } = self;
        let (rs3, rm, imm) = if op.has_rs3_or_rm() { (rest as u8, (rest >> 8) as u8, 0) } else { (0, 0, rest) };
        Inst { op, rd, rs1, rs2, rs3, rm, len, imm }
    }
}

/// The instructions of a block, and its place.
#[derive(Debug)]
pub(super) struct ThreadedBlock {
    code: Box<[Threaded]>,
    own: OwnBytes,
}

impl ThreadedBlock {
    pub(super) fn new(insts: &[Inst], own: OwnBytes) -> Self {
        let mut code = Vec::with_capacity(insts.len() + 1);
        for (index, inst) in insts.iter().enumerate() {
            let pair = insts.get(index + 1).and_then(|next| pair_of(inst.op, next.op));
            let threaded = Threaded::new(pair.unwrap_or_else(|| run_of(inst.op)), inst);
            debug_assert_eq!(threaded.inst(inst.op), *inst, "nothing is lost");
            code.push(threaded);
        }
        code.push(Threaded { run: leave, rd: 0, rs1: 0, rs2: 0, len: 0, rest: 0 });
        Self { code: code.into(), own }
    }

    /// Its place.
    pub(super) fn own(&self) -> &OwnBytes {
        &self.own
    }

    /// The size of its instructions in bytes.
    pub(super) fn code_bytes(&self) -> usize {
        size_of_val(&*self.code)
    }

    /// Runs it on `hart`.
    #[inline]
    pub(super) fn run(&self, hart: &mut Hart, window: &Window) -> End {
        let first = self.code.as_ptr();
        // SAFETY: the sequence is never empty.
        unsafe { ((*first).run)(first, self.own.start, hart, window, self) }
    }

    /// How many instructions are before `at`.
    fn index(&self, at: *const Threaded) -> u64 {
        (at.addr() - self.code.as_ptr().addr()) as u64 / size_of::<Threaded>() as u64
    }
}

/// An operation as a type.
trait Operation {
    const OP: Op;
}

/// Runs one instruction of the operation `O`, at `pc`. `None`: the hart goes on to the next one.
#[inline(always)]
fn step<O: Operation>(at: &Threaded, pc: u64, hart: &mut Hart, window: &Window, block: &ThreadedBlock) -> Option<End> {
    let inst = at.inst(O::OP);
    // The result of an AMO may overwrite it.
    let base = hart.x[usize::from(inst.rs1 & 31)];
    if O::OP.reads_counters() {
        hart.instret = hart.instret.wrapping_add(block.index(at));
    }
    let after = effect(O::OP, &inst, pc, hart, window);
    if O::OP.reads_counters() {
        hart.instret = hart.instret.wrapping_sub(block.index(at));
    }
    let next = pc.wrapping_add(u64::from(inst.len));
    let (pc, retired, end) = match after {
        Ok(After::Next) => {
            // A store into the block itself: the next instructions may have changed.
            if !O::OP.stores() || !block.own.is_overwritten(inst.address(base), O::OP.stored_bytes()) {
                return None;
            }
            (next, 1, End::Next)
        }
        Ok(After::Jump(target)) => (target, 1, End::Next),
        Ok(After::FenceI) => (next, 1, End::FenceI),
        Err(_) => (pc, 0, End::Trap),
    };
    hart.pc = pc;
    hart.instret = hart.instret.wrapping_add(block.index(at) + retired);
    Some(end)
}

/// Runs an instruction of the operation `O`, and those behind it.
///
/// # Safety
///
/// `at` is an instruction of `block`, and not its last.
#[inline(always)]
unsafe fn run<O: Operation>(
    at: *const Threaded,
    pc: u64,
    hart: &mut Hart,
    window: &Window,
    block: &ThreadedBlock,
) -> End {
    // SAFETY: by this function's contract; so there is a next one.
    unsafe {
        if let Some(end) = step::<O>(&*at, pc, hart, window, block) {
            return end;
        }
        let (next, pc) = (at.add(1), pc.wrapping_add(u64::from((*at).len)));
        ((*next).run)(next, pc, hart, window, block)
    }
}

/// Runs two instructions, and those behind them. A processor predicts the jump from one function to
/// the next badly, so the most frequent pairs have functions of their own.
///
/// # Safety
///
/// `at` and the instruction behind it are of `block`, and neither is its last.
unsafe fn run_pair<O: Operation, P: Operation>(
    at: *const Threaded,
    pc: u64,
    hart: &mut Hart,
    window: &Window,
    block: &ThreadedBlock,
) -> End {
    // SAFETY: by this function's contract; so there is a second one, and it is not the last.
    unsafe {
        if let Some(end) = step::<O>(&*at, pc, hart, window, block) {
            return end;
        }
        run::<P>(at.add(1), pc.wrapping_add(u64::from((*at).len)), hart, window, block)
    }
}

/// The end of a sequence.
unsafe fn leave(at: *const Threaded, pc: u64, hart: &mut Hart, _: &Window, block: &ThreadedBlock) -> End {
    hart.pc = pc;
    hart.instret = hart.instret.wrapping_add(block.index(at));
    End::Next
}

macro_rules! define_run_of {
    ($($op:ident,)*) => {
        $(
            /// The operation as a type.
            #[allow(non_camel_case_types)]
            struct $op;
            impl Operation for $op {
                const OP: Op = Op::$op;
            }
        )*

        /// The function of an operation.
        fn run_of(op: Op) -> Run {
            match op {
                $(Op::$op => run::<$op>,)*
            }
        }
    };
}
each_op!(define_run_of);

macro_rules! define_pair_of {
    ([$($first:ident)*] $seconds:tt) => {
        /// The function of a frequent pair.
        fn pair_of(first: Op, second: Op) -> Option<Run> {
            match first {
                $(Op::$first => second_of!($first, second, $seconds),)*
                _ => None,
            }
        }
    };
}
macro_rules! second_of {
    ($first:ident, $second:ident, [$($op:ident)*]) => {
        match $second {
            $(Op::$op => Some(run_pair::<$first, $op> as Run),)*
            _ => None,
        }
    };
}
define_pair_of! {
    [Ld Sd Addi Lw Sw Lbu Add Sub Slli Srli Andi And Or Addiw Lui Auipc]
    [Ld Sd Addi Lw Sw Lbu Add Sub Slli Srli Andi And Or Addiw Lui Auipc Beq Bne Blt Bge Bltu Bgeu Jal Jalr]
}

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
        let end = ThreadedBlock::new(&insts, own).run(&mut hart, &window());
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

    #[test]
    fn nothing_of_an_instruction_is_lost() {
        let mut bits: u32 = 1;
        for _ in 0..2_000_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            for inst in [decode(bits.rotate_left(13) | 3), decode(bits >> 16)] {
                assert_eq!(Threaded::new(leave, &inst).inst(inst.op), inst);
            }
        }
    }

    #[test]
    fn pairs_and_single_instructions_do_the_same() {
        // add x5, x5, x1
        let add = 0x0012_82b3;
        for code in [vec![COUNT; 5], vec![COUNT, add, COUNT, FENCE_I], vec![COUNT, READ_COUNT, COUNT, BACK]] {
            let (end, hart) = run(&code, OwnStores::Ignore, 0);
            let mut single = Hart::new(START);
            single.instret = 100;
            let mut last = Ok(crate::riscv::trap::Flow::Next);
            for &bits in &code {
                last = crate::riscv::exec::exec(&decode(bits), &mut single, &window());
            }
            assert!(last.is_ok() && end != End::Trap);
            assert_eq!((hart.x[1], hart.x[3], hart.x[5]), (single.x[1], single.x[3], single.x[5]));
            assert_eq!((hart.pc, hart.instret), (single.pc, single.instret));
        }
    }
}
