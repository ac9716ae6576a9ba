//! Verifying: a slave proves, while it follows, that it holds what its master holds.
//!
//! Whoever verifies puts one question at a time on a desk. The connection that is being followed takes it, and the task
//! that applies answers it at the very point of the stream that the master's answer speaks of.

mod background;
mod desk;
mod run;

use std::time::Duration;

use bytes::Bytes;
use replikv_core::{KeyRange, Position, ReplicaStore};
use replikv_proto::DifferenceKind;
use serde::{Serialize, Serializer};
use tokio::sync::watch;

pub(super) use self::background::start;
pub(super) use self::desk::{Compared, Desk, Job, Outcome};
use self::run::Run;
use super::{Inner, Slave};
use crate::clock::unix_ms;

/// What to verify, and how. Every setting has a default.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    ranges: Vec<KeyRange>,
    bytes_per_second: Option<u64>,
    chunk: u32,
    repair: bool,
    max_differences: usize,
    patience: Duration,
    progress: Option<watch::Sender<VerifyReport>>,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self {
            ranges: vec![KeyRange::all()],
            bytes_per_second: None,
            chunk: 256 << 10,
            repair: false,
            max_differences: 100,
            patience: Duration::from_secs(60),
            progress: None,
        }
    }
}

impl VerifyOptions {
    /// The key ranges to verify, one after the other; of a slave that subscribes to a part of the keys, what lies in that.
    /// Default: everything.
    #[must_use]
    pub fn ranges(mut self, ranges: impl IntoIterator<Item = KeyRange>) -> Self {
        self.ranges = ranges.into_iter().collect();
        self
    }

    /// How many bytes of entries a second are read on either side, at most. Default: as many as there are.
    #[must_use]
    pub fn bytes_per_second(mut self, bytes: u64) -> Self {
        self.bytes_per_second = Some(bytes.max(1));
        self
    }

    /// How many bytes of entries are compared at once, roughly; one entry at least. Where a range is hot, the master's
    /// writers wait while that much is read. Default: 256 KiB; the master's own bound, its chunk, holds too.
    #[must_use]
    pub fn chunk_bytes(mut self, bytes: u32) -> Self {
        self.chunk = bytes.max(1);
        self
    }

    /// Gives each entry that differs the value that the master holds, and takes away those that it does not hold, in the
    /// stream of records: nothing that the master wrote before or after is lost. What the slave's own entries held goes to
    /// the quarantine first, if [one is configured](super::SlaveConfig::quarantine). Default: no.
    #[must_use]
    pub fn repair(mut self) -> Self {
        self.repair = true;
        self
    }

    /// How many differing keys the report lists; all are counted, and mended if that is asked for. Default: 100.
    #[must_use]
    pub fn max_differences(mut self, keys: usize) -> Self {
        self.max_differences = keys;
        self
    }

    /// How long a connection that broke, or a slave that has to catch up, is waited for before verifying ends with
    /// [`VerifyError::Interrupted`]. Default: one minute.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Tells the report as it grows.
    #[must_use]
    pub fn progress(mut self, progress: watch::Sender<VerifyReport>) -> Self {
        self.progress = Some(progress);
        self
    }
}

/// A key that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The key; as JSON an array of its bytes.
    #[serde(serialize_with = "as_bytes")]
    pub key: Bytes,
    /// How it differs.
    pub kind: DifferenceKind,
}

/// What verifying has found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// How many ranges were compared, each at one point of the history.
    pub ranges: u64,
    /// How many entries the slave holds in them.
    pub entries: u64,
    /// How many bytes these have, as they are encoded.
    pub bytes: u64,
    /// How many of the ranges differed.
    pub different_ranges: u64,
    /// How many entries differ.
    pub different: u64,
    /// The first of these, in the order in which they were found.
    pub differences: Vec<Difference>,
    /// How many of the ranges that differed did so at one point of the history, and at the next one no longer: what
    /// differed was overwritten by the master before its keys could be told.
    pub healed: u64,
    /// How many entries were mended.
    pub repaired: u64,
    /// The last record at which a range was compared.
    pub position: Option<Position>,
}

impl VerifyReport {
    /// True if nothing that was compared differed, mended or not.
    pub fn is_equal(&self) -> bool {
        self.different_ranges == 0
    }
}

