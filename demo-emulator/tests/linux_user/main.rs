//! The Linux side from the outside: statuses, errors, signals, processes, with
//! programs made on the spot.

mod bad_programs;
mod support;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use codewarden::protection::{Mode, Probe};
use demo_emulator::riscv::inst::Op;
use support::{A0, A1, A2, Folder, Program, S0, SCRATCH, SP, emulator, run};

const READ: i64 = 63;
const WRITE: i64 = 64;
const PPOLL: i64 = 73;
const KILL: i64 = 129;
const SIGACTION: i64 = 134;
const SIGPROCMASK: i64 = 135;
const CLONE: i64 = 220;
const EXECVE: i64 = 221;
const WAIT4: i64 = 260;
const SETITIMER: i64 = 103;
const GETPID: i64 = 172;
const PIPE2: i64 = 59;

const SIGUSR1: i64 = 10;
const SIGALRM: i64 = 14;
const SIGCHLD: i64 = 17;
const EINTR: i64 = 4;
const SA_RESTART: u64 = 0x1000_0000;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Exits with `status` when it runs.
fn exits_with(status: i64) -> Program {
    let mut program = Program::default();
    program.li(A0, status).exit();
    program
}

/// Sends the program itself a signal.
fn kill_self(program: &mut Program, signal: i64) {
    program.ecall(GETPID).li(A1, signal).ecall(KILL);
}

/// Jumps over a handler that adds 1 to the count in memory and returns; returns the handler's
/// address.
fn counting_handler(program: &mut Program) -> u64 {
    program.put(Op::Jal, 0, 0, 0, 24);
    let handler = program.here() as u64;
    // A handler's registers are its own, so the count lies in memory.
    program.put(Op::Lui, 5, 0, 0, SCRATCH as i64);
    program.put(Op::Ld, 6, 5, 0, 0).put(Op::Addi, 6, 6, 0, 1).put(Op::Sd, 0, 5, 6, 0);
    program.put(Op::Jalr, 0, 1, 0, 0);
    handler
}

fn load_count(program: &mut Program) {
    program.put(Op::Lui, S0, 0, 0, SCRATCH as i64).put(Op::Ld, S0, S0, 0, 0);
}

#[test]
fn the_status_is_passed_on() {
    assert_eq!(run(&exits_with(42)).status.code(), Some(42));
    assert_eq!(run(&exits_with(256 + 7)).status.code(), Some(7));
}

#[test]
fn a_position_independent_program_is_moved() {
    let mut program = Program::default();
    // Above the file's address: auipc gives this instruction's address.
    program.anywhere().put(Op::Auipc, S0, 0, 0, 0).put(Op::Srli, A0, S0, 0, 32).exit();
    assert_eq!(run(&program).status.code(), Some(0x2a));
}

#[test]
fn death_by_a_signal_is_passed_on() {
    let mut illegal = Program::default();
    illegal.raw(0);
    assert_eq!(run(&illegal).status.signal(), Some(libc::SIGILL));
    let mut wild = Program::default();
    wild.put(Op::Sd, 0, 0, 0, 0);
    assert_eq!(run(&wild).status.signal(), Some(libc::SIGSEGV));
    let mut trap = Program::default();
    trap.put(Op::Ebreak, 0, 0, 0, 0);
    assert_eq!(run(&trap).status.signal(), Some(libc::SIGTRAP));
    for signal in [libc::SIGTERM, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGKILL, libc::SIGPIPE] {
        let mut program = Program::default();
        kill_self(&mut program, signal.into());
        program.li(A0, 1).exit();
        assert_eq!(run(&program).status.signal(), Some(signal));
    }
}

