//! Figures: of one round, and the medians of all of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ui;

/// What one round has measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sample {
    pub(super) scenario: String,
    pub(super) store: String,
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// What the same round has measured to compare it with.
    pub(super) base: Option<f64>,
    /// The ratio that this project means to reach.
    pub(super) goal: Option<f64>,
}

impl Sample {
    /// So many a second, and what they are compared with.
    pub(super) fn rate(scenario: &str, store: &str, what: impl Into<String>, value: f64, base: f64) -> Self {
        let (scenario, store, what) = (scenario.into(), store.into(), what.into());
        Self { scenario, store, what, value, unit: Unit::PerSecond, base: Some(base), goal: None }
    }

    /// Microseconds.
    pub(super) fn micros(scenario: &str, store: &str, what: impl Into<String>, value: f64) -> Self {
        let (scenario, store, what) = (scenario.into(), store.into(), what.into());
        Self { scenario, store, what, value, unit: Unit::Micros, base: None, goal: None }
    }

    pub(super) fn bytes(scenario: &str, store: &str, what: impl Into<String>, value: f64) -> Self {
        Self { unit: Unit::Bytes, ..Self::micros(scenario, store, what, value) }
    }

    pub(super) fn goal(mut self, goal: Option<f64>) -> Self {
        self.goal = goal;
        self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Unit {
    PerSecond,
    Micros,
    Bytes,
}

/// The medians of a figure over all rounds.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) scenario: String,
    pub(super) store: String,
    pub(super) what: String,
    pub(super) value: f64,
    pub(super) unit: Unit,
    /// The median of the ratios, each of one round. It need not be the ratio of the medians.
    pub(super) ratio: Option<f64>,
    /// The lowest and the highest of them.
    pub(super) ratios: Option<(f64, f64)>,
    pub(super) base: Option<f64>,
    pub(super) goal: Option<f64>,
}

impl Row {
    /// One row for each figure, in the order in which the first round measured them.
    pub(super) fn medians(samples: Vec<Sample>) -> Vec<Self> {
        let mut figures: Vec<Vec<Sample>> = Vec::new();
        for sample in samples {
            let same = |other: &[Sample]| other.first().is_some_and(|first| first.is_of(&sample));
            match figures.iter_mut().find(|figure| same(figure)) {
                Some(figure) => figure.push(sample),
                None => figures.push(vec![sample]),
            }
        }
        figures.iter().filter_map(|figure| Self::median(figure)).collect()
    }

    fn median(figure: &[Sample]) -> Option<Self> {
        let first = figure.first()?;
        let values = figure.iter().map(|sample| sample.value).collect();
        let mut ratios: Vec<f64> = figure.iter().filter_map(Sample::ratio).collect();
        ratios.sort_by(f64::total_cmp);
        Some(Self {
            scenario: first.scenario.clone(),
            store: first.store.clone(),
            what: first.what.clone(),
            value: median(values)?,
            unit: first.unit,
            ratios: ratios.first().copied().zip(ratios.last().copied()),
            ratio: median(ratios),
            base: median(figure.iter().filter_map(|sample| sample.base).collect()),
            goal: first.goal,
        })
    }
}

impl Sample {
    /// How many times as much, or as quick.
    fn ratio(&self) -> Option<f64> {
        self.base.map(|base| match self.unit {
            Unit::PerSecond => self.value / base,
            Unit::Micros | Unit::Bytes => base / self.value,
        })
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.scenario, &self.store, &self.what) == (&other.scenario, &other.store, &other.what)
    }
}

/// The one in the middle; of two in the middle the higher one.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A table for a terminal, or for a page.
pub(super) fn table(rows: &[Row]) -> comfy_table::Table {
    table_of(rows, ["scenario", "store", "what", "figure", "compared with", "ratio", "from", "to", "goal"])
}

/// The same, of scenarios that are names of other systems.
pub(super) fn table_beside(rows: &[Row]) -> comfy_table::Table {
    table_of(rows, ["beside", "replikv in", "what", "replikv", "the other", "ratio", "from", "to", "goal"])
}

fn table_of(rows: &[Row], header: [&str; 9]) -> comfy_table::Table {
    let mut table = ui::table(header);
    let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    for row in rows {
        table.add_row([
            row.scenario.to_string(),
            row.store.clone(),
            row.what.clone(),
            Figure(row.value, row.unit).to_string(),
            row.base.map_or_else(String::new, |base| Figure(base, row.unit).to_string()),
            ratio(row.ratio),
            ratio(row.ratios.map(|ratios| ratios.0)),
            ratio(row.ratios.map(|ratios| ratios.1)),
            ratio(row.goal),
        ]);
    }
    table
}

struct Figure(f64, Unit);

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Unit::PerSecond => f.write_str(&ui::rate_words(self.0)),
            Unit::Micros if self.0 >= 10_000.0 => write!(f, "{:.1} ms", self.0 / 1e3),
            Unit::Bytes => write!(f, "{:.1} KiB", self.0 / 1024.0),
            Unit::Micros => write!(f, "{:.0} us", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_median_of_its_figure_and_of_its_ratios() {
        let sample = |what: &str, value, base| Sample::rate("write", "lmdb", what, value, base);
        let rows = Row::medians(vec![
            sample("a", 10.0, 10.0),
            sample("b", 7.0, 1.0),
            sample("a", 30.0, 10.0),
            sample("a", 20.0, 40.0),
        ]);
        let seen: Vec<_> = rows.iter().map(|row| (row.what.as_str(), row.value, row.ratio, row.ratios)).collect();
        assert_eq!(seen, [("a", 20.0, Some(1.0), Some((0.5, 3.0))), ("b", 7.0, Some(7.0), Some((7.0, 7.0)))]);
    }
}
