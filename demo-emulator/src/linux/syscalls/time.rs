//! The clock, which programs read all the time: through the host's vDSO.

use super::super::errno::{Errno, SysResult};
use super::super::thread::Thread;
use super::super::user_memory::{Fields, write_bytes};

/// clock_gettime.
pub(super) fn clock_gettime(thread: &mut Thread, [clock, result, ..]: [u64; 6]) -> SysResult {
    use rustix::time::ClockId;
    let window = thread.process.window;
    let known = match clock as i32 {
        libc::CLOCK_REALTIME => ClockId::Realtime,
        libc::CLOCK_MONOTONIC => ClockId::Monotonic,
        // The kernel answers the others, CPU clocks of other processes too.
        _ => {
            let mut time = [0u64; 2];
            let answer = thread.host_call(libc::SYS_clock_gettime, [clock, time.as_mut_ptr() as u64, 0, 0, 0, 0])?;
            write_bytes(&window, result, &Fields::default().u64s(&time).0)?;
            return Ok(answer);
        }
    };
    let time = rustix::time::clock_gettime(known);
    write_bytes(&window, result, &Fields::default().u64s(&[time.tv_sec as u64, time.tv_nsec as u64]).0)?;
    Ok(0)
}

/// gettimeofday.
pub(super) fn gettimeofday(thread: &mut Thread, [time, zone, ..]: [u64; 6]) -> SysResult {
    let window = &thread.process.window;
    if time != 0 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let words = [now.tv_sec as u64, now.tv_nsec as u64 / 1000];
        write_bytes(window, time, &Fields::default().u64s(&words).0).map_err(|_| Errno::EFAULT)?;
    }
    if zone != 0 {
        write_bytes(window, zone, &[0; 8])?;
    }
    Ok(0)
}
