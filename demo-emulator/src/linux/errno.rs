//! Error numbers, and the other reasons why a system call returns no value.
//!
//! RISC-V and x86-64 share the asm-generic numbers, so the guest gets host errnos unchanged.

use super::clone::CloneRequest;

/// A positive errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

macro_rules! names {
    ($($name:ident)*) => { impl Errno { $(#[doc = stringify!($name)] pub const $name: Self = Self(libc::$name);)* } };
}

names! { E2BIG EACCES EAGAIN EBADF ECHILD EEXIST EFAULT EINTR EINVAL EISDIR ELOOP EMFILE ENAMETOOLONG
ENODEV ENOENT ENOEXEC ENOMEM ENOSYS ENOTDIR ENOTTY EOPNOTSUPP EPERM ERANGE ESRCH ETXTBSY }

impl Errno {
    /// The last error of a libc call on this thread.
    pub fn last() -> Self {
        Self::from(std::io::Error::last_os_error())
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(error: rustix::io::Errno) -> Self {
        Self(error.raw_os_error())
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // std adds the number to the text; the caller prints it already.
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// The reason why a system call gives the guest no plain result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It failed.
    Errno(Errno),
    /// A signal came first: deliver it, then run the same `ecall` again.
    Restart,
    /// The guest's registers were replaced as a whole (`rt_sigreturn`).
    Registers,
    /// This thread ends.
    ThreadExit(i32),
    /// The caller must start a thread; its id is the result.
    Spawn(CloneRequest),
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// The result of a system call: `a0`, or the reason why there is none.
pub type SysResult = Result<u64, Stop>;