#[test]
fn arguments_and_environment_arrive() {
    let folder = Folder::new();
    let mut program = Program::default();
    // write(1, argv[2], 5), then write(1, envp[0], 5): argc is 3.
    program.li(A0, 1).put(Op::Ld, A1, SP, 0, 24).li(A2, 5).ecall(WRITE);
    program.li(A0, 1).put(Op::Ld, A1, SP, 0, 40).li(A2, 5).ecall(WRITE);
    program.put(Op::Ld, A0, SP, 0, 0).exit();
    let path = folder.file("program", &program.elf());
    let output = emulator().env_clear().args(["-E", "AB=12"]).arg(path).args(["--stats", "hello"]).output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(3), "helloAB=12".into()));
}

#[test]
fn a_program_that_cannot_run_has_a_shells_status_and_a_reason() {
    let folder = Folder::new();
    let status = |command: &mut Command| {
        let output = command.output().unwrap();
        (output.status.code(), stderr(&output))
    };
    let expect = |name: &str, contents: &[u8], code: i32, reason: &str| {
        let path = folder.file(name, contents);
        let (got, text) = status(emulator().arg(path));
        assert!(got == Some(code) && text.contains(reason), "{name}: {got:?} {text}");
    };
    let elf = exits_with(0).elf();
    let changed = |offset: usize, value: u8| {
        let mut elf = elf.clone();
        elf[offset] = value;
        elf
    };
    expect("text", b"hello", 126, "not an ELF file");
    expect("empty", b"", 126, "not an ELF file");
    expect("x86", &changed(18, 62), 126, "x86-64");
    expect("rv32", &changed(4, 1), 126, "64-bit");
    expect("short", &elf[..0x1800], 126, "truncated");
    expect("no-interpreter", b"#!/does/not/exist\n", 127, "/does/not/exist");
    expect("endless", format!("#!{}\n", folder.path().join("endless").display()).as_bytes(), 126, "too many");
    let (code, text) = status(emulator().arg(folder.path().join("missing")));
    assert!(code == Some(127) && text.contains("no such file"), "{text}");
    let (code, text) = status(emulator().arg(folder.path()));
    assert!(code == Some(126) && text.contains("directory"), "{text}");
    std::fs::write(folder.path().join("plain"), &elf).unwrap();
    let (code, text) = status(emulator().arg(folder.path().join("plain")));
    assert!(code == Some(126) && text.contains("chmod"), "{text}");
    let (code, text) = status(emulator().arg("--tracking=magic"));
    assert!(code == Some(2) && text.contains("magic"), "{text}");
}

#[test]
fn a_script_is_run_by_its_interpreter() {
    let folder = Folder::new();
    let mut program = Program::default();
    // write(1, argv[1], 6): the argument of the first line.
    program.li(A0, 1).put(Op::Ld, A1, SP, 0, 16).li(A2, 6).ecall(WRITE);
    program.put(Op::Ld, A0, SP, 0, 0).exit();
    let interpreter = folder.file("interpreter", &program.elf());
    let script = folder.file("script", format!("#! {} one two\n", interpreter.display()).as_bytes());
    let output = emulator().arg(script).arg("more").output().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(4), "one tw".into()));
}

#[test]
fn a_trace_names_calls_and_results() {
    let folder = Folder::new();
    let mut program = Program::default();
    let path = program.data(b"/does/not/exist\0");
    program.call(56, &[-100, path, 0, 0]).call(4000, &[]).li(A0, 0).exit();
    let path = folder.file("program", &program.elf());
    let log = folder.path().join("log");
    assert!(emulator().arg("-strace").arg("-D").arg(&log).arg(path).status().unwrap().success());
    let text = std::fs::read_to_string(log).unwrap();
    assert!(
        text.contains("openat(AT_FDCWD,\"/does/not/exist\",0x0,00) = -1 errno=2 (No such file or directory)"),
        "{text}"
    );
    assert!(text.contains("Unknown syscall 4000 = -1 errno=38 (Function not implemented)"), "{text}");
    assert!(text.contains("exit_group(0)"), "{text}");
}

