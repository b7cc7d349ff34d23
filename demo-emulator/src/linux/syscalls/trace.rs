//! `-strace`: calls and results, in the style of qemu-user.

use std::fmt::Write;

use super::super::errno::{Stop, SysResult};
use super::super::thread::Thread;
use super::super::user_memory::read_string;
use super::spec::{Arg, Spec};

/// Longest string that is printed whole.
const TEXT_LIMIT: usize = 256;

/// Prints the call, before it is made: it may never return.
pub(super) fn print_call(thread: &Thread, spec: Option<&Spec>, number: u64, arguments: &[u64; 6]) {
    let mut line = format!("{} ", std::process::id());
    match spec {
        None => {
            let _ = write!(line, "Unknown syscall {number}");
        }
        Some(spec) => {
            let _ = write!(line, "{}(", spec.name);
            for (index, (arg, value)) in spec.args.iter().zip(arguments).enumerate() {
                if index > 0 {
                    line.push(',');
                }
                print_argument(&mut line, thread, *arg, *value);
            }
            line.push(')');
        }
    }
    thread.process.trace(&line);
}

fn print_argument(line: &mut String, thread: &Thread, arg: Arg, value: u64) {
    let _ = match arg {
        Arg::Dir if value as i32 == libc::AT_FDCWD => write!(line, "AT_FDCWD"),
        Arg::Int | Arg::Dir => write!(line, "{}", value as i64),
        Arg::Octal => write!(line, "0{value:o}"),
        Arg::Path | Arg::Text if value != 0 => match read_string(&thread.process.window, value, TEXT_LIMIT) {
            Ok(text) => write!(line, "\"{}\"", text.escape_ascii()),
            Err(_) => write!(line, "{value:#x}"),
        },
        _ if value == 0 && arg != Arg::Hex => write!(line, "NULL"),
        _ => write!(line, "{value:#x}"),
    };
}

/// Prints the result, which ends the line.
pub(super) fn print_result(thread: &Thread, result: &SysResult) {
    let line = match result {
        Ok(value) if (*value as i64) < 1 << 20 => format!(" = {}\n", *value as i64),
        Ok(value) => format!(" = {value:#x}\n"),
        Err(Stop::Errno(errno)) => format!(" = -1 errno={} ({errno})\n", errno.0),
        Err(Stop::Restart) => " = ? (interrupted, will restart)\n".to_owned(),
        Err(Stop::Registers | Stop::ThreadExit(_)) => "\n".to_owned(),
        // The result is still to come.
        Err(Stop::Spawn(_)) => return,
    };
    thread.process.trace(&line);
}
