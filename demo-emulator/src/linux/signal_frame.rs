//! The signal frame of riscv64 Linux: `struct rt_sigframe`, and the trampoline page that a handler
//! returns to.
//!
//! ```text
//! offset    0  siginfo_t, 128 bytes
//!         128  uc_flags, uc_link
//!         144  uc_stack: ss_sp, ss_flags, ss_size
//!         168  uc_sigmask, room for 1024 signals up to 296
//!         304  sigcontext (aligned to 16): pc, x1 to x31
//!         560  f0 to f31, fcsr; as large as the quad-precision state: 528 bytes
//!        1088  end
//! ```
//!
//! The last words of the floating-point area are the header of the first extension's record: zero,
//! because there is none.

use crate::hart::Hart;
use crate::memory::Window;

use super::errno::Errno;
use super::host_signals::{SIGINFO_BYTES, SigSet};
use super::user_memory::{Fields, half_at, read_array, word_at, write_bytes};

/// Size of the frame in bytes.
pub const FRAME_BYTES: u64 = 1088;

const STACK_OFFSET: usize = 144;
const MASK_OFFSET: usize = 168;
const REGISTERS_OFFSET: usize = 304;
const FLOATS_OFFSET: usize = 560;
const FCSR_OFFSET: usize = FLOATS_OFFSET + 32 * 8;

/// `li a7, 139; ecall`: rt_sigreturn.
pub const TRAMPOLINE: [u8; 8] = [0x93, 0x08, 0xb0, 0x08, 0x73, 0x00, 0x00, 0x00];

/// The guest's alternate signal stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AltStack {
    /// Lowest address.
    pub start: u64,
    /// `SS_DISABLE` if there is none.
    pub flags: u32,
    /// In bytes.
    pub len_bytes: u64,
}

/// `SS_DISABLE`.
pub const SS_DISABLE: u32 = 2;
/// `SS_ONSTACK`.
pub const SS_ONSTACK: u32 = 1;

impl AltStack {
    /// None.
    pub const DISABLED: Self = Self { start: 0, flags: SS_DISABLE, len_bytes: 0 };

    /// Whether `stack_pointer` is on it.
    pub fn holds(&self, stack_pointer: u64) -> bool {
        self.flags & SS_DISABLE == 0 && stack_pointer > self.start && stack_pointer - self.start <= self.len_bytes
    }

    /// As `stack_t`, with the flags that it has for `stack_pointer`.
    pub fn to_bytes(self, stack_pointer: u64) -> Vec<u8> {
        let flags = if self.holds(stack_pointer) { SS_ONSTACK } else { self.flags };
        Fields::default().u64s(&[self.start]).u32s(&[flags, 0]).u64s(&[self.len_bytes]).0
    }
}

/// Writes a frame at `at`.
pub fn write(
    window: &Window,
    at: u64,
    hart: &Hart,
    info: &[u8; SIGINFO_BYTES],
    mask: SigSet,
    stack: AltStack,
) -> Result<(), Errno> {
    let mut fields = Fields(info.to_vec()).u64s(&[0, 0]);
    fields.0.extend(stack.to_bytes(hart.x[2]));
    let fields = fields.u64s(&[mask]).padded_to(REGISTERS_OFFSET);
    let fields = fields.u64s(&[hart.pc]).u64s(&hart.x[1..]).u64s(&hart.f);
    let fcsr = u32::from(hart.frm) << 5 | u32::from(hart.fflags);
    write_bytes(window, at, &fields.u32s(&[fcsr]).padded_to(FRAME_BYTES as usize).0)
}

/// Restores the registers from the frame at `at`; returns mask and stack.
pub fn restore(window: &Window, at: u64, hart: &mut Hart) -> Result<(SigSet, AltStack), Errno> {
    let frame: [u8; FRAME_BYTES as usize] = read_array(window, at)?;
    hart.pc = word_at(&frame, REGISTERS_OFFSET) & !1;
    for register in 1..32 {
        hart.x[register] = word_at(&frame, REGISTERS_OFFSET + 8 * register);
    }
    for register in 0..32 {
        hart.f[register] = word_at(&frame, FLOATS_OFFSET + 8 * register);
    }
    let fcsr = half_at(&frame, FCSR_OFFSET);
    hart.fflags = (fcsr & 0x1f) as u8;
    hart.frm = (fcsr >> 5 & 7) as u8;
    hart.reserved = 0;
    let stack = AltStack {
        start: word_at(&frame, STACK_OFFSET),
        flags: half_at(&frame, STACK_OFFSET + 8),
        len_bytes: word_at(&frame, STACK_OFFSET + 16),
    };
    Ok((word_at(&frame, MASK_OFFSET), stack))
}
