//! The guest: its instructions, and the x86-64 code of each.
//!
//! Emitted code has the vCPU's [`State`] in rbx, the guest's memory in r12 and the vCPU's
//! front in r13. It always leaves the next pc in the state.

use std::mem::offset_of;
use std::sync::atomic::AtomicU8;

use codewarden::{EntryCell, FRONT_SLOTS};

/// Size of the guest's memory. Addresses are masked to it.
pub(crate) const MEMORY: usize = 1 << 16;
const MASK: u32 = MEMORY as u32 - 4;

/// A guest instruction, four bytes: a number, a register, an operation.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    /// Ends the vCPU. All zeroes.
    Halt,
    /// r += number
    Add(u8, i16),
    /// Stores the lower half of the second register at the address in the first one.
    Store(u8, u8),
    /// Goes to the instruction that many further on, if r is not 0.
    Branch(u8, i16),
    /// Goes to the address in r.
    Jump(u8),
    /// Makes earlier stores to code take effect.
    Fence,
    /// A system call: reads that many bytes of input to the address in r.
    Read(u8, i16),
}

impl Op {
    pub(crate) fn encode(self) -> u32 {
        let (op, r, number) = match self {
            Op::Halt => (0, 0, 0),
            Op::Add(r, number) => (1, r, number),
            Op::Store(r, s) => (2, r, s.into()),
            Op::Branch(r, distance) => (3, r, distance),
            Op::Jump(r) => (4, r, 0),
            Op::Fence => (5, 0, 0),
            Op::Read(r, len) => (6, r, len),
        };
        let [low, high] = number.to_le_bytes();
        u32::from_le_bytes([low, high, r, op])
    }

    pub(crate) fn decode([low, high, r, op]: [u8; 4]) -> Self {
        let (r, number) = (r % 8, i16::from_le_bytes([low, high]));
        match op {
            1 => Op::Add(r, number),
            2 => Op::Store(r, low % 8),
            3 => Op::Branch(r, number),
            4 => Op::Jump(r),
            5 => Op::Fence,
            6 => Op::Read(r, number),
            _ => Op::Halt,
        }
    }

    /// The pcs that it leads to from `pc`, except through the dispatcher.
    pub(crate) fn leads_to(self, pc: u64) -> Vec<u64> {
        let next = aligned(pc + 4);
        match self {
            Op::Add(..) | Op::Store(..) => vec![next],
            Op::Branch(_, distance) => vec![target(pc, distance), next],
            _ => Vec::new(),
        }
    }

    /// Whether it is the last one of its block.
    pub(crate) fn ends_block(self) -> bool {
        !matches!(self, Op::Add(..) | Op::Store(..))
    }
}

/// An address as this guest masks it.
pub(crate) fn aligned(address: u64) -> u64 {
    address & u64::from(MASK)
}

/// The target of a branch at `pc`.
pub(crate) fn target(pc: u64, distance: i16) -> u64 {
    aligned(pc.wrapping_add_signed(4 * i64::from(distance)))
}

/// A vCPU's registers, as emitted code finds them.
#[repr(C)]
pub(crate) struct State {
    pub(crate) regs: [u64; 8],
    pub(crate) pc: u64,
    /// Emitted code returns to the dispatcher soon if this is not 0.
    pub(crate) leave: *const AtomicU8,
}
const PC: u8 = offset_of!(State, pc) as u8;
const LEAVE: u8 = offset_of!(State, leave) as u8;

/// The reasons for which emitted code returns: look the pc up; interpret one instruction
/// there; the block there does not match its bytes.
pub(crate) const LOOK_UP: u32 = 0;
pub(crate) const INTERPRET: u32 = 1;
pub(crate) const CHECK_FAILED: u32 = 2;

/// Emitted code, and its exit.
pub(crate) struct Asm {
    pub(crate) code: Vec<u8>,
    /// The code that returns to the dispatcher.
    pub(crate) exit: usize,
}