#[test]
fn the_log_survives_a_program_that_closes_everything() {
    let folder = Folder::new();
    let mut program = Program::default();
    program.call(436, &[3, -1, 0]).expect(A0, 0, 1).call(4000, &[]).li(A0, 0).exit();
    let path = folder.file("program", &program.elf());
    let log = folder.path().join("log");
    assert!(emulator().arg("-strace").arg("-D").arg(&log).arg(path).status().unwrap().success());
    let text = std::fs::read_to_string(log).unwrap();
    assert!(text.contains("Unknown syscall 4000"), "{text}");
}

#[test]
fn a_handler_runs_and_returns_to_the_same_registers() {
    let mut program = Program::default();
    let handler = counting_handler(&mut program);
    let action = program.data(&words(&[handler, 0, 0]));
    program.call(SIGACTION, &[SIGUSR1, action, 0, 8]);
    program.li(5, 55).li(6, 66);
    kill_self(&mut program, SIGUSR1);
    program.expect(A0, 0, 1).expect(5, 55, 2).expect(6, 66, 3);
    load_count(&mut program);
    program.mv(A0, S0).exit();
    assert_eq!(run(&program).status.code(), Some(1));
}

/// Makes SIGSEGV's handler keep si_addr in memory and move the frame's pc over the instruction.
fn skip_faults(program: &mut Program) {
    program.put(Op::Jal, 0, 0, 0, 32);
    let handler = program.here() as u64;
    program.put(Op::Lui, 5, 0, 0, SCRATCH as i64);
    program.put(Op::Ld, 6, A1, 0, 16).put(Op::Sd, 0, 5, 6, 0);
    program.put(Op::Ld, 6, A2, 0, 176).put(Op::Addi, 6, 6, 0, 4).put(Op::Sd, 0, A2, 6, 176);
    program.put(Op::Jalr, 0, 1, 0, 0);
    let action = program.data(&words(&[handler, 4, 0]));
    program.call(SIGACTION, &[libc::SIGSEGV.into(), action, 0, 8]);
}

#[test]
fn a_fault_has_its_address_and_can_be_skipped() {
    let mut program = Program::default();
    skip_faults(&mut program);
    program.li(9, 0x1234).put(Op::Sd, 0, 9, 9, 4);
    load_count(&mut program);
    program.expect(S0, 0x1238, 1).expect(9, 0x1234, 2).li(A0, 33).exit();
    assert_eq!(run(&program).status.code(), Some(33));
}

/// Compiled code refuses such an access by an illegal host instruction.
#[test]
fn an_address_beyond_the_window_is_a_fault_whatever_the_guest_does_with_sigill() {
    let ill = i64::from(libc::SIGILL);
    let handle = |program: &mut Program, handler: u64| {
        let action = program.data(&words(&[handler, 4, 0]));
        program.call(SIGACTION, &[ill, action, 0, 8]);
    };
    let block = |program: &mut Program| {
        let set = program.data(&words(&[1 << (ill - 1)]));
        program.call(SIGPROCMASK, &[0, set, 0, 8]);
    };
    let ways: [&dyn Fn(&mut Program); 3] = [&|p| handle(p, 0x1000), &|p| handle(p, 1), &block];
    for (way, prepare) in ways.iter().enumerate() {
        let mut program = Program::default();
        skip_faults(&mut program);
        prepare(&mut program);
        // The loop runs 2,000 times with a good address, then once with a bad one.
        program.li(9, SCRATCH as i64 + 64).li(7, 2000).li(28, 1).put(Op::Slli, 28, 28, 0, 63).li(29, 1).li(30, 2);
        program.put(Op::Sd, 0, 9, 0, 8).put(Op::Addi, 7, 7, 0, -1).put(Op::Bne, 0, 7, 0, -8);
        program.put(Op::Addi, 9, 28, 0, 0).put(Op::Addi, 7, 29, 0, 0).put(Op::Addi, 30, 30, 0, -1);
        program.put(Op::Bne, 0, 30, 0, -24);
        load_count(&mut program);
        program.put(Op::Sub, S0, S0, 28, 0).expect(S0, 8, 1).li(A0, 33).exit();
        let folder = Folder::new();
        let path = folder.file("program", &program.elf());
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo-emulator"));
        let status = command.args(["--tier", "2"]).arg(path).status().unwrap();
        assert_eq!(status.code(), Some(33), "way {way}: {status:?}");
    }
}

