//! How a system call's arguments are to be read: for handing them to the host,
//! and for printing them.

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
    /// The kernel reads that many bytes there.
    In(u32),
    /// The kernel writes that many bytes there.
    Out(u32),
    /// The kernel reads as many bytes there as another argument says.
    InLen(u8),
    /// The kernel writes up to as many bytes there as another argument says.
    OutLen(u8),
    /// As many as the 32-bit word says that another argument points to.
    OutLenAt(u8),
    /// A guest address that the call's own code deals with.
    Address,
}

/// What makes a call.
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
    /// Who makes it.
    pub(super) handler: Handler,
    /// Its arguments.
    pub(super) args: &'static [Arg],
}
