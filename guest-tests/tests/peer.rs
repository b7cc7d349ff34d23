//! Another emulator gives the same checksums for the guests, so the table does not repeat errors of
//! our own.

use guest_tests::{BENCHES, EXIT_STALE, EXIT_WRONG, Emulator, Exit, GUESTS, Outcome, Tier, Way, find_program, skip};

use codewarden::protection::Mode;

/// The errors of `qemu-riscv64` 7.2 to 10. It never leaves a running RISC-V block for a store
/// into it. It does not know that two mappings show one memory, or that a file may be one of
/// the two.
fn qemu_runs_stale_code(name: &str, args: &[&str]) -> bool {
    let always = [
        "file-writes",
        "memfd-dual-map",
        "memfd-dual-harts",
        "memfd-dual-next",
        "store-next-insn",
        "store-same-block",
        "store-after-mprotect",
        "view-comes-and-goes",
    ];
    always.contains(&name) || matches!(name, "self-patching-loop" | "patch-beside-data") && args == ["no-flush"]
}

/// It protects by mprotect, and unprotects the memory of a system call before the call.
/// Another hart that runs code there protects the page again in between, and the kernel
/// answers EFAULT.
fn qemu_fails_a_call(name: &str, outcome: &Outcome) -> bool {
    const EFAULT: &str = "got 0xfffffffffffffff2";
    name == "replace-mapping"
        && outcome.stderr.contains("system call failed: a read into it")
        && outcome.stderr.contains(EFAULT)
}

/// 7.2 counts bits above the word in CTZW, and its processors lack halves and CBO instructions
/// unless they are asked for; later ones lack some, too.
fn qemu_lacks_an_instruction(name: &str, outcome: &Outcome) -> bool {
    match name {
        "bit-manipulation" => outcome.exit == Exit::Code(EXIT_WRONG) && outcome.stderr.contains("wrong result: ctzw:"),
        "rva22-rest" => outcome.exit == Exit::Signal(libc::SIGILL),
        _ => false,
    }
}

#[test]
fn qemu_agrees_with_the_table() {
    let Some(qemu) = find_program("qemu-riscv64") else {
        return skip("qemu_agrees_with_the_table", "no qemu-riscv64 (Debian: qemu-user)");
    };
    let qemu = Emulator::peer(qemu);
    // A peer gets no mode and no tier.
    let way = Way::Cached(Mode::None, Tier::Auto);
    let mut wrong = Vec::new();
    for guest in GUESTS {
        let outcome = qemu.run(guest, way).unwrap();
        let known_stale = qemu_runs_stale_code(guest.name, guest.args) && outcome.exit == Exit::Code(EXIT_STALE);
        let known_wrong = qemu_fails_a_call(guest.name, &outcome) || qemu_lacks_an_instruction(guest.name, &outcome);
        if !outcome.passes(guest) && !known_stale && !known_wrong {
            wrong.push(format!("{}: {outcome}", guest.title()));
        }
    }
    for (name, args) in BENCHES {
        let outcome = qemu.run_with_args(name, args, way).unwrap();
        if outcome.exit != Exit::Code(0) {
            wrong.push(format!("{name} {args:?}: {outcome}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
