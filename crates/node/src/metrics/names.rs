//! The names, all of them.

use super::MetricUnit::{self, Bytes, Count, Seconds};
use super::{Metric, MetricKind};

/// Every metric, in the order of the documentation.
pub const ALL: &[Metric] = &[
    SOURCE_RECORDS,
    SOURCE_GROUPS,
    SOURCE_LOG_BYTES,
    SOURCE_WRITES_REFUSED,
    SOURCE_COMMIT_SECONDS,
    SOURCE_THROTTLED_SECONDS,
    SOURCE_GROUP_RECORDS,
    SOURCE_PUBLISHED_SEQ,
    SOURCE_FLOOR_SEQ,
    SOURCE_LOG_RETAINED_BYTES,
    SOURCE_HEALTH,
    SOURCE_SESSIONS_ACCEPTED,
    SOURCE_SESSIONS_REFUSED,
    SOURCE_SENT_BYTES,
    SOURCE_RECEIVED_BYTES,
    SOURCE_SENT_MESSAGES,
    SOURCE_RECEIVED_MESSAGES,
    SOURCE_COMPRESSED_BYTES,
    SOURCE_COMPRESSED_TO_BYTES,
    SOURCE_FOLLOWERS,
    SOURCE_FOLLOWER_CONNECTED,
    SOURCE_FOLLOWER_LAG_SEQS,
    SOURCE_FOLLOWER_LAG_BYTES,
    SOURCE_FOLLOWER_LAG_SECONDS,
    SOURCE_FOLLOWER_CONTACT_SECONDS,
    FOLLOWER_RECORDS,
    FOLLOWER_GROUPS,
    FOLLOWER_APPLY_SECONDS,
    FOLLOWER_APPLIED_SEQ,
    FOLLOWER_DURABLE_SEQ,
    FOLLOWER_SOURCE_SEQ,
    FOLLOWER_CONSISTENT,
    FOLLOWER_RANGES,
    FOLLOWER_HEALTH,
    FOLLOWER_CONNECTIONS,
    FOLLOWER_CONNECTED,
    FOLLOWER_LAG_SEQS,
    FOLLOWER_LAG_BYTES,
    FOLLOWER_LAG_SECONDS,
    FOLLOWER_CONTACT_SECONDS,
    FOLLOWER_VERIFICATIONS,
    FOLLOWER_VERIFIED_BYTES,
    FOLLOWER_VERIFY_DIFFERENT_ENTRIES,
    FOLLOWER_VERIFIED_SECONDS,
    FOLLOWER_SENT_BYTES,
    FOLLOWER_RECEIVED_BYTES,
    FOLLOWER_SENT_MESSAGES,
    FOLLOWER_RECEIVED_MESSAGES,
];

const TIMES: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

/// Of a master: the history that it writes.
const SOURCE: &[&str] = &["source"];
/// Of a slave: its name.
const FOLLOWER: &[&str] = &["follower"];
/// Of a master, for each of its slaves.
const SOURCE_AND_FOLLOWER: &[&str] = &["source", "follower"];

macro_rules! metrics {
    ($($name:ident = $kind:expr, $unit:expr, $labels:expr, $text:literal, $help:literal;)*) => {
        $(
            #[doc = concat!("`", $text, "`: ", $help)]
            pub const $name: Metric = metric($text, $kind, $unit, $labels, $help);
        )*
    };
}

const COUNTER: MetricKind = MetricKind::Counter;
const GAUGE: MetricKind = MetricKind::Gauge;
const TIME: MetricKind = MetricKind::Histogram { buckets: TIMES };
const SIZE: MetricKind = MetricKind::Histogram { buckets: SIZES };

