//! `report [--rounds N] [--out DIR]`: all rows with all sides by turns, as
//! markdown on stdout, and with the pictures in DIR
//! (`target/codewarden-bench` where none is given).

use std::path::PathBuf;
use std::process::ExitCode;

use codewarden::protection::Mode;
use codewarden_bench::machine::Machine;
use codewarden_bench::rows::{self, Row};
use codewarden_bench::side::{self, Who};
use codewarden_bench::table::{self, Measured};
use codewarden_bench::{alternate, picture, scattered, wanted};

/// Scattered pages asked for.
const SCATTERED_PAGES: usize = 1_000_000;

struct Options {
    rounds: usize,
    out: PathBuf,
}

fn options() -> Result<Options, String> {
    let mut options = Options { rounds: 300, out: "target/codewarden-bench".into() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or(format!("{argument} takes a value"))?;
        match argument.as_str() {
            "--rounds" => options.rounds = value.parse().map_err(|error| format!("--rounds {value}: {error}"))?,
            "--out" => options.out = value.into(),
            _ => return Err(format!("unknown option {argument}; known are --rounds N and --out DIR")),
        }
    }
    if options.rounds == 0 {
        return Err("--rounds must be 1 at least".into());
    }
    Ok(options)
}

fn main() -> ExitCode {
    scattered::work_if_child();
    match options().map_err(Into::into).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("report: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    let modes = side::modes();
    let measure = |rows: Vec<Row>| -> Vec<Measured> {
        rows.iter()
            .map(|row| {
                eprintln!("{}", row.name());
                Measured { name: row.name(), outcomes: alternate::measure(row, &modes, options.rounds) }
            })
            .collect()
    };
    let plain = measure(rows::plain());
    let others: Vec<_> = [rows::memfd(), rows::threads()].into_iter().flat_map(measure).collect();
    let runs = scatter(&modes);

    let text = format!(
        "# What tracking costs\n\n{}\nMade by `cargo run --release -p codewarden-bench --bin report`; {} rounds, all \
         sides by turns. Median (p10–p90) of batches of {} pages.\n\n## Anonymous memory, one thread\n\n{}\n## Memfd, \
         and with a second thread\n\n{}\n## Scattered pages\n\n{}\n## Against what was wanted\n\n{}",
        Machine::here().markdown(),
        options.rounds,
        codewarden_bench::ground::PAGES,
        table::rows(&plain),
        table::rows(&others),
        table::scattered(&runs),
        wanted::lines(&plain, &runs),
    );
    println!("{text}");
    std::fs::create_dir_all(&options.out)?;
    std::fs::write(options.out.join("report.md"), &text)?;
    picture::costs(&options.out.join("costs.svg"), &plain)?;
    picture::scattered(&options.out.join("scattered.svg"), &runs)?;
    eprintln!("written to {}", options.out.display());
    Ok(())
}

fn scatter(modes: &[Mode]) -> Vec<(Mode, Who, scattered::Scattered)> {
    let mut runs = Vec::new();
    for &mode in modes {
        for who in Who::ALL {
            eprintln!("scattered pages, {mode}, {}", who.name());
            let run = scattered::run(who, mode, SCATTERED_PAGES);
            scattered::check(mode, &run, SCATTERED_PAGES);
            runs.push((mode, who, run));
        }
    }
    runs
}