/// The host's handlers of both need room at once.
#[test]
fn signals_come_while_faults_are_handled() {
    let mut program = Program::default();
    skip_faults(&mut program);
    let handler = counting_handler(&mut program);
    let action = program.data(&words(&[handler, SA_RESTART, 0]));
    let timer = program.data(&words(&[0, 100, 0, 100]));
    program.call(SIGACTION, &[SIGALRM, action, 0, 8]).call(SETITIMER, &[0, timer, 0]);
    program.li(9, 8).li(7, 20_000);
    program.put(Op::Sd, 0, 9, 0, 0).put(Op::Addi, 7, 7, 0, -1).put(Op::Bne, 0, 7, 0, -8);
    program.li(A0, 33).exit();
    let status = run(&program).status;
    assert_eq!(status.code(), Some(33), "{status:?}");
}

/// A `read` of an empty pipe with a timer in 20 ms; `flags` are those of the signal's action.
fn interrupted_read(flags: u64) -> Program {
    let mut program = Program::default();
    let handler = counting_handler(&mut program);
    let action = program.data(&words(&[handler, flags, 0]));
    let timer = program.data(&words(&[0, 20_000, 0, 20_000]));
    let pipe = SCRATCH as i64 + 64;
    program.call(SIGACTION, &[SIGALRM, action, 0, 8]).call(PIPE2, &[pipe, 0]).call(SETITIMER, &[0, timer, 0]);
    program
}

#[test]
fn a_blocked_call_is_interrupted() {
    let mut program = interrupted_read(0);
    let pipe = SCRATCH as i64 + 64;
    program.li(A0, pipe).put(Op::Lw, A0, A0, 0, 0).li(A1, pipe).li(A2, 1).ecall(READ).expect(A0, -EINTR, 1);
    load_count(&mut program);
    program.expect(S0, 1, 2).li(A0, 9).exit();
    assert_eq!(run(&program).status.code(), Some(9));
}

#[test]
fn a_blocked_call_is_restarted_where_the_guest_says_so() {
    let mut program = interrupted_read(SA_RESTART);
    let pipe = SCRATCH as i64 + 64;
    // The child writes a byte after 100 ms: more than one signal comes before it.
    let sleep = program.data(&words(&[0, 100_000_000]));
    program.call(CLONE, &[SIGCHLD, 0, 0, 0, 0]).put(Op::Bne, 0, A0, 0, 4 * 24);
    let child = program.here();
    program.call(101, &[sleep, 0]).li(A0, pipe).put(Op::Lw, A0, A0, 0, 4).li(A1, pipe).li(A2, 1).ecall(WRITE);
    program.li(A0, 0).exit();
    while program.here() < child + 4 * 23 {
        program.put(Op::Addi, 0, 0, 0, 0);
    }
    program.li(A0, pipe).put(Op::Lw, A0, A0, 0, 0).li(A1, pipe).li(A2, 1).ecall(READ).expect(A0, 1, 1);
    load_count(&mut program);
    program.put(Op::Sltiu, S0, S0, 0, 2).expect(S0, 0, 2).li(A0, 9).exit();
    assert_eq!(run(&program).status.code(), Some(9));
}

