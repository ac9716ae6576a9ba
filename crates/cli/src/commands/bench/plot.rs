//! Charts of figures: one file for each scenario.

use std::path::Path;

use anyhow::{Context, anyhow};
use plotters::prelude::*;

use super::figure::{Row, Unit};
use super::workload;
use crate::args;

const WIDTH: u32 = 900;
/// Pixels of one bar with its margins, and of everything beside the bars.
const BAR: u32 = 26;
const BESIDE: u32 = 110;

const COLOURS: [RGBColor; 5] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// Draws each scenario of `rows` into a file of its name.
pub(super) fn draw(dir: &Path, rows: &[Row], args: &args::Bench) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let end = rest.iter().position(|row| row.scenario != first.scenario).unwrap_or(rest.len());
        let (scenario, others) = rest.split_at(end);
        rest = others;
        let path = dir.join(format!("{}.svg", first.scenario));
        chart(&path, scenario, args).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

// A bar for each figure, from the top down: its ratio with the goal marked, or its time on a logarithmic scale.
fn chart(path: &Path, rows: &[Row], args: &args::Bench) -> anyhow::Result<()> {
    // What has a unit of its own is in the table.
    let rows: Vec<&Row> = rows.iter().filter(|row| row.unit != Unit::Bytes).collect();
    let unit = if rows.iter().all(|row| row.ratio.is_some()) { Unit::PerSecond } else { Unit::Micros };
    let scenario = rows.first().map_or("", |first| &first.scenario);
    let place = |row: &Row| match unit {
        Unit::Micros => row.value.max(1.0).log10(),
        Unit::PerSecond | Unit::Bytes => row.ratio.unwrap_or_default(),
    };
    let goals = rows.iter().filter_map(|row| row.goal);
    let most = rows.iter().map(|row| place(row)).chain(goals).fold(0.1, f64::max) * 1.12;
    let title = format!("{scenario}: {}, medians of {} rounds", workload::words(args), args.rounds);
    let height = BESIDE + BAR * u32::try_from(rows.len())?;
    let area = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(270)
        .build_cartesian_2d(0.0..most, (0..rows.len()).into_segmented())
        .map_err(failed)?;
    let last = rows.len().saturating_sub(1);
    let label = |segment: &SegmentValue<usize>| match segment {
        SegmentValue::CenterOf(at) | SegmentValue::Exact(at) => {
            rows.get(last.saturating_sub(*at)).map_or_else(String::new, |row| format!("{}, {}", row.store, row.what))
        }
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(rows.len() + 1)
        .y_label_formatter(&label)
        .x_desc(match unit {
            Unit::Micros => "microseconds",
            Unit::PerSecond | Unit::Bytes => "ratio to what it is compared with; the line is the goal",
        })
        .x_label_formatter(&|at| match unit {
            Unit::Micros => format!("{:.0}", 10f64.powf(*at)),
            Unit::PerSecond | Unit::Bytes => format!("{at:.1}"),
        })
        .draw()
        .map_err(failed)?;
    let mut stores: Vec<&str> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if !stores.contains(&row.store.as_str()) {
            stores.push(&row.store);
        }
        let colour = COLOURS[(stores.len() - 1) % COLOURS.len()];
        let (below, above) = (SegmentValue::Exact(last - index), SegmentValue::Exact(last - index + 1));
        let mut bar = Rectangle::new([(0.0, below), (place(row), above)], colour.filled());
        bar.set_margin(4, 4, 0, 0);
        chart.draw_series([bar]).map_err(failed)?;
        let words = match unit {
            Unit::Micros => format!("{:.0}", row.value),
            Unit::PerSecond | Unit::Bytes => format!("{:.2}", place(row)),
        };
        let at = (place(row), SegmentValue::CenterOf(last - index));
        let words = EmptyElement::at(at) + Text::new(words, (4, -6), ("sans-serif", 12));
        chart.draw_series([words]).map_err(failed)?;
        if let Some(goal) = row.goal {
            let ends = [SegmentValue::Exact(last - index), SegmentValue::Exact(last - index + 1)];
            let line = PathElement::new(ends.map(|end| (goal, end)), BLACK.stroke_width(2));
            chart.draw_series([line]).map_err(failed)?;
        }
    }
    area.present().map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("a chart cannot be drawn: {error}")
}
