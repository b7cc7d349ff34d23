//! The text of `--help`.

/// The text of `--help`.
pub const HELP: &str = "\
Runs a RISC-V Linux program for RV64GC or RVA22U64. Without one, runs a guest
of its own that rewrites its code, and reports the effect on the translations.

Usage: demo-emulator [OPTIONS] [PROGRAM [ARGUMENTS...]]

How the program is run:
  --interpret          fetch and decode every instruction, keep nothing
  --tier TIER          auto, 0 (decoded), 1 (compiled quickly) or 2 (compiled well)
  --tracking MODE      auto, sigbus, thread, deferred, mprotect or none: how
                       writes to translated code are learned of
  --code-limit SIZE    memory for translations, 128K to 4G, else 256M; the oldest
                       are evicted; K, M and G may follow the number

What the program sees:
  -L DIR               look absolute paths up below DIR first
  -E VAR=VALUE         set an environment variable
  -U VAR               unset an environment variable
  -0 NAME              the program's argv[0]
  -s SIZE              stack of SIZE bytes, 64K to 64G, else 8M; K, M and G
                       may follow the number

What is printed:
  -strace              print system calls
  -d ITEM[,ITEM...]    log in_asm (guest instructions as they are translated),
                       out_asm (the host code made from them)
  -D FILE              append what -strace, -d and --stats print to FILE
  --stats              counters, histograms and the pages written to most, at exit
  --stats=json         the same for programs

Each of these alone, with nothing else on the line:
  --probe              say what this kernel and these permissions allow, and
                       what to change to get more
  --probe=json         the same for programs
  --version            print the version
  --help               print this
";