/// The signal is blocked outside the waits. So it must end each wait, and each signal must run the
/// handler once, under the mask of the wait.
#[test]
fn a_wait_with_a_mask_of_its_own_lets_the_signal_in() {
    const ROUNDS: i64 = 2000;
    let mut program = Program::default();
    let handler = counting_handler(&mut program);
    let action = program.data(&words(&[handler, 0, 0]));
    let blocked = program.data(&words(&[1 << (SIGUSR1 - 1)]));
    let none = program.data(&words(&[0]));
    program.call(SIGACTION, &[SIGUSR1, action, 0, 8]).call(SIGPROCMASK, &[0, blocked, 0, 8]);
    program.ecall(GETPID).mv(18, A0).li(19, ROUNDS);
    program.call(CLONE, &[SIGCHLD, 0, 0, 0, 0]).mv(20, A0).put(Op::Bne, 0, A0, 0, 4 * 15);
    // The child sends as fast as it can until it is killed.
    let send = program.here();
    program.mv(A0, 18).li(A1, SIGUSR1).ecall(KILL);
    let back = send - program.here();
    program.put(Op::Jal, 0, 0, 0, back);
    while program.here() < send + 4 * 14 {
        program.put(Op::Addi, 0, 0, 0, 0);
    }
    let wait = program.here();
    program.call(PPOLL, &[0, 0, 0, none, 8]).expect(A0, -EINTR, 1);
    program.put(Op::Addi, 19, 19, 0, -1);
    let back = wait - program.here();
    program.put(Op::Bne, 0, 19, 0, back);
    program.mv(A0, 20).li(A1, 9).ecall(KILL);
    load_count(&mut program);
    program.expect(S0, ROUNDS, 2).li(A0, 9).exit();
    assert_eq!(run(&program).status.code(), Some(9));
}

#[test]
fn a_child_executes_another_program_and_is_waited_for() {
    let folder = Folder::new();
    let other = folder.file("other", &exits_with(77).elf());
    let mut program = Program::default();
    let path = program.data(format!("{}\0", other.display()).as_bytes());
    let argv = program.data(&words(&[path as u64, 0]));
    program.call(CLONE, &[SIGCHLD, 0, 0, 0, 0]).put(Op::Bne, 0, A0, 0, 4 * 15);
    let child = program.here();
    program.call(EXECVE, &[path, argv, 0]).li(A0, 1).exit();
    while program.here() < child + 4 * 14 {
        program.put(Op::Addi, 0, 0, 0, 0);
    }
    let status = SCRATCH as i64;
    program.li(A1, status).li(A2, 0).li(13, 0).ecall(WAIT4);
    load_count(&mut program);
    program.put(Op::Srli, A0, S0, 0, 8).exit();
    assert_eq!(run(&program).status.code(), Some(77));
}

#[test]
fn bad_pointers_are_refused_and_not_followed() {
    let mut program = Program::default();
    let bytes = program.data(b"x");
    // Below every mapping, beyond the window, and wrapping.
    program.call(WRITE, &[1, 16, 4]).expect(A0, -14, 1);
    program.li(A1, 1).put(Op::Slli, A1, A1, 0, 40).li(A0, 1).li(A2, 4).ecall(WRITE).expect(A0, -14, 2);
    program.call(WRITE, &[1, bytes, -1]).expect(A0, -14, 3);
    program.call(SIGACTION, &[SIGUSR1, 16, 0, 8]).expect(A0, -14, 4);
    program.call(PIPE2, &[-8, 0]).expect(A0, -14, 5);
    program.li(A0, 9).exit();
    assert_eq!(run(&program).status.code(), Some(9));
}

#[test]
fn a_death_by_the_guests_own_fault_has_its_stats_too() {
    let folder = Folder::new();
    let mut program = Program::default();
    program.li(A0, 0x100).put(Op::Ld, A0, A0, 0, 0);
    let path = folder.file("faults", &program.elf());
    let output = emulator().arg("--stats").arg(path).output().unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV));
    assert!(stderr(&output).starts_with("tier interpreter, no translation\n"), "{}", stderr(&output));
}

