//! The faults of the guest's instructions: the signal of each, and the sentence about one that ends
//! the guest.
//!
//! A real process that dies of a fault is reported by its shell, and the kernel's log has the
//! addresses. Without the sentence, a shell's "Segmentation fault" may mean the guest or the
//! emulator.

use std::fmt;

use crate::memory::{Fault, FaultKind};
use crate::riscv::trap::Trap;

const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const BUS_ADRALN: i32 = 1;
const BUS_ADRERR: i32 = 2;
const ILL_ILLOPC: i32 = 1;
const TRAP_BRKPT: i32 = 1;

/// A fault and its signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GuestFault {
    trap: Trap,
    /// Address of the instruction.
    pc: u64,
    /// The signal's number.
    pub signal: i32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: u64,
}

impl GuestFault {
    /// The fault behind `trap` at `pc`; a system call is none. `is_mapped` says whether the guest has
    /// a mapping at an address.
    pub(super) fn of(trap: Trap, pc: u64, is_mapped: impl FnOnce(u64) -> bool) -> Option<Self> {
        let (signal, code, address) = match trap {
            Trap::Ecall => return None,
            Trap::Ebreak => (libc::SIGTRAP, TRAP_BRKPT, pc),
            Trap::Illegal(_) => (libc::SIGILL, ILL_ILLOPC, pc),
            Trap::LoadMisaligned(address) | Trap::StoreMisaligned(address) => (libc::SIGBUS, BUS_ADRALN, address),
            Trap::LoadFault(fault) | Trap::StoreFault(fault) | Trap::FetchFault(fault) => match fault.kind {
                FaultKind::Bus => (libc::SIGBUS, BUS_ADRERR, fault.addr),
                FaultKind::Segv if is_mapped(fault.addr) => (libc::SIGSEGV, SEGV_ACCERR, fault.addr),
                FaultKind::Segv => (libc::SIGSEGV, SEGV_MAPERR, fault.addr),
            },
        };
        Some(Self { trap, pc, signal, code, address })
    }

    /// The reason why memory refused an access.
    fn refusal(&self) -> &'static str {
        match (self.signal, self.code) {
            (libc::SIGBUS, _) => "which is beyond the end of its file",
            (_, SEGV_MAPERR) => "where no memory is mapped",
            _ => "which the protection of its page forbids",
        }
    }
}

impl fmt::Display for GuestFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pc = self.pc;
        match self.trap {
            Trap::Ecall => write!(f, "the guest died at pc {pc:#x}"),
            Trap::Ebreak => write!(f, "the guest died of SIGTRAP: the instruction at pc {pc:#x} is a breakpoint"),
            Trap::Illegal(bits) => {
                write!(f, "the guest died of SIGILL: the bits {bits:#x} at pc {pc:#x} are no valid instruction")
            }
            Trap::LoadMisaligned(address) | Trap::StoreMisaligned(address) => write!(
                f,
                "the guest died of SIGBUS: the atomic instruction at pc {pc:#x} used the misaligned address {address:#x}"
            ),
            Trap::LoadFault(Fault { addr, .. })
            | Trap::StoreFault(Fault { addr, .. })
            | Trap::FetchFault(Fault { addr, .. }) => {
                let signal = if self.signal == libc::SIGBUS { "SIGBUS" } else { "SIGSEGV" };
                let action = match self.trap {
                    Trap::LoadFault(_) => "read",
                    Trap::StoreFault(_) => "wrote to",
                    _ => "was fetched from",
                };
                let why = self.refusal();
                write!(f, "the guest died of {signal}: the instruction at pc {pc:#x} {action} address {addr:#x}, {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(trap: Trap) -> GuestFault {
        GuestFault::of(trap, 0x1000, |address| address == 0x2000).unwrap()
    }

    #[test]
    fn each_fault_has_its_signal_and_its_sentence() {
        let at = |addr, kind| Fault { addr, kind };
        let cases = [
            (Trap::Ebreak, (libc::SIGTRAP, TRAP_BRKPT, 0x1000), "of SIGTRAP: the instruction at pc 0x1000 is"),
            (Trap::Illegal(0x1f), (libc::SIGILL, ILL_ILLOPC, 0x1000), "of SIGILL: the bits 0x1f at pc 0x1000"),
            (Trap::LoadMisaligned(0x31), (libc::SIGBUS, BUS_ADRALN, 0x31), "of SIGBUS: the atomic instruction at pc"),
            (
                Trap::LoadFault(at(0x10, FaultKind::Segv)),
                (libc::SIGSEGV, SEGV_MAPERR, 0x10),
                "of SIGSEGV: the instruction at pc 0x1000 read address 0x10, where no memory is mapped",
            ),
            (
                Trap::StoreFault(at(0x2000, FaultKind::Segv)),
                (libc::SIGSEGV, SEGV_ACCERR, 0x2000),
                "of SIGSEGV: the instruction at pc 0x1000 wrote to address 0x2000, which the protection",
            ),
            (
                Trap::FetchFault(at(0x2000, FaultKind::Bus)),
                (libc::SIGBUS, BUS_ADRERR, 0x2000),
                "of SIGBUS: the instruction at pc 0x1000 was fetched from address 0x2000, which is beyond the end",
            ),
        ];
        for (trap, expected, sentence) in cases {
            let fault = fault(trap);
            assert_eq!((fault.signal, fault.code, fault.address), expected);
            let text = fault.to_string();
            assert!(text.starts_with("the guest died ") && text.contains(sentence), "{text}");
        }
        assert_eq!(GuestFault::of(Trap::Ecall, 0, |_| true), None);
    }
}
