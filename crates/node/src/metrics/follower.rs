//! What a slave counts.

use std::time::Duration;

use super::instruments::{Counter, Histogram, Traffic, set_gauge};
use super::sample::{float, seconds, set_health};
use super::*;
use crate::{SlaveProgress, SlaveStatus, Verification, VerifyOutcome};

const OUTCOMES: [(VerifyOutcome, &str); 3] = [
    (VerifyOutcome::Equal, "equal"),
    (VerifyOutcome::Different, "different"),
    (VerifyOutcome::Unfinished, "unfinished"),
];

/// Counters and histograms of one slave.
#[derive(Debug)]
pub(crate) struct FollowerMetrics {
    follower: String,
    traffic: Traffic,
    records: Counter,
    groups: Counter,
    apply_seconds: Histogram,
    connections: Counter,
    /// In the order of [`OUTCOMES`].
    verifications: [Counter; OUTCOMES.len()],
    verified_bytes: Counter,
}

impl FollowerMetrics {
    pub(crate) fn new(follower: &str) -> Self {
        let labels = [("follower", follower)];
        let counter = |metric| Counter::new(&metric, &labels);
        Self {
            follower: follower.into(),
            traffic: Traffic {
                sent_bytes: counter(FOLLOWER_SENT_BYTES),
                received_bytes: counter(FOLLOWER_RECEIVED_BYTES),
                sent_messages: counter(FOLLOWER_SENT_MESSAGES),
                received_messages: counter(FOLLOWER_RECEIVED_MESSAGES),
            },
            records: counter(FOLLOWER_RECORDS),
            groups: counter(FOLLOWER_GROUPS),
            apply_seconds: Histogram::new(&FOLLOWER_APPLY_SECONDS, &labels),
            connections: counter(FOLLOWER_CONNECTIONS),
            verifications: OUTCOMES
                .map(|(_, outcome)| Counter::new(&FOLLOWER_VERIFICATIONS, &[labels[0], ("outcome", outcome)])),
            verified_bytes: counter(FOLLOWER_VERIFIED_BYTES),
        }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// A group is committed.
    pub(crate) fn applied(&self, records: usize, took: Duration) {
        self.records.add(records as u64);
        self.groups.add(1);
        self.apply_seconds.record(took.as_secs_f64());
    }

    pub(crate) fn welcomed(&self) {
        self.connections.add(1);
    }

    /// A range was compared with what the master holds.
    pub(crate) fn compared(&self, bytes: u64) {
        self.verified_bytes.add(bytes);
    }

    /// A verification has ended.
    pub(crate) fn verified(&self, outcome: VerifyOutcome) {
        let counters = OUTCOMES.iter().zip(&self.verifications);
        counters.filter(|((which, _), _)| *which == outcome).for_each(|(_, counter)| counter.add(1));
    }

    /// Sets the gauges.
    pub(crate) fn sample(&self, status: &SlaveStatus, progress: &SlaveProgress) {
        let label = ("follower", &self.follower[..]);
        let set = |metric, value: Option<f64>| set_gauge(&metric, &[label], value.unwrap_or(f64::NAN));
        let flag = |flag| Some(if flag { 1.0 } else { 0.0 });
        set(FOLLOWER_APPLIED_SEQ, Some(status.position.map_or(0.0, |position| float(position.seq.as_u64()))));
        set(FOLLOWER_DURABLE_SEQ, Some(float(status.durable.as_u64())));
        set(FOLLOWER_SOURCE_SEQ, status.source_head.map(|head| float(head.seq.as_u64())));
        set(FOLLOWER_CONSISTENT, flag(progress.consistent));
        set(FOLLOWER_RANGES, Some(status.ranges.as_ref().map_or(0.0, |ranges| float(ranges.as_slice().len() as u64))));
        set(FOLLOWER_CONNECTED, flag(progress.connected));
        set(FOLLOWER_LAG_SEQS, status.lag.map(|lag| float(lag.seqs)));
        set(FOLLOWER_LAG_BYTES, status.lag.map(|lag| float(lag.bytes)));
        set(FOLLOWER_LAG_SECONDS, status.lag.map(|lag| seconds(lag.millis)));
        set(FOLLOWER_CONTACT_SECONDS, status.last_contact_ms.map(seconds));
        set(FOLLOWER_VERIFY_DIFFERENT_ENTRIES, status.verification.as_ref().and_then(different_entries));
        set(FOLLOWER_VERIFIED_SECONDS, status.last_verified_ms.map(seconds));
        set_health(&FOLLOWER_HEALTH, label, &status.health);
    }
}

// A range whose keys could not be told any more has differed as well.
fn different_entries(verification: &Verification) -> Option<f64> {
    let told = verification.outcome != VerifyOutcome::Unfinished;
    told.then(|| float(verification.report.different + verification.report.healed))
}