const fn metric(
    name: &'static str,
    kind: MetricKind,
    unit: MetricUnit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

metrics! {
    SOURCE_RECORDS = COUNTER, Count, SOURCE, "replikv_source_records_total",
        "Records committed.";
    SOURCE_GROUPS = COUNTER, Count, SOURCE, "replikv_source_groups_total",
        "Store transactions that committed records.";
    SOURCE_LOG_BYTES = COUNTER, Bytes, SOURCE, "replikv_source_log_bytes_total",
        "Bytes of records committed to the log.";
    SOURCE_WRITES_REFUSED = COUNTER, Count, &["source", "kind"], "replikv_source_writes_refused_total",
        "Writes that failed, by kind of error: conflict, aborted, limits, store_full, store, outcome_unknown, fenced, closed, recorder_open, claimed, derived, not_derived, superseded.";
    SOURCE_COMMIT_SECONDS = TIME, Seconds, SOURCE, "replikv_source_commit_seconds",
        "How long the store took to commit a group, retries included.";
    SOURCE_THROTTLED_SECONDS = TIME, Seconds, SOURCE, "replikv_source_throttled_seconds",
        "How long writes waited for a slave that was further behind than `max_lag`; writes that did not are not counted.";
    SOURCE_GROUP_RECORDS = SIZE, Count, SOURCE, "replikv_source_group_records",
        "Records of a committed group.";
    SOURCE_PUBLISHED_SEQ = GAUGE, Count, SOURCE, "replikv_source_published_seq",
        "The last published record.";
    SOURCE_FLOOR_SEQ = GAUGE, Count, SOURCE, "replikv_source_floor_seq",
        "Records after this one are in the log.";
    SOURCE_LOG_RETAINED_BYTES = GAUGE, Bytes, SOURCE, "replikv_source_log_retained_bytes",
        "Bytes of records that the log holds.";
    SOURCE_HEALTH = GAUGE, Count, &["source", "state"], "replikv_source_health",
        "1 for the state that the master is in, 0 for the others.";
    SOURCE_SESSIONS_ACCEPTED = COUNTER, Count, SOURCE, "replikv_source_sessions_accepted_total",
        "Connections of slaves that were accepted.";
    SOURCE_SESSIONS_REFUSED = COUNTER, Count, &["source", "code"], "replikv_source_sessions_refused_total",
        "Connections of slaves that were refused, by code.";
    SOURCE_SENT_BYTES = COUNTER, Bytes, SOURCE, "replikv_source_sent_bytes_total",
        "Bytes sent to slaves.";
    SOURCE_RECEIVED_BYTES = COUNTER, Bytes, SOURCE, "replikv_source_received_bytes_total",
        "Bytes received from slaves.";
    SOURCE_SENT_MESSAGES = COUNTER, Count, SOURCE, "replikv_source_sent_messages_total",
        "Messages queued for slaves.";
    SOURCE_RECEIVED_MESSAGES = COUNTER, Count, SOURCE, "replikv_source_received_messages_total",
        "Messages received whole from slaves.";
    SOURCE_COMPRESSED_BYTES = COUNTER, Bytes, SOURCE, "replikv_source_compressed_bytes_total",
        "Bytes that were compressed for slaves that ask for it, as they were before; what goes to several slaves counts once.";
    SOURCE_COMPRESSED_TO_BYTES = COUNTER, Bytes, SOURCE, "replikv_source_compressed_to_bytes_total",
        "Bytes that came of them.";
    SOURCE_FOLLOWERS = GAUGE, Count, SOURCE, "replikv_source_followers",
        "Slaves that are connected.";
    SOURCE_FOLLOWER_CONNECTED = GAUGE, Count, SOURCE_AND_FOLLOWER, "replikv_source_follower_connected",
        "1 while the slave is connected, 0 once it is not.";
    SOURCE_FOLLOWER_LAG_SEQS = GAUGE, Count, SOURCE_AND_FOLLOWER, "replikv_source_follower_lag_seqs",
        "Published records that the slave has not applied; NaN once it is not connected.";
    SOURCE_FOLLOWER_LAG_BYTES = GAUGE, Bytes, SOURCE_AND_FOLLOWER, "replikv_source_follower_lag_bytes",
        "Bytes of these records, up to 255 records too many; NaN once it is not connected.";
    SOURCE_FOLLOWER_LAG_SECONDS = GAUGE, Seconds, SOURCE_AND_FOLLOWER, "replikv_source_follower_lag_seconds",
        "How long ago the oldest of these records was committed; NaN once it is not connected.";
    SOURCE_FOLLOWER_CONTACT_SECONDS = GAUGE, Seconds, SOURCE_AND_FOLLOWER, "replikv_source_follower_contact_seconds",
        "How long ago the slave was heard of; NaN once it is not connected.";
    FOLLOWER_RECORDS = COUNTER, Count, FOLLOWER, "replikv_follower_records_total",
        "Records applied.";
    FOLLOWER_GROUPS = COUNTER, Count, FOLLOWER, "replikv_follower_groups_total",
        "Store transactions that applied records or pages of a copy.";
    FOLLOWER_APPLY_SECONDS = TIME, Seconds, FOLLOWER, "replikv_follower_apply_seconds",
        "How long the store took to commit a group, retries included.";
    FOLLOWER_APPLIED_SEQ = GAUGE, Count, FOLLOWER, "replikv_follower_applied_seq",
        "The last record that is readable; 0 before the first.";
    FOLLOWER_DURABLE_SEQ = GAUGE, Count, FOLLOWER, "replikv_follower_durable_seq",
        "The last record on stable storage; 0 before the first.";
    FOLLOWER_SOURCE_SEQ = GAUGE, Count, FOLLOWER, "replikv_follower_source_seq",
        "The last record that the master has published, as last told; NaN before it has told.";
    FOLLOWER_CONSISTENT = GAUGE, Count, FOLLOWER, "replikv_follower_consistent",
        "1 if the data is a state that the master had, 0 before the first copy is complete, and while it compares.";
    FOLLOWER_RANGES = GAUGE, Count, FOLLOWER, "replikv_follower_ranges",
        "Key ranges that the slave subscribes to; 0 if that is every key.";
    FOLLOWER_HEALTH = GAUGE, Count, &["follower", "state"], "replikv_follower_health",
        "1 for the state that the slave is in, 0 for the others.";
    FOLLOWER_CONNECTIONS = COUNTER, Count, FOLLOWER, "replikv_follower_connections_total",
        "Connections that the master accepted.";
    FOLLOWER_CONNECTED = GAUGE, Count, FOLLOWER, "replikv_follower_connected",
        "1 while a master is connected, 0 while none is.";
    FOLLOWER_LAG_SEQS = GAUGE, Count, FOLLOWER, "replikv_follower_lag_seqs",
        "Published records that are not applied; NaN while no master is connected.";
    FOLLOWER_LAG_BYTES = GAUGE, Bytes, FOLLOWER, "replikv_follower_lag_bytes",
        "Bytes of these records; NaN while no master is connected.";
    FOLLOWER_LAG_SECONDS = GAUGE, Seconds, FOLLOWER, "replikv_follower_lag_seconds",
        "How much older the last applied record is than now, 0 if nothing is missing; NaN while no master is connected.";
    FOLLOWER_CONTACT_SECONDS = GAUGE, Seconds, FOLLOWER, "replikv_follower_contact_seconds",
        "How long ago the master was heard of; NaN if it never was.";
    FOLLOWER_VERIFICATIONS = COUNTER, Count, &["follower", "outcome"], "replikv_follower_verifications_total",
        "Verifications that have ended, by outcome: equal, different, unfinished.";
    FOLLOWER_VERIFIED_BYTES = COUNTER, Bytes, FOLLOWER, "replikv_follower_verified_bytes_total",
        "Bytes of entries that were compared with what the master holds.";
    FOLLOWER_VERIFY_DIFFERENT_ENTRIES = GAUGE, Count, FOLLOWER, "replikv_follower_verify_different_entries",
        "Entries that differed in the last verification, at least one if a range did; NaN before one has ended, and if it found none and was not finished.";
    FOLLOWER_VERIFIED_SECONDS = GAUGE, Seconds, FOLLOWER, "replikv_follower_verified_seconds",
        "How long ago a verification was last finished; NaN before.";
    FOLLOWER_SENT_BYTES = COUNTER, Bytes, FOLLOWER, "replikv_follower_sent_bytes_total",
        "Bytes sent to the master.";
    FOLLOWER_RECEIVED_BYTES = COUNTER, Bytes, FOLLOWER, "replikv_follower_received_bytes_total",
        "Bytes received from the master.";
    FOLLOWER_SENT_MESSAGES = COUNTER, Count, FOLLOWER, "replikv_follower_sent_messages_total",
        "Messages queued for the master.";
    FOLLOWER_RECEIVED_MESSAGES = COUNTER, Count, FOLLOWER, "replikv_follower_received_messages_total",
        "Messages received whole from the master.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_their_kind_and_unit() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Metric { name, kind, unit, labels, help } in ALL {
            assert!(name.starts_with("replikv_source_") || name.starts_with("replikv_follower_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == COUNTER, "{name}");
            assert_eq!(name.contains("_seconds"), *unit == Seconds, "{name}");
            assert_eq!(name.contains("_bytes"), *unit == Bytes, "{name}");
            assert!(help.ends_with('.') && !labels.is_empty(), "{name}");
        }
    }
}
