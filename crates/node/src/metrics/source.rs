//! What a master counts.

use std::collections::BTreeSet;
use std::time::Duration;

use replikv_core::{Seq, SourceId, StoreError};
use replikv_proto::RejectCode;

use super::instruments::{Counter, Histogram, Traffic, set_gauge};
use super::sample::{float, seconds, set_health};
use super::*;
use crate::transport::Volume;
use crate::{MasterStatus, SlaveSeen, WriteError};

const KINDS: [&str; 8] =
    ["conflict", "aborted", "limits", "store_full", "store", "outcome_unknown", "fenced", "closed"];

/// Counters and histograms of one master.
#[derive(Debug)]
pub(crate) struct SourceMetrics {
    source: String,
    traffic: Traffic,
    compressed: Volume,
    records: Counter,
    groups: Counter,
    log_bytes: Counter,
    commit_seconds: Histogram,
    throttled_seconds: Histogram,
    group_records: Histogram,
    accepted: Counter,
    /// In the order of [`KINDS`].
    refused: [Counter; KINDS.len()],
}

impl SourceMetrics {
    pub(crate) fn new(source: SourceId) -> Self {
        let source = source.to_string();
        let labels = [("source", &source[..])];
        let counter = |metric| Counter::new(&metric, &labels);
        Self {
            traffic: Traffic {
                sent_bytes: counter(SOURCE_SENT_BYTES),
                received_bytes: counter(SOURCE_RECEIVED_BYTES),
                sent_messages: counter(SOURCE_SENT_MESSAGES),
                received_messages: counter(SOURCE_RECEIVED_MESSAGES),
            },
            compressed: Volume { before: counter(SOURCE_COMPRESSED_BYTES), after: counter(SOURCE_COMPRESSED_TO_BYTES) },
            records: counter(SOURCE_RECORDS),
            groups: counter(SOURCE_GROUPS),
            log_bytes: counter(SOURCE_LOG_BYTES),
            commit_seconds: Histogram::new(&SOURCE_COMMIT_SECONDS, &labels),
            throttled_seconds: Histogram::new(&SOURCE_THROTTLED_SECONDS, &labels),
            group_records: Histogram::new(&SOURCE_GROUP_RECORDS, &labels),
            accepted: counter(SOURCE_SESSIONS_ACCEPTED),
            refused: KINDS.map(|kind| Counter::new(&SOURCE_WRITES_REFUSED, &[labels[0], ("kind", kind)])),
            source,
        }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    pub(crate) fn compressed(&self) -> Volume {
        self.compressed.clone()
    }

    /// A group is committed; `took` if it is known how long that took.
    pub(crate) fn committed(&self, records: usize, log_bytes: u64, took: Option<Duration>) {
        let records = records as u64;
        self.records.add(records);
        self.groups.add(1);
        self.log_bytes.add(log_bytes);
        self.group_records.record(float(records));
        if let Some(took) = took {
            self.commit_seconds.record(took.as_secs_f64());
        }
    }

    /// A write has waited for slaves.
    pub(crate) fn throttled(&self, waited: Duration) {
        self.throttled_seconds.record(waited.as_secs_f64());
    }

    /// A write has failed.
    pub(crate) fn refused(&self, error: &WriteError) {
        let kind = kind(error);
        let counters = KINDS.iter().zip(&self.refused);
        counters.filter(|(name, _)| **name == kind).for_each(|(_, counter)| counter.add(1));
    }

    pub(crate) fn session_accepted(&self) {
        self.accepted.add(1);
    }

    pub(crate) fn session_refused(&self, code: RejectCode) {
        Counter::new(&SOURCE_SESSIONS_REFUSED, &[("source", &self.source), ("code", code_name(code))]).add(1);
    }

    /// Sets the gauges. `before` are the slaves that were connected at the last look.
    pub(crate) fn sample(&self, status: &MasterStatus, before: &mut BTreeSet<String>) {
        set_health(&SOURCE_HEALTH, ("source", &self.source[..]), &status.health);
        let log = (status.published.seq, status.floor.seq, status.retained_bytes);
        self.sample_served(log, &status.slaves, before);
    }

    /// As [`sample`](Self::sample), of whoever serves: the last record, the one before the first, and the bytes of the log.
    pub(crate) fn sample_served(
        &self,
        (published, floor, retained): (Seq, Seq, u64),
        slaves: &[SlaveSeen],
        before: &mut BTreeSet<String>,
    ) {
        let set = |metric, value| set_gauge(&metric, &[("source", &self.source[..])], value);
        set(SOURCE_PUBLISHED_SEQ, float(published.as_u64()));
        set(SOURCE_FLOOR_SEQ, float(floor.as_u64()));
        set(SOURCE_LOG_RETAINED_BYTES, float(retained));
        set(SOURCE_FOLLOWERS, float(slaves.len() as u64));
        let connected = slaves.iter().map(|slave| slave.name.clone()).collect();
        for gone in before.difference(&connected) {
            self.sample_follower(gone, None);
        }
        for slave in slaves {
            self.sample_follower(&slave.name, Some(slave));
        }
        *before = connected;
    }

    // What was last known of a slave that is gone would look like a slave that is well.
    fn sample_follower(&self, name: &str, seen: Option<&SlaveSeen>) {
        let set = |metric, value: Option<f64>| {
            set_gauge(&metric, &[("source", &self.source), ("follower", name)], value.unwrap_or(f64::NAN));
        };
        set(SOURCE_FOLLOWER_CONNECTED, Some(if seen.is_some() { 1.0 } else { 0.0 }));
        set(SOURCE_FOLLOWER_LAG_SEQS, seen.map(|slave| float(slave.lag_seqs)));
        set(SOURCE_FOLLOWER_LAG_BYTES, seen.map(|slave| float(slave.lag_bytes)));
        set(SOURCE_FOLLOWER_LAG_SECONDS, seen.map(|slave| seconds(slave.lag_ms)));
        set(SOURCE_FOLLOWER_CONTACT_SECONDS, seen.map(|slave| seconds(slave.last_contact_ms)));
    }
}

fn kind(error: &WriteError) -> &'static str {
    match error {
        WriteError::Conflict { .. } => "conflict",
        WriteError::Aborted { .. } => "aborted",
        WriteError::Fenced => "fenced",
        WriteError::Superseded { .. } => "superseded",
        WriteError::OutcomeUnknown { .. } => "outcome_unknown",
        WriteError::RecorderOpen => "recorder_open",
        WriteError::Claimed { .. } => "claimed",
        WriteError::Derived { .. } => "derived",
        WriteError::NotDerived { .. } | WriteError::Store(StoreError::NotDerived { .. }) => "not_derived",
        WriteError::Closed | WriteError::Store(StoreError::Closed) => "closed",
        WriteError::Store(StoreError::StoreFull { .. }) => "store_full",
        WriteError::Store(
            StoreError::KeyEmpty
            | StoreError::KeyTooLong { .. }
            | StoreError::KeyUnfit { .. }
            | StoreError::ValueTooLarge { .. }
            | StoreError::BatchTooLarge { .. },
        ) => "limits",
        WriteError::Store(_) => "store",
        // It is committed.
        WriteError::NotReplicated { .. } => "",
    }
}

fn code_name(code: RejectCode) -> &'static str {
    match code {
        RejectCode::ForeignSource => "foreign_source",
        RejectCode::Diverged => "diverged",
        RejectCode::SlaveAhead => "slave_ahead",
        RejectCode::DataWithoutCursor => "data_without_cursor",
        RejectCode::NeedsCompare => "needs_compare",
        RejectCode::Superseded => "superseded",
        RejectCode::Loop => "loop",
        RejectCode::LimitsTooSmall => "limits_too_small",
        RejectCode::Busy => "busy",
        RejectCode::Unsupported => "unsupported",
        RejectCode::Malformed => "malformed",
        RejectCode::Closing => "closing",
        RejectCode::DuplicateSlave => "duplicate_slave",
        _ => "other",
    }
}
