//! The guest: a machine with an accumulator and a counter, and a program that doubles its own
//! operand.

use codewarden::guest_memory::GuestMemory;

/// Bytes of an instruction: operation and operand, 4 bytes each.
pub const BYTES: u64 = 8;
/// The pc of a guest that has ended.
pub const HALTED: u64 = u64::MAX - 1;
/// How often the program goes through its loop.
pub const ROUNDS: u64 = 30;
/// The accumulator in the end: it doubles in each round but the first.
pub const RIGHT: u64 = 1 << (ROUNDS - 1);

/// One instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Adds a number to the accumulator.
    Add(u32),
    /// Stores the accumulator's low 4 bytes at an address.
    Store(u32),
    /// Takes 1 from the counter, and jumps unless that is 0.
    Loop(u32),
    /// Ends the guest.
    Halt,
}

impl Op {
    /// The instruction that `bytes` are. An unknown one ends the guest.
    pub fn decode(bytes: [u8; BYTES as usize]) -> Self {
        let [op, operand] = [0, 4].map(|at| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default()));
        match op {
            0 => Self::Add(operand),
            1 => Self::Store(operand),
            2 => Self::Loop(operand),
            _ => Self::Halt,
        }
    }

    fn encode(self) -> [u8; BYTES as usize] {
        let (op, operand) = match self {
            Self::Add(number) => (0_u32, number),
            Self::Store(address) => (1, address),
            Self::Loop(target) => (2, target),
            Self::Halt => (3, 0),
        };
        let mut bytes = [0; BYTES as usize];
        bytes[..4].copy_from_slice(&op.to_le_bytes());
        bytes[4..].copy_from_slice(&operand.to_le_bytes());
        bytes
    }

    /// Whether a block ends with it. A store may have hit the block itself.
    pub fn ends_block(self) -> bool {
        !matches!(self, Self::Add(_))
    }
}

/// Adds its own operand, stores the sum as the new operand, and loops.
pub fn program() -> Vec<u8> {
    [Op::Add(1), Op::Store(4), Op::Loop(0), Op::Halt].into_iter().flat_map(Op::encode).collect()
}

/// The guest's state, as emitted code finds it.
#[repr(C)]
#[derive(Debug)]
pub struct Cpu {
    /// The accumulator.
    pub accumulator: u64,
    /// Rounds that are left.
    pub counter: u64,
    /// The host address of the guest's address 0.
    pub memory: *mut u8,
}

impl Cpu {
    /// At the start of the program.
    pub fn new(memory: &GuestMemory) -> Self {
        Self { accumulator: 0, counter: ROUNDS, memory: memory.range().start().as_ptr() }
    }

    /// Runs the instruction at `pc` without translating it. Returns the next pc.
    pub fn interpret(&mut self, memory: &GuestMemory, pc: u64) -> u64 {
        let mut bytes = [0; BYTES as usize];
        memory.read(pc as usize, &mut bytes).expect("the pc is in the guest's memory");
        match Op::decode(bytes) {
            Op::Add(number) => self.accumulator += u64::from(number),
            Op::Store(address) => {
                let low = (self.accumulator as u32).to_le_bytes();
                memory.write(address as usize, &low).expect("the address is in the guest's memory");
            }
            Op::Loop(target) => {
                self.counter -= 1;
                if self.counter != 0 {
                    return target.into();
                }
            }
            Op::Halt => return HALTED,
        }
        pc + BYTES
    }
}
