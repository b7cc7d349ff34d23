//! Handles an `ecall`: finds the call in the table, makes it, and puts the result into `a0`.

use std::ffi::CString;

use super::super::clone::CloneRequest;
use super::super::errno::{Errno, Stop, SysResult};
use super::super::process::KernelWrite;
use super::super::program::{c_path, in_sysroot};
use super::super::thread::Thread;
use super::super::user_memory::read_u32;
use super::path::{as_path, read_path};
use super::spec::{Arg, Handler, Spec};
use super::{table, trace};

/// The thread's next action after a system call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// It continues.
    Continue,
    /// It starts a thread, and gives the result to [`finish`].
    Spawn(CloneRequest),
    /// It ends with this status.
    Exit(i32),
}

/// Makes the system call that the hart has reached.
pub(crate) fn run(thread: &mut Thread) -> Next {
    if thread.has_signal() {
        // The signal came first: the same `ecall` runs again after its handler.
        return Next::Continue;
    }
    let number = thread.hart.x[17];
    let mut arguments = [0; 6];
    arguments.copy_from_slice(&thread.hart.x[10..16]);
    let spec = table::find(number);
    if thread.process.options.trace {
        trace::print_call(thread, spec, number, &arguments);
    }
    let result = match spec.map(|spec| (spec, spec.handler)) {
        None => Err(Stop::Errno(Errno::ENOSYS)),
        Some((_, Handler::Own(own))) => own(thread, arguments),
        Some((spec, Handler::Host(host))) => pass_on(thread, spec, host, &arguments),
    };
    finish(thread, result)
}

/// Gives the hart the result of its system call, if there is one yet.
pub(crate) fn finish(thread: &mut Thread, result: SysResult) -> Next {
    if thread.process.options.trace {
        trace::print_result(thread, &result);
    }
    let value = match result {
        Ok(value) => value,
        Err(Stop::Errno(errno)) => i64::from(-errno.0) as u64,
        Err(Stop::Spawn(request)) => return Next::Spawn(request),
        Err(Stop::Restart | Stop::Registers) => return Next::Continue,
        Err(Stop::ThreadExit(status)) => return Next::Exit(status),
    };
    thread.hart.x[10] = value;
    thread.hart.pc = thread.hart.pc.wrapping_add(4);
    Next::Continue
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
