//! All rows, with all sides in turn, as markdown on stdout, with pictures in a directory: `cargo
//! bench -p codewarden-bench --bench report`, optionally with `-- --rounds N --out DIR`. With
//! `--only TEXT` it measures only the rows of single pages with that text in their names; with
//! `--only scale`, `--only memory` and `--only populating` only that table. With `--test` everything runs once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use codewarden::protection::Mode;
use codewarden_bench::lookup::Sizes;
use codewarden_bench::machine::Machine;
use codewarden_bench::open;
use codewarden_bench::peers::{self, Setup};
use codewarden_bench::rows::{self, Row};
use codewarden_bench::scale::{self, Extent};
use codewarden_bench::side::Who;
use codewarden_bench::table::{self, Measured};
use codewarden_bench::{
    alternate, blocks, ground, guest, lookup, memory, pair, picture, policy, populating, replaced, scattered, wanted,
};

/// The command that a reader can repeat.
const COMMAND: &str = "cargo bench -p codewarden-bench --bench report";

/// Tables that `--only` names.
const SCALE: &str = "scale";
const MEMORY: &str = "memory";
const POPULATING: &str = "populating";

struct Options {
    rounds: usize,
    guest_rounds: usize,
    /// The guests' numbers of operations are divided by this.
    guest_share: u32,
    scattered_pages: usize,
    /// Nothing is measured: every size without a field above is small.
    is_check: bool,
    out: PathBuf,
    /// Only rows of single pages with this text in their names, or one table.
    only: Option<String>,
}

impl Options {
    fn full() -> Self {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
        Self {
            rounds: 300,
            guest_rounds: 5,
            guest_share: 1,
            scattered_pages: 1_000_000,
            is_check: false,
            out,
            only: None,
        }
    }

    /// Reads the arguments; `None` if they ask for other benches.
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self::full();
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} takes a value"));
            match argument.as_str() {
                "--test" => {
                    (options.rounds, options.guest_rounds, options.guest_share) = (2, 1, 50);
                    (options.scattered_pages, options.is_check) = (40_000, true);
                }
                "--rounds" => {
                    let value = value()?;
                    options.rounds = value.parse().map_err(|error| format!("--rounds {value}: {error}"))?;
                }
                "--only" => options.only = Some(value()?),
                "--out" => options.out = value()?.into(),
                // A filter for the criterion benches, or an option of theirs.
                _ => return Ok(None),
            }
        }
        if options.rounds == 0 {
            return Err("--rounds must be 1 at least".into());
        }
        Ok(Some(options))
    }
}

fn main() -> ExitCode {
    scattered::work_if_child();
    let done = Options::parse(std::env::args().skip(1)).map_err(Into::into).and_then(|options| match options {
        Some(options) => run(&options),
        None => Ok(()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let modes = open::modes();
    let measure = |rows: Vec<Row>| -> Vec<Measured> {
        let is_wanted = |row: &&Row| options.only.as_ref().is_none_or(|text| row.name().contains(text));
        rows.iter()
            .filter(is_wanted)
            .map(|row| {
                eprintln!("{}", row.name());
                Measured { name: row.name(), outcomes: alternate::measure(row, &modes, options.rounds) }
            })
            .collect()
    };
    let plain = measure(rows::plain());
    let others: Vec<_> = [rows::memfd(), rows::threads()].into_iter().flat_map(measure).collect();
    let scale = || {
        eprintln!("{SCALE}");
        let rounds = options.rounds.div_ceil(30);
        let extent = if options.is_check { Extent::QUICK } else { Extent { rounds, ..Extent::FULL } };
        scale::measure(&modes, extent)
    };
    let memory = || {
        eprintln!("{MEMORY}");
        memory::markdown(&modes, if options.is_check { 1_000 } else { 100_000 })
    };
    let populating = || {
        eprintln!("{POPULATING}");
        pair::markdown(&populating::measure(options.rounds))
    };
    if let Some(only) = &options.only {
        let tables = match only.as_str() {
            SCALE => {
                let scale = scale();
                scale.markdown() + &scale.against_wanted()
            }
            MEMORY => memory(),
            POPULATING => populating(),
            _ => table::rows(&plain) + "\n" + &table::rows(&others),
        };
        println!("{}\n{tables}", head(options, &format!("{COMMAND} -- --only '{only}'")));
        return Ok(());
    }
    let programs = policy::measure(&modes, "", options.is_check);
    let runs = scatter(&modes, options.scattered_pages);
    eprintln!("lookups");
    let sizes = if options.is_check { Sizes::QUICK } else { Sizes::FULL };
    let few_rounds = options.rounds.div_ceil(10);
    let mut lookups = lookup::measure(few_rounds, sizes);
    lookups.extend(blocks::measure(few_rounds, sizes));
    lookups.push(replaced::measure(options.rounds));
    eprintln!("guests");
    let emulator = Path::new(env!("CARGO_BIN_EXE_bench-emulator"));
    let guests = guest::measure(emulator, &modes, options.guest_rounds, options.guest_share);
    let setup = Setup { emulator: emulator.into(), rounds: options.guest_rounds, share: options.guest_share };
    let peers = peers::measure(&setup);

    let scale = scale();
    let against_wanted = wanted::lines(&plain, &runs)
        + &pair::against_wanted(&lookups)
        + &programs.against_wanted()
        + &peers.against_wanted()
        + &scale.against_wanted();
    let sections = [
        ("Anonymous memory, one thread", table::rows(&plain)),
        ("Memfd, and with a second thread", table::rows(&others)),
        ("Programs under a policy", programs.to_string()),
        ("Scattered pages", table::scattered(&runs)),
        ("Lookups, and blocks among many", pair::markdown(&lookups)),
        ("Populating before a protection, as before Linux 6.4", populating()),
        ("Threads at once", scale.markdown()),
        ("Memory", memory()),
        ("Guests in the demo emulator", table::guests(&guests)),
        ("Beside a peer", peers.to_string()),
        ("Against what was wanted", against_wanted),
    ];
    let mut text = head(options, COMMAND);
    for (title, body) in sections {
        text += &format!("\n## {title}\n\n{body}");
    }
    println!("{text}");
    std::fs::create_dir_all(&options.out)?;
    std::fs::write(options.out.join("report.md"), &text)?;
    picture::costs(&options.out.join("costs.svg"), &plain)?;
    picture::programs(&options.out.join("programs.svg"), &programs.programs)?;
    picture::scattered(&options.out.join("scattered.svg"), &runs)?;
    eprintln!("written to {}", options.out.display());
    Ok(())
}

fn head(options: &Options, command: &str) -> String {
    format!(
        "# What tracking costs\n\n{}\nMade by `{command}`: {} rounds, all sides by turns; median (p10–p90) of batches \
         of {} pages.\n",
        Machine::here().markdown(),
        options.rounds,
        ground::PAGES,
    )
}

fn scatter(modes: &[Mode], pages: usize) -> Vec<(Mode, Who, scattered::Scattered)> {
    let mut runs = Vec::new();
    for &mode in modes {
        for who in Who::ALL {
            eprintln!("scattered pages, {mode}, {}", who.name());
            let run = scattered::run(who, mode, pages);
            scattered::check(mode, &run, pages);
            runs.push((mode, who, run));
        }
    }
    runs
}
