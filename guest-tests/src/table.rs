//! The result that each guest must have in each class of tracking modes.

use codewarden::protection::Mode;

/// The exit code of a guest that saw overwritten code run.
pub const EXIT_STALE: i32 = 10;

/// The exit code of a guest that got a result of neither the old nor the new code.
pub const EXIT_WRONG: i32 = 11;

/// How a guest announces that it changed code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Announced {
    /// It changes no code that has run.
    NothingChanges,
    /// By FENCE.I on each hart that runs the code, or by `riscv_flush_icache`,
    /// as the ISA and the ABI ask for.
    Yes,
    /// Not at all: it relies on a promise of synchronous tracking that RISC-V does not make.
    No,
    /// Not at all, but it waits: a store reaches fetches in the end (Ziccid).
    Awaited,
}

/// The result that the modes of a class owe a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// The right output.
    Pass,
    /// Either outcome, but it must end, and the guest itself must report the failure: old code,
    /// or a mix of old and new.
    MayFail,
    /// Stale code, every time.
    MustFail,
}

/// One row: a guest with its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// The name of source and binary.
    pub name: &'static str,
    /// Its arguments.
    pub args: &'static [&'static str],
    /// The checksum that it prints when all results are right.
    pub checksum: u64,
    /// Whether changes of code are announced.
    pub announced: Announced,
    /// The result under `none`, the control mode.
    pub none: Expected,
}

impl Guest {
    /// The result that `mode` owes this guest.
    pub fn expected(&self, mode: Mode) -> Expected {
        match mode {
            Mode::None => self.none,
            Mode::Deferred if self.announced == Announced::No => Expected::MayFail,
            _ => Expected::Pass,
        }
    }

    /// The last line that it must print; most print no other.
    pub fn last_line(&self) -> String {
        format!("{}: checksum {:016x}", self.name, self.checksum)
    }

    /// Name and arguments, for messages.
    pub fn title(&self) -> String {
        [&[self.name], self.args].concat().join(" ")
    }
}