impl Asm {
    pub(crate) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.code.extend_from_slice(bytes);
        self
    }

    pub(crate) fn imm32(&mut self, number: u32) -> &mut Self {
        self.put(&number.to_le_bytes())
    }

    fn imm64(&mut self, number: usize) -> &mut Self {
        self.put(&number.to_le_bytes())
    }

    fn set_pc(&mut self, pc: u64) -> &mut Self {
        self.put(&[0x48, 0xc7, 0x43, PC]).imm32(pc as u32) //              mov qword [pc], imm
    }

    fn back(&mut self, why: u32) -> &mut Self {
        self.put(&[0xb8]).imm32(why); //                                   mov eax, why
        let exit = self.exit;
        self.put(&[0x48, 0xb9]).imm64(exit).put(&[0xff, 0xe1]) //          mov rcx, exit; jmp rcx
    }

    /// Emits the code of `emit`, and skips it if the comparison `test` finds equal.
    fn unless_equal<T>(&mut self, test: &[u8], emit: impl FnOnce(&mut Self) -> T) -> T {
        self.put(test).put(&[0x74, 0]); //                                 je over
        let from = self.code.len();
        let emitted = emit(self);
        self.code[from - 1] = (self.code.len() - from) as u8;
        emitted
    }

    fn poll_leave(&mut self) {
        self.put(&[0x48, 0x8b, 0x43, LEAVE]); //                           mov rax, [leave]
        self.unless_equal(&[0x80, 0x38, 0x00], |asm| _ = asm.back(LOOK_UP)); // cmp byte [rax], 0
    }

    /// Jumps to the present entry of the block of `to`, or to a stub.
    fn chain(&mut self, to: u64, cell: *const EntryCell) {
        self.set_pc(to).poll_leave();
        self.put(&[0x48, 0xb8]).imm64(cell as usize); //               mov rax, cell
        self.put(&[0xff, 0x20]); //                                        jmp [rax]
    }

    /// A block of `words` at `pc`: its self-checking entry, then its plain one, at the offsets that
    /// it returns. `stale` is its stale flag, if stores must poll it. `cells` has a cell for each
    /// pc that the last instruction leads to.
    pub(crate) fn block(
        &mut self,
        pc: u64,
        words: &[[u8; 4]],
        stale: Option<*const u8>,
        cells: &[*const EntryCell],
    ) -> [usize; 2] {
        self.set_pc(pc).back(CHECK_FAILED);
        let checked = self.code.len();
        for (at, word) in (pc as u32..).step_by(4).zip(words) {
            self.put(&[0x41, 0x81, 0xbc, 0x24]).imm32(at).put(word); //    cmp dword [r12 + at], word
            let end = self.code.len() as u32 + 6;
            self.put(&[0x0f, 0x85]).imm32(end.wrapping_neg()); //          jne: back, CHECK_FAILED
        }
        let plain = self.code.len();
        let mut last = (Op::Halt, pc);
        for (pc, word) in (pc..).step_by(4).zip(words) {
            last = (Op::decode(*word), pc);
            self.instruction(last.0, pc, stale);
        }
        match (last.0.leads_to(last.1).as_slice(), cells) {
            ([next], [cell]) => self.chain(*next, *cell),
            ([taken, next], [taken_cell, next_cell]) => {
                let Op::Branch(r, _) = last.0 else { return [checked, plain] };
                self.unless_equal(&[0x48, 0x83, 0x7b, 8 * r, 0], |asm| asm.chain(*taken, *taken_cell)); // cmp r, 0
                self.chain(*next, *next_cell);
            }
            _ => {}
        }
        [checked, plain]
    }

    fn instruction(&mut self, op: Op, pc: u64, stale: Option<*const u8>) {
        match op {
            Op::Add(r, number) => _ = self.put(&[0x48, 0x81, 0x43, 8 * r]).imm32(i32::from(number) as u32), // add r, n
            Op::Store(r, s) => {
                self.put(&[0x8b, 0x43, 8 * r, 0x25]).imm32(MASK); //       mov eax, r; and eax, MASK
                self.put(&[0x8b, 0x4b, 8 * s, 0x41, 0x89, 0x0c, 0x04]); // mov ecx, s; mov [r12 + rax], ecx
                if let Some(stale) = stale {
                    self.set_pc(aligned(pc + 4)).put(&[0x48, 0xb8]).imm64(stale as usize); // mov rax, stale
                    self.unless_equal(&[0x80, 0x38, 0x00], |asm| _ = asm.back(LOOK_UP)); // cmp byte [rax], 0
                }
            }
            Op::Branch(..) => {}
            Op::Jump(r) => self.jump(r),
            Op::Halt | Op::Fence | Op::Read(..) => _ = self.set_pc(pc).back(INTERPRET),
        }
    }

    /// Through the vCPU's front to the block at `r`, or to the dispatcher.
    fn jump(&mut self, r: u8) {
        self.put(&[0x8b, 0x43, 8 * r, 0x25]).imm32(MASK); //               mov eax, r; and eax, MASK
        self.put(&[0x48, 0x89, 0x43, PC]).poll_leave(); //                 mov [pc], rax
        self.put(&[0x48, 0x8b, 0x43, PC, 0x89, 0xc1]); //                  mov rax, [pc]; mov ecx, eax
        self.put(&[0xd1, 0xe9, 0x81, 0xe1]).imm32(FRONT_SLOTS as u32 - 1); // shr ecx, 1; and ecx, ...
        self.put(&[0xc1, 0xe1, 0x04, 0x4c, 0x01, 0xe9]); //                shl ecx, 4; add rcx, r13
        self.unless_equal(&[0x48, 0x39, 0x01], |asm| _ = asm.back(LOOK_UP)); // cmp [rcx], rax
        self.put(&[0x48, 0x8b, 0x49, 0x08, 0xff, 0x21]); //                mov rcx, [rcx + 8]; jmp [rcx]
    }
}
