//! The guest's questions about its machine.

use super::super::errno::{Errno, SysResult};
use super::super::processor;
use super::super::thread::Thread;
use super::super::user_memory::{Fields, read_array, word_at, write_bytes};

const NOT_RANDOMIZED: u32 = libc::ADDR_NO_RANDOMIZE as u32;

/// uname: the host's, on a riscv64 machine.
pub(super) fn uname(thread: &mut Thread, [buffer, ..]: [u64; 6]) -> SysResult {
    /// Each of six fields.
    const FIELD_BYTES: usize = 65;
    let host = rustix::system::uname();
    let fields = [host.sysname(), host.nodename(), host.release(), host.version(), c"riscv64", host.domainname()];
    let mut bytes = Vec::new();
    for (index, field) in fields.into_iter().enumerate() {
        let field = field.to_bytes();
        bytes.extend(&field[..field.len().min(FIELD_BYTES - 1)]);
        bytes.resize((index + 1) * FIELD_BYTES, 0);
    }
    write_bytes(&thread.process.window, buffer, &bytes)?;
    Ok(0)
}

/// personality: Linux's own, and addresses are never randomized; a query (0xffffffff) changes
/// nothing.
pub(super) fn personality(_thread: &mut Thread, [personality, ..]: [u64; 6]) -> SysResult {
    match personality as u32 {
        0 | NOT_RANDOMIZED | u32::MAX => Ok(NOT_RANDOMIZED.into()),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// riscv_hwprobe: an unknown key answers key -1 and value 0.
pub(super) fn hwprobe(thread: &mut Thread, [pairs, count, _cpu_count, _cpus, flags, _]: [u64; 6]) -> SysResult {
    /// More keys than there will be.
    const COUNT_MAX: u64 = 1024;
    if flags != 0 || count > COUNT_MAX {
        return Err(Errno::EINVAL.into());
    }
    let window = &thread.process.window;
    for index in 0..count {
        let address = pairs.wrapping_add(16 * index);
        let pair: [u8; 16] = read_array(window, address)?;
        let key = word_at(&pair, 0);
        let answer = processor::probe(key).map_or([u64::MAX, 0], |value| [key, value]);
        write_bytes(window, address, &Fields::default().u64s(&answer).0)?;
    }
    Ok(0)
}
