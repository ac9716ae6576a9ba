//! Counters, gauges and histograms of the facade; nothing at all without the feature.

use super::Metric;

type Labels<'a> = &'a [(&'static str, &'a str)];

#[cfg(feature = "metrics")]
mod facade {
    use metrics::{Key, Label, Level, Metadata, with_recorder};

    use super::{Labels, Metric};

    // The target says where a series comes from; the level is what a recorder may filter by.
    const METADATA: Metadata<'static> = Metadata::new("replikv", Level::INFO, Some(module_path!()));

    #[derive(Debug, Clone)]
    pub(crate) struct Counter(metrics::Counter);

    impl Counter {
        pub(crate) fn new(metric: &Metric, labels: Labels<'_>) -> Self {
            Self(with_recorder(|recorder| recorder.register_counter(&key(metric, labels), &METADATA)))
        }

        pub(crate) fn add(&self, count: u64) {
            self.0.increment(count);
        }
    }

    impl Default for Counter {
        fn default() -> Self {
            Self(metrics::Counter::noop())
        }
    }

    #[derive(Debug)]
    pub(crate) struct Histogram(metrics::Histogram);

    impl Histogram {
        pub(crate) fn new(metric: &Metric, labels: Labels<'_>) -> Self {
            Self(with_recorder(|recorder| recorder.register_histogram(&key(metric, labels), &METADATA)))
        }

        pub(crate) fn record(&self, value: f64) {
            self.0.record(value);
        }
    }

    pub(crate) fn set_gauge(metric: &Metric, labels: Labels<'_>, value: f64) {
        with_recorder(|recorder| recorder.register_gauge(&key(metric, labels), &METADATA).set(value));
    }

    fn key(metric: &Metric, labels: Labels<'_>) -> Key {
        let labels = labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned()));
        Key::from_parts(metric.name, labels.collect::<Vec<_>>())
    }
}

#[cfg(not(feature = "metrics"))]
mod facade {
    use super::{Labels, Metric};

    #[derive(Debug, Clone, Default)]
    pub(crate) struct Counter;

    impl Counter {
        pub(crate) fn new(_: &Metric, _: Labels<'_>) -> Self {
            Self
        }

        pub(crate) fn add(&self, _: u64) {}
    }

    #[derive(Debug)]
    pub(crate) struct Histogram;

    impl Histogram {
        pub(crate) fn new(_: &Metric, _: Labels<'_>) -> Self {
            Self
        }

        pub(crate) fn record(&self, _: f64) {}
    }

    pub(crate) fn set_gauge(_: &Metric, _: Labels<'_>, _: f64) {}
}

pub(crate) use self::facade::{Counter, Histogram, set_gauge};

/// What goes over a node's connections. The default counts for nobody.
#[derive(Debug, Clone, Default)]
pub(crate) struct Traffic {
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_messages: Counter,
    pub(crate) received_messages: Counter,
}
