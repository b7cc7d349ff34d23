//! The kinds of a system call's arguments: to pass them to the host, and to print them.

use super::super::errno::SysResult;
use super::super::thread::Thread;

/// One argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Arg {
    /// A signed number, a descriptor.
    Int,
    /// Flags.
    Hex,
    /// A file mode.
    Octal,
    /// A directory's descriptor, or AT_FDCWD.
    Dir,
    /// A path, looked up below the sysroot first.
    Path,
    /// A string that ends with NUL.
    Text,
    /// The kernel reads that many bytes at the address.
    In(u32),
    /// The kernel writes that many bytes at the address.
    Out(u32),
    /// The kernel reads as many bytes at the address as another argument says.
    InLen(u8),
    /// The kernel writes up to as many bytes at the address as another argument says.
    OutLen(u8),
    /// As `OutLen`, but the other argument points to the length, a 32-bit word.
    OutLenAt(u8),
    /// A guest address; the call's own code translates it.
    Address,
}

/// The code that makes a call.
#[derive(Clone, Copy)]
pub(super) enum Handler {
    /// The host's call of that number, with pointers translated.
    Host(i64),
    /// Code of its own, with the guest's arguments.
    Own(fn(&mut Thread, [u64; 6]) -> SysResult),
}

/// One system call of riscv64 Linux.
#[derive(Clone, Copy)]
pub(super) struct Spec {
    /// Its number there.
    pub(super) number: u16,
    /// Its name.
    pub(super) name: &'static str,
    /// The code that makes it.
    pub(super) handler: Handler,
    /// Its arguments.
    pub(super) args: &'static [Arg],
}
