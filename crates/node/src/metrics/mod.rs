//! What a node counts and measures, through the facade of the crate `metrics`.
//!
//! With the feature `metrics`, masters and slaves tell the process's recorder what they do: counters and histograms as it
//! happens, once for each group and never for each record; gauges once a second. Install the recorder before a node is
//! opened: a counter of one that was opened earlier counts for nobody. Without the feature nothing is counted, and
//! nothing is linked.
//!
//! [`ALL`] is the list of names; [`describe`] tells it to the recorder. Two masters of one history, or two slaves of one
//! name, in one process share their series.

mod follower;
mod instruments;
mod names;
mod sample;
mod source;

pub(crate) use self::follower::FollowerMetrics;
pub(crate) use self::instruments::{Counter, Traffic};
pub use self::names::*;
pub(crate) use self::sample::{Sampled, sample_every_second};
pub(crate) use self::source::SourceMetrics;

/// One time series, or a family of them.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name. Names are an interface: they change with a major version only.
    pub name: &'static str,
    /// How it behaves.
    pub kind: MetricKind,
    /// What it is counted in.
    pub unit: MetricUnit,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
}

/// How a metric behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, from 0 when the node is opened.
    Counter,
    /// It goes up and down. `NaN` while nobody can tell.
    Gauge,
    /// A distribution.
    Histogram {
        /// Bounds of buckets that suit it.
        buckets: &'static [f64],
    },
}

/// What a metric is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricUnit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// Describes every metric to the recorder. Call it once, after the recorder was installed; nothing happens without the
/// feature `metrics`.
pub fn describe() {
    #[cfg(feature = "metrics")]
    for metric in ALL {
        let unit = match metric.unit {
            MetricUnit::Count => metrics::Unit::Count,
            MetricUnit::Bytes => metrics::Unit::Bytes,
            MetricUnit::Seconds => metrics::Unit::Seconds,
        };
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, unit, metric.help),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, unit, metric.help),
            MetricKind::Histogram { .. } => metrics::describe_histogram!(metric.name, unit, metric.help),
        }
    }
}