/// The kernel looks up the page of a futex that is not private as for a write, even if the command
/// writes nothing. The page holds code that ran just before.
#[test]
fn a_futex_on_a_page_with_code() {
    const FUTEX: i64 = 98;
    const EAGAIN: i64 = 11;
    const ETIMEDOUT: i64 = 110;
    const MMAP: i64 = 222;
    const RETURN: i64 = 0x8067;
    const FENCE_I: u32 = 0x100f;
    let [ra, t0, a3, a4, a5] = [1, 5, 13, 14, 15];
    const RWX: i64 = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as i64;
    const ANONYMOUS: i64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64;
    let mut program = Program::default();
    program.call(MMAP, &[0, 0x1000, RWX, ANONYMOUS, -1, 0]).mv(S0, A0);
    program.li(t0, RETURN).put(Op::Sw, 0, S0, t0, 0).raw(FENCE_I);
    let moment = program.data(&words(&[0, 1]));
    for (kind, is_private) in [(0, 0), (1, i64::from(libc::FUTEX_PRIVATE_FLAG))] {
        let calls = [
            (libc::FUTEX_WAKE, 1, 0, 0),
            (libc::FUTEX_WAIT, 1, 0, -EAGAIN),
            (libc::FUTEX_WAIT, 0, moment, -ETIMEDOUT),
            (libc::FUTEX_REQUEUE, 1, 1, 0),
            (libc::FUTEX_CMP_REQUEUE, 1, 1, 0),
        ];
        for (number, (command, value, timeout, expected)) in calls.into_iter().enumerate() {
            let operation = i64::from(command) | is_private;
            program.put(Op::Jalr, ra, S0, 0, 0);
            program.li(A1, operation).li(A2, value).li(a3, timeout).li(a5, 0);
            program.put(Op::Addi, A0, S0, 0, 0x100).put(Op::Addi, a4, S0, 0, 0x108).ecall(FUTEX);
            program.expect(A0, expected, 1 + 10 * kind + number as i64);
        }
    }
    program.li(A0, 0).exit();
    let folder = Folder::new();
    for mode in Mode::ALL.into_iter().filter(|&mode| Probe::of_this_process().check(mode).is_ok()) {
        let path = folder.file("program", &program.elf());
        let mut emulator = Command::new(env!("CARGO_BIN_EXE_demo-emulator"));
        emulator.env_remove("CODEWARDEN_HIDE").args(["--tracking", mode.name()]);
        let run = emulator.arg(path).output().unwrap();
        assert_eq!(run.status.code(), Some(0), "{mode}: {}", stderr(&run));
    }
}

/// Runs a program that exits with 42, under a soft limit of the shell's.
fn run_under(limit: &str, options: &[&str]) -> Output {
    let folder = Folder::new();
    let path = folder.file("program", &exits_with(42).elf());
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -S {limit} && exec \"$@\""), "sh", env!("CARGO_BIN_EXE_demo-emulator")]);
    command.args(options).arg(path).output().unwrap()
}

const WAYS_TO_RUN: [&[&str]; 3] =
    [&["--interpret"], &["--tracking", "none", "--tier", "0"], &["--tracking", "none", "--tier", "2"]];

#[test]
fn a_low_limit_on_data_is_an_error_that_names_it() {
    for options in WAYS_TO_RUN {
        let mut ran = false;
        // From less than the window's table needs to more than the whole run needs.
        for kib in (20_000..=160_000).step_by(4_000) {
            let output = run_under(&format!("-d {kib}"), options);
            let text = stderr(&output);
            match output.status.code() {
                Some(42) => ran = true,
                Some(125) if text.contains("ulimit -d") => {
                    assert!(!ran, "{options:?}: less than {kib} KiB were enough")
                }
                _ => panic!("{options:?}, {kib} KiB: {:?}: {text}", output.status),
            }
        }
        assert!(ran, "{options:?}");
    }
}

#[test]
fn code_is_compiled_on_a_small_stack() {
    for options in WAYS_TO_RUN {
        let output = run_under("-s 64", options);
        assert_eq!(output.status.code(), Some(42), "{options:?}: {}", stderr(&output));
    }
}
