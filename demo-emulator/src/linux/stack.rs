//! The first stack of a program: argv, envp and the auxiliary vector, in the layout of the riscv64
//! Linux ABI.

use crate::memory::Window;
use crate::memory::window::{READ, WINDOW_LEN_BYTES, WRITE};

use super::address_space::{AddressSpace, PAGE_BYTES, Place, Source};
use super::errno::Errno;
use super::processor::LETTERS;
use super::program::Loaded;
use super::user_memory::{Fields, write_bytes};

/// The default of `-s` and of the guest's stack limit.
pub const DEFAULT_STACK_BYTES: u64 = 8 << 20;

const AT_MINSIGSTKSZ: u64 = 51;

/// The program's arguments.
#[derive(Debug)]
pub struct Arguments<'a> {
    /// `argv`.
    pub argv: &'a [Vec<u8>],
    /// `envp`.
    pub envp: &'a [Vec<u8>],
    /// AT_EXECFN: the path that was executed.
    pub exec_path: &'a [u8],
}

/// Maps `stack_bytes` of stack at the top of the window and fills it in; returns the stack pointer.
pub fn build(
    window: &Window,
    space: &mut AddressSpace,
    stack_bytes: u64,
    loaded: &Loaded,
    arguments: &Arguments<'_>,
) -> Result<u64, Errno> {
    let stack_bytes = stack_bytes.next_multiple_of(PAGE_BYTES);
    let bottom = WINDOW_LEN_BYTES - PAGE_BYTES - stack_bytes;
    space.map(Place::FixedNoReplace(bottom), stack_bytes, READ | WRITE, Source::Anonymous)?;
    let mut top = Downwards { window, at: bottom + stack_bytes, bottom };

    let exec_path = top.push_string(arguments.exec_path)?;
    let envp = top.push_strings(arguments.envp)?;
    let argv = top.push_strings(arguments.argv)?;
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random[..], rustix::rand::GetRandomFlags::empty())?;
    let random = top.push(&random)?;
    let auxv = auxv(loaded, exec_path, random);

    let mut words = vec![argv.len() as u64];
    words.extend(argv.iter().chain(&[0]).chain(&envp).chain(&[0]));
    words.extend(auxv.iter().flatten());
    let bytes = Fields::default().u64s(&words).0;
    let pointer = top.at.checked_sub(bytes.len() as u64).map(|at| at & !15).filter(|at| *at >= bottom);
    let pointer = pointer.ok_or(Errno::E2BIG)?;
    write_bytes(window, pointer, &bytes)?;
    Ok(pointer)
}

fn auxv(loaded: &Loaded, exec_path: u64, random: u64) -> Vec<[u64; 2]> {
    let id = |raw: u32| u64::from(raw);
    vec![
        [libc::AT_PHDR, loaded.phdr_address],
        [libc::AT_PHENT, super::elf::PHDR_BYTES as u64],
        [libc::AT_PHNUM, loaded.phdr_count],
        [libc::AT_PAGESZ, PAGE_BYTES],
        [libc::AT_BASE, loaded.interpreter_base],
        [libc::AT_FLAGS, 0],
        [libc::AT_ENTRY, loaded.entry],
        [libc::AT_UID, id(rustix::process::getuid().as_raw())],
        [libc::AT_EUID, id(rustix::process::geteuid().as_raw())],
        [libc::AT_GID, id(rustix::process::getgid().as_raw())],
        [libc::AT_EGID, id(rustix::process::getegid().as_raw())],
        [libc::AT_SECURE, 0],
        // A bit for each extension of one letter.
        [libc::AT_HWCAP, LETTERS.bytes().map(|letter| 1 << (letter - b'A')).sum()],
        [libc::AT_CLKTCK, rustix::param::clock_ticks_per_second()],
        [libc::AT_RANDOM, random],
        [libc::AT_EXECFN, exec_path],
        [AT_MINSIGSTKSZ, super::signal_frame::FRAME_BYTES],
        [libc::AT_NULL, 0],
    ]
}

/// Pushes onto the stack.
struct Downwards<'a> {
    window: &'a Window,
    at: u64,
    bottom: u64,
}

impl Downwards<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<u64, Errno> {
        let at = self.at.checked_sub(bytes.len() as u64).filter(|at| *at >= self.bottom);
        self.at = at.ok_or(Errno::E2BIG)?;
        write_bytes(self.window, self.at, bytes)?;
        Ok(self.at)
    }

    fn push_string(&mut self, string: &[u8]) -> Result<u64, Errno> {
        let mut bytes = string.to_vec();
        bytes.push(0);
        self.push(&bytes)
    }

    /// Pushes strings; they lie in order, the first lowest.
    fn push_strings(&mut self, strings: &[Vec<u8>]) -> Result<Vec<u64>, Errno> {
        let mut addresses = Vec::with_capacity(strings.len());
        for string in strings.iter().rev() {
            addresses.push(self.push_string(string)?);
        }
        addresses.reverse();
        Ok(addresses)
    }
}
