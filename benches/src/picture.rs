//! The report's pictures.

use std::error::Error;
use std::path::Path;

use codewarden::protection::Mode;
use plotters::prelude::*;

use crate::policy::measure::Measured as Program;
use crate::policy::rows::Threads;
use crate::policy::side::Side;
use crate::policy::table::figures;
use crate::scattered::Scattered;
use crate::side::Who;
use crate::table::Measured;

fn colour(mode: Mode) -> RGBColor {
    match mode {
        Mode::Sigbus => RGBColor(0, 114, 178),
        Mode::Thread => RGBColor(204, 121, 167),
        Mode::Deferred => RGBColor(0, 158, 115),
        Mode::Mprotect => RGBColor(213, 94, 0),
        _ => RGBColor(120, 120, 120),
    }
}

const TEXT: (&str, u32) = ("sans-serif", 15);

/// Bars: the library's median in each mode and row, its floor as a dark part of
/// the bar, its p10 to p90 as a line.
pub fn costs(file: &Path, rows: &[Measured]) -> Result<(), Box<dyn Error>> {
    let bars: usize = rows.iter().map(|row| row.outcomes.len() + 1).sum();
    let root = SVGBackend::new(file, (900, 60 + 22 * bars as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let longest = rows.iter().flat_map(|row| &row.outcomes).map(|outcome| outcome.library().p90_ns).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .margin_left(230)
        .x_label_area_size(40)
        .build_cartesian_2d(0.0..longest / 1000.0 * 1.05, bars as f64..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("µs a page (dark: the bare system calls)")
        .draw()?;
    let mut top = 0.0;
    for row in rows {
        label(&root, &chart, top, &row.name, &BLACK)?;
        top += 1.0;
        for outcome in &row.outcomes {
            let (library, floor) = (outcome.library(), outcome.floor());
            let colour = colour(outcome.mode);
            let bar =
                |to_ns: f64, style: ShapeStyle| Rectangle::new([(0.0, top + 0.1), (to_ns / 1000.0, top + 0.9)], style);
            chart.draw_series([bar(library.median_ns, colour.mix(0.45).filled())])?;
            chart.draw_series([bar(floor.median_ns.min(library.median_ns), colour.filled())])?;
            let spread = [(library.p10_ns / 1000.0, top + 0.5), (library.p90_ns / 1000.0, top + 0.5)];
            chart.draw_series([PathElement::new(spread, BLACK)])?;
            label(&root, &chart, top, &format!("    {}", outcome.mode), &colour)?;
            top += 1.0;
        }
    }
    root.present()?;
    Ok(())
}

/// Bars: the cost of each side's tracking in each program, with one thread. The axis is
/// logarithmic; a cost below a nanosecond has no bar.
pub fn programs(file: &Path, rows: &[Program]) -> Result<(), Box<dyn Error>> {
    let rows = rows.iter().filter(|row| row.row.threads == Threads::Working(1));
    let mut bars = Vec::new();
    for row in rows {
        for (name, figure) in figures(row.row.workload) {
            bars.push((name, BLACK, None));
            for (side, _) in row.sides.iter().filter(|(side, _)| *side != Side::Off) {
                let colour = if *side == Side::Plain { BLACK } else { colour(side.mode()) };
                bars.push((format!("    {}", side.name()), colour, row.cost(*side, figure)));
            }
        }
    }
    let root = SVGBackend::new(file, (900, 60 + 22 * bars.len() as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let longest_ns = bars.iter().filter_map(|(_, _, cost)| *cost).map(|cost| cost.p90_ns).fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .margin(10)
        .margin_left(400)
        .x_label_area_size(40)
        .build_cartesian_2d((1.0..longest_ns * 1.2).log_scale(), bars.len() as f64..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_desc("tracking cost, ns an operation")
        .x_label_formatter(&|ns| format!("{ns:.0}"))
        .draw()?;
    for (index, (name, colour, cost)) in bars.iter().enumerate() {
        let top = index as f64;
        if let Some(cost) = cost {
            let bar = [(1.0, top + 0.1), (cost.median_ns.max(1.0), top + 0.9)];
            chart.draw_series([Rectangle::new(bar, colour.mix(0.7).filled())])?;
            let spread = [(cost.p10_ns.max(1.0), top + 0.5), (cost.p90_ns.max(1.0), top + 0.5)];
            chart.draw_series([PathElement::new(spread, BLACK)])?;
        }
        let (_, y) = chart.backend_coord(&(1.0, top + 0.25));
        root.draw(&Text::new(name.clone(), (12, y), TEXT.into_font().color(colour)))?;
    }
    root.present()?;
    Ok(())
}

type Costs<'a> = ChartContext<
    'a,
    SVGBackend<'a>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn label(
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    chart: &Costs<'_>,
    top: f64,
    text: &str,
    colour: &RGBColor,
) -> Result<(), Box<dyn Error>> {
    let (_, y) = chart.backend_coord(&(0.0, top + 0.25));
    root.draw(&Text::new(text.to_string(), (12, y), TEXT.into_font().color(colour)))?;
    Ok(())
}

/// Lines: the cost of a page while more and more scattered ones are protected.
pub fn scattered(file: &Path, runs: &[(Mode, Who, Scattered)]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let runs: Vec<_> = runs.iter().filter(|(mode, who, _)| *who == Who::Library && *mode != Mode::None).collect();
    let steps = || runs.iter().flat_map(|(_, _, run)| &run.steps);
    let most = steps().map(|&(pages, _)| pages).max().unwrap_or(1) as f64;
    let highest = steps().map(|&(_, ns)| ns).fold(0.0, f64::max) / 1000.0;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .margin_right(40)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((1000.0..most).log_scale(), 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("scattered pages protected")
        .x_label_formatter(&|pages| format!("{pages:.0}"))
        .y_desc("µs a page")
        .draw()?;
    for (mode, _, run) in runs {
        let colour = colour(*mode);
        let points = run.steps.iter().map(|&(pages, ns)| (pages as f64, ns / 1000.0)).collect::<Vec<_>>();
        let end = if run.errno == 0 { String::new() } else { format!(": ends at {}", run.reached) };
        let last = points.last().copied();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(format!("{mode}{end}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        if run.errno != 0 {
            chart.draw_series(last.map(|at| Cross::new(at, 6, colour.stroke_width(2))))?;
        }
    }
    let corner = SeriesLabelPosition::UpperRight;
    chart
        .configure_series_labels()
        .position(corner)
        .background_style(WHITE)
        .border_style(BLACK)
        .label_font(TEXT)
        .draw()?;
    root.present()?;
    Ok(())
}