const fn row(name: &'static str, args: &'static [&'static str], checksum: u64, announced: Announced) -> Guest {
    Guest { name, args, checksum, announced, none: Expected::MustFail }
}

const fn control(name: &'static str, checksum: u64) -> Guest {
    Guest { none: Expected::Pass, ..row(name, &[], checksum, Announced::NothingChanges) }
}

const fn announced(name: &'static str, args: &'static [&'static str], checksum: u64) -> Guest {
    row(name, args, checksum, Announced::Yes)
}

const fn silent(name: &'static str, args: &'static [&'static str], checksum: u64) -> Guest {
    row(name, args, checksum, Announced::No)
}

const fn awaited(name: &'static str, checksum: u64) -> Guest {
    row(name, &[], checksum, Announced::Awaited)
}

impl Guest {
    /// Each change comes with a system call that changes the mapping or the mapped file. The
    /// emulator's Linux side announces those to the cache by itself, under `none` too.
    const fn passes_untracked(self) -> Self {
        Self { none: Expected::Pass, ..self }
    }

    /// Code is stale only if it runs at the moment of a mapping change. On a busy machine it may
    /// never do so.
    const fn may_pass_untracked(self) -> Self {
        Self { none: Expected::MayFail, ..self }
    }
}

const NO_FLUSH: &[&str] = &["no-flush"];

/// Every guest with each set of arguments that is a test.
pub const GUESTS: &[Guest] = &[
    // Code that has run is not changed.
    control("compute-only", 0x2e39_c1b6_c9d0_89f9),
    control("recursion", 0x538e_24bb_c42e_c562),
    control("indirect-calls", 0x3cb8_e619_7e41_9883),
    control("data-beside-code", 0x4d3d_c7e6_4fc8_b8e6),
    control("dead-division", 0x9008_ab7a_0e92_ed4b),
    control("fp-rounding-modes", 0x859b_0171_f4df_2acf),
    control("fp-flags-order", 0x93bd_70e5_0ab2_332c),
    control("lr-sc-counter", 0xa46e_e64c_6dfc_1f65),
    control("amo-counter", 0x5bc5_b29b_ff40_5931),
    control("fault-mid-block", 0xc445_c6bf_599c_f19a),
    control("fault-again-progress", 0xa82e_dfa2_0f61_d1fb),
    control("kernel-writes-beside-code", 0xe3ec_be30_0cf5_01aa),
    control("bit-manipulation", 0xdbbb_0da4_7f97_1c00),
    control("workload-compute", 0xb15e_bcdf_63fc_8ddf),
    control("workload-calls", 0xff02_b245_49dc_9bd7),
    // Changed inside the running block, before any announcement is possible.
    silent("store-next-insn", &[], 0x97d1_55db_aa0e_f9be),
    silent("store-same-block", &[], 0x7fa7_9c23_fc80_cba8),
    silent("store-after-mprotect", &[], 0x9b3d_caf2_5ddc_d0c5),
    silent("view-comes-and-goes", &[], 0xaf63_4d49_fd1a_93eb).may_pass_untracked(),
    // Changed and announced.
    announced("store-fence-next", &[], 0x97d1_55db_aa0e_f9be),
    announced("patch-fence-i", &[], 0xe8ac_eb75_7aca_b654),
    announced("patch-flush-call", &[], 0xe8ac_eb75_7aca_b654),
    announced("rva22-rest", &[], 0x6c0b_2a1f_8d35_cc2c),
    announced("patch-compressed", &[], 0xddbd_0d3e_02b7_ec3b),
    announced("block-two-pages", &[], 0xc889_352e_19b4_d352),
    announced("block-two-pages", &["first"], 0x6908_0ac8_5bf8_da33),
    announced("block-two-pages", &["second"], 0x6908_0ac8_5bf8_da33),
    announced("store-over-page-boundary", &[], 0x3d12_cc43_ad1f_0883),
    announced("two-harts-one-page", &[], 0x44f9_debb_62dc_bfa9),
    announced("patch-while-others-run", &[], 0x7051_1fee_5e37_807d),
    announced("bulk-overwrite", &[], 0x5197_b0e1_f2ac_d5d3),
    announced("read-into-code", &[], 0x58ac_bf1a_142f_168f),
    announced("jit-many", &[], 0xd20c_c3d9_7f09_2552),
    announced("two-page-stores-progress", &[], 0xaf64_8549_fd27_21d3),
    announced("patch-return-path", &[], 0x6036_d9a5_13d6_d6c6),
    announced("remap-code", &[], 0x8636_b129_512d_30f9).passes_untracked(),
    announced("discard-code", &[], 0x6a64_30b8_0c46_1dd9).passes_untracked(),
    announced("move-code", &[], 0x5d2e_6e2e_7c4f_e546).passes_untracked(),
    announced("patch-by-every-store", &[], 0xd859_fa82_d384_e624),
    announced("jit-wx", &[], 0x763d_6b30_32bc_4a2e).passes_untracked(),
    announced("memfd-dual-map", &[], 0x0d8a_3825_46a8_03f2),
    announced("memfd-dual-harts", &[], 0x8aaf_c2e7_2ef9_7e19),
    announced("fork-patches", &[], 0x6ce6_eb7d_6585_5463),
    announced("fork-descriptors", &[], 0xd8c8_b910_13fa_e92c),
    announced("stack-trampoline", &[], 0x2882_ad7f_21c3_42f4),
    announced("self-patching-loop", &[], 0x13eb_71b8_628d_2190),
    announced("patch-linked-page", &[], 0xae65_a804_3042_6c43),
    announced("identical-rewrite", &[], 0x88cb_aad2_5c8c_33e7),
    announced("file-writes", &[], 0x4c3a_13e9_15ab_6f68).passes_untracked(),
    announced("memfd-dual-next", &[], 0xe3e3_8866_4040_d604),
    announced("patch-beside-data", &[], 0x95e8_be4b_99b4_0839),
    announced("two-pages-one-checked", &[], 0xf300_5853_b67b_0da4),
    announced("two-pages-one-checked", &["first"], 0xf300_5853_b67b_0da4),
    announced("patch-both-halves", &[], 0x9b13_be01_42e0_37f3),
    announced("replace-mapping", &[], 0x5cbb_9d08_1042_abac).passes_untracked(),
    announced("patch-storm", &[], 0xf7c2_36ff_fe03_cb7b),
    announced("workload-jit", &[], 0x94fa_7ee5_3b10_1b34),
    announced("demo", &[], 0xa131_2ca9_3887_6709),
    // Changed and waited for.
    awaited("patch-eventually", 0xc9d7_0f4f_3df0_0da7),
    // Changed and not announced.
    silent("patch-fence-i", NO_FLUSH, 0xe8ac_eb75_7aca_b654),
    silent("patch-compressed", NO_FLUSH, 0xddbd_0d3e_02b7_ec3b),
    silent("block-two-pages", NO_FLUSH, 0xc889_352e_19b4_d352),
    silent("block-two-pages", &["first", "no-flush"], 0x6908_0ac8_5bf8_da33),
    silent("block-two-pages", &["second", "no-flush"], 0x6908_0ac8_5bf8_da33),
    silent("store-over-page-boundary", NO_FLUSH, 0x3d12_cc43_ad1f_0883),
    silent("two-harts-one-page", NO_FLUSH, 0x44f9_debb_62dc_bfa9),
    silent("patch-while-others-run", NO_FLUSH, 0x7051_1fee_5e37_807d),
    silent("bulk-overwrite", NO_FLUSH, 0x5197_b0e1_f2ac_d5d3),
    silent("read-into-code", NO_FLUSH, 0x58ac_bf1a_142f_168f),
    silent("jit-many", NO_FLUSH, 0xd20c_c3d9_7f09_2552),
    silent("two-page-stores-progress", NO_FLUSH, 0xaf64_8549_fd27_21d3),
    silent("patch-return-path", NO_FLUSH, 0x6036_d9a5_13d6_d6c6),
    silent("remap-code", NO_FLUSH, 0x8636_b129_512d_30f9).passes_untracked(),
    silent("discard-code", NO_FLUSH, 0x6a64_30b8_0c46_1dd9).passes_untracked(),
    silent("move-code", NO_FLUSH, 0x5d2e_6e2e_7c4f_e546).passes_untracked(),
    silent("patch-by-every-store", NO_FLUSH, 0xd859_fa82_d384_e624),
    silent("jit-wx", NO_FLUSH, 0x763d_6b30_32bc_4a2e).passes_untracked(),
    silent("memfd-dual-map", NO_FLUSH, 0x0d8a_3825_46a8_03f2),
    silent("memfd-dual-harts", NO_FLUSH, 0x8aaf_c2e7_2ef9_7e19),
    silent("fork-patches", NO_FLUSH, 0x6ce6_eb7d_6585_5463),
    silent("stack-trampoline", NO_FLUSH, 0x2882_ad7f_21c3_42f4),
    silent("self-patching-loop", NO_FLUSH, 0x13eb_71b8_628d_2190),
    silent("patch-linked-page", NO_FLUSH, 0xae65_a804_3042_6c43),
    silent("file-writes", NO_FLUSH, 0x4c3a_13e9_15ab_6f68).passes_untracked(),
    silent("memfd-dual-next", NO_FLUSH, 0xe3e3_8866_4040_d604),
    silent("patch-beside-data", NO_FLUSH, 0x95e8_be4b_99b4_0839),
    silent("two-pages-one-checked", NO_FLUSH, 0xf300_5853_b67b_0da4),
    silent("two-pages-one-checked", &["first", "no-flush"], 0xf300_5853_b67b_0da4),
    silent("patch-both-halves", NO_FLUSH, 0x9b13_be01_42e0_37f3),
    silent("replace-mapping", NO_FLUSH, 0x5cbb_9d08_1042_abac).passes_untracked(),
    silent("patch-storm", NO_FLUSH, 0xf7c2_36ff_fe03_cb7b),
    silent("identical-rewrite", NO_FLUSH, 0x88cb_aad2_5c8c_33e7),
];

/// The guests that measure: they print times, so they have no expected output.
/// Each with arguments for a short run.
pub const BENCHES: &[(&str, &[&str])] = &[
    ("bench-patch", &["50"]),
    ("bench-patch", &["50", "empty"]),
    ("bench-patch-flush", &["50"]),
    ("bench-patch-flush", &["50", "fence-i"]),
    ("bench-patch-flush", &["50", "empty"]),
    ("bench-emit", &["1100"]),
    ("bench-emit", &["1100", "empty"]),
    ("bench-bulk", &["2"]),
    ("bench-bulk", &["2", "pread"]),
    ("bench-bulk", &["1", "dense"]),
    ("bench-bulk", &["1", "pread", "dense"]),
    ("bench-bulk", &["1", "empty"]),
    ("bench-data", &["100"]),
    ("bench-data", &["100", "line"]),
    ("bench-data", &["100", "apart"]),
    ("bench-data", &["100", "calls"]),
    ("bench-data", &["100", "calls", "line"]),
    ("bench-data", &["100", "calls", "apart"]),
    ("workload-compute", &["1", "time"]),
    ("workload-calls", &["1", "time"]),
    ("workload-jit", &["1", "time"]),
];