/// How a verification ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VerifyOutcome {
    /// The slave holds what its master holds.
    Equal,
    /// Something differed, whether the verification was finished or not.
    Different,
    /// It could not be finished, and nothing differed so far.
    Unfinished,
}

/// A verification that has ended, as [`SlaveStatus`](super::SlaveStatus) tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// What came of it.
    pub outcome: VerifyOutcome,
    /// Why it could not be finished.
    pub reason: Option<String>,
    /// When it began; milliseconds since the Unix epoch, by the slave's clock.
    pub began_unix_ms: u64,
    /// When it ended; likewise.
    pub ended_unix_ms: u64,
    /// What was found, with no more than ten keys.
    #[serde(flatten)]
    pub report: VerifyReport,
}

impl Verification {
    /// How many keys a status tells.
    const KEYS: usize = 10;

    fn new(began_unix_ms: u64, report: &VerifyReport, error: Option<&VerifyError>) -> Self {
        let mut report = report.clone();
        report.differences.truncate(Self::KEYS);
        let outcome = match error {
            _ if !report.is_equal() => VerifyOutcome::Different,
            None => VerifyOutcome::Equal,
            Some(_) => VerifyOutcome::Unfinished,
        };
        Self {
            outcome,
            reason: error.map(|error| crate::error_chain(error)),
            began_unix_ms,
            ended_unix_ms: unix_ms(),
            report,
        }
    }
}

/// Why verifying could not be finished. What was mended until then stays so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// No master is connected. Follow one meanwhile.
    #[error("the slave is not connected to a master: it must follow one while it verifies")]
    NotConnected,
    /// The slave copies or compares: what it holds is no state of its master. Wait until it has caught up.
    #[error("the slave copies or compares, and holds no state of its master yet: wait until it has caught up")]
    NotConsistent,
    /// The master is of a version that does not answer.
    #[error("the master does not know how to verify: it must be of a newer version")]
    Unsupported,
    /// One at a time.
    #[error("the slave is verifying already")]
    AlreadyVerifying,
    /// The connection broke, or the slave had to catch up, and it stayed so for too long.
    #[error("the connection was lost for too long, after {} ranges and {} entries", .report.ranges, .report.entries)]
    Interrupted {
        /// What was found until then.
        report: Box<VerifyReport>,
    },
    /// The slave was shut down.
    #[error("the slave was shut down")]
    Closed,
}

impl<S: ReplicaStore> Slave<S> {
    /// Proves that this slave holds what its master holds, or tells what differs, while it follows and writes go on.
    ///
    /// Each range is compared at one point of the history, which both sides stand at when they read it: there are no
    /// false alarms, however hot its keys are. Different ranges are compared at different points. The slave stays
    /// consistent, and goes on applying. A connection that breaks is waited for, and the range that was being compared
    /// is compared again.
    ///
    /// # Cancel safety
    /// If dropped, verifying stops. A repair of a range that has begun is finished: in one transaction, unless there is
    /// more than a megabyte of it.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn verify(&self, options: VerifyOptions) -> Result<VerifyReport, VerifyError> {
        let desk = &self.inner.desk;
        let _alone = desk.by_hand.try_lock().map_err(|_| VerifyError::AlreadyVerifying)?;
        {
            let progress = self.inner.tracker.subscribe();
            let progress = progress.borrow();
            if self.inner.closing.is_cancelled() {
                return Err(VerifyError::Closed);
            } else if !progress.connected {
                return Err(VerifyError::NotConnected);
            } else if !progress.consistent {
                return Err(VerifyError::NotConsistent);
            }
        }
        // Whoever verifies in the background waits between two questions.
        let _turn = tokio::select! {
            biased;
            () = self.inner.closing.cancelled() => return Err(VerifyError::Closed),
            turn = desk.turn.lock() => turn,
        };
        let (began, mut run) = (unix_ms(), Run::new(&self.inner, options, false));
        let result = run.all().await;
        self.inner.verified(Verification::new(began, &run.report, result.as_ref().err()));
        result.map(|()| run.report)
    }
}

impl<S> Inner<S> {
    fn verified(&self, verification: Verification) {
        self.metrics.verified(verification.outcome);
        self.tracker.verified(verification, self.clock.now());
    }
}

fn as_bytes<T: Serializer>(key: &Bytes, to: T) -> Result<T::Ok, T::Error> {
    to.collect_seq(key.iter())
}
