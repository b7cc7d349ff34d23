//! The kernel interface: from `ecall` to `a0`.
//!
//! `table` lists the calls. Most are the host's own with the pointers translated; the others have
//! code in a module for their subject.

mod descriptors;
mod epoll;
mod file;
mod file_change;
mod host;
mod ids;
mod memory;
mod misc;
mod net;
mod own_memory;
mod process;
mod signals;
mod spec;
mod status;
mod table;
mod threads;
mod time;
mod trace;
mod transfer;
mod wait;

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::errno::{Errno, Stop, SysResult};
use super::process::KernelWrite;
use super::program::{c_path, in_sysroot};
use super::thread::Thread;
use super::user_memory::{PATH_MAX, read_string, read_u32};
use spec::{Arg, Handler, Spec};

/// Makes the system call that the hart has reached; returns the status if it ends the thread.
pub fn run(thread: &mut Thread) -> Option<i32> {
    if thread.has_signal() {
        // The signal came first: the same `ecall` runs again after its handler.
        return None;
    }
    let number = thread.hart.x[17];
    let mut arguments = [0; 6];
    arguments.copy_from_slice(&thread.hart.x[10..16]);
    let spec = table::find(number);
    let traces = thread.process.options.trace;
    if traces {
        trace::print_call(thread, spec, number, &arguments);
    }
    let result = match spec.map(|spec| (spec, spec.handler)) {
        None => Err(Stop::Errno(Errno::ENOSYS)),
        Some((_, Handler::Own(own))) => own(thread, arguments),
        Some((spec, Handler::Host(host))) => pass_on(thread, spec, host, &arguments),
    };
    if traces {
        trace::print_result(thread, &result);
    }
    let value = match result {
        Ok(value) => value,
        Err(Stop::Errno(errno)) => i64::from(-errno.0) as u64,
        Err(Stop::Restart | Stop::Registers) => return None,
        Err(Stop::ThreadExit(status)) => return Some(status),
    };
    thread.hart.x[10] = value;
    thread.hart.pc = thread.hart.pc.wrapping_add(4);
    None
}

/// Passes a call to the host with its pointers translated.
fn pass_on(thread: &Thread, spec: &Spec, host: i64, arguments: &[u64; 6]) -> SysResult {
    let mut translated = *arguments;
    let mut paths: [Option<CString>; 6] = Default::default();
    let mut writes: [Option<KernelWrite<'_>>; 6] = Default::default();
    for (index, arg) in spec.args.iter().enumerate() {
        let address = arguments[index];
        let write_len = match *arg {
            Arg::Int | Arg::Hex | Arg::Octal | Arg::Dir => continue,
            Arg::Path if address != 0 && thread.process.options.sysroot.is_some() => {
                let path = c_path(&in_sysroot(
                    thread.process.options.sysroot.as_deref(),
                    as_path(&read_path(thread, address)?),
                ))?;
                translated[index] = path.as_ptr() as u64;
                paths[index] = Some(path);
                continue;
            }
            // The kernel finds the end, and faults beyond the window.
            Arg::Path | Arg::Text | Arg::Address => 0,
            Arg::In(len) => {
                translated[index] = thread.pointer(address, len.into())?;
                continue;
            }
            Arg::InLen(of) => {
                translated[index] = thread.pointer(address, arguments[usize::from(of)])?;
                continue;
            }
            Arg::Out(len) => len.into(),
            Arg::OutLen(of) => arguments[usize::from(of)],
            Arg::OutLenAt(_) if address == 0 => 0,
            Arg::OutLenAt(of) => read_u32(&thread.process.window, arguments[usize::from(of)])?.into(),
        };
        (translated[index], writes[index]) = thread.out_pointer(address, write_len)?;
    }
    thread.host_call(host, translated)
}

/// The guest's path at `address`.
fn read_path(thread: &Thread, address: u64) -> Result<Vec<u8>, Errno> {
    read_string(&thread.process.window, address, PATH_MAX)
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
