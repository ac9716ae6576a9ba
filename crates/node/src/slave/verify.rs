//! Verifying: a slave proves, while it follows, that it holds what its master holds.
//!
//! Whoever verifies puts one question at a time on a desk. The connection that is being followed takes it, and the task
//! that applies answers it at the very point of the stream that the master's answer speaks of.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{KeyRange, Position, ReplicaStore};
use replikv_proto::{DifferenceKind, Probe};
use serde::{Serialize, Serializer};
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::Slave;

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
    /// The key ranges to verify, one after the other. Default: everything.
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
    /// stream of records: nothing that the master wrote before or after is lost. Default: no.
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
    /// How many entries differ.
    pub different: u64,
    /// The first of these, in the order in which they were found.
    pub differences: Vec<Difference>,
    /// How many ranges differed at one point of the history, and at the next one no longer: what differed was
    /// overwritten by the master before its keys could be told.
    pub healed: u64,
    /// How many entries were mended.
    pub repaired: u64,
    /// The last record at which a range was compared.
    pub position: Option<Position>,
}

impl VerifyReport {
    /// True if nothing that was compared differed, mended or not.
    pub fn is_equal(&self) -> bool {
        self.different == 0 && self.healed == 0
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

/// Where a question lies until a connection takes it.
#[derive(Debug, Default)]
pub(super) struct Desk {
    wanted: Mutex<Option<(Probe, Job)>>,
    put: Notify,
    turn: AsyncMutex<()>,
}

/// What becomes of the answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) repair: bool,
    /// How many keys are listed.
    pub(super) max_differences: usize,
    pub(super) answer: oneshot::Sender<Outcome>,
}

/// What a question has come to.
#[derive(Debug)]
pub(super) enum Outcome {
    Compared(Compared),
    /// The slave's data was no state of its master then.
    NotConsistent,
    Unsupported,
}

/// A range that was compared.
#[derive(Debug)]
pub(super) struct Compared {
    pub(super) range: KeyRange,
    pub(super) at: Position,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) equal: bool,
    pub(super) different: u64,
    pub(super) differences: Vec<Difference>,
    pub(super) repaired: u64,
}

impl Desk {
    /// Takes the question that somebody still waits for.
    pub(super) fn take(&self) -> Option<(Probe, Job)> {
        self.lock().take().filter(|(_, job)| !job.answer.is_closed())
    }

    /// Returns when there may be a question.
    pub(super) async fn filled(&self) {
        self.put.notified().await;
    }

    fn put(&self, probe: Probe, job: Job) {
        *self.lock() = Some((probe, job));
        self.put.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Probe, Job)>> {
        // Nothing that runs under this lock can panic half way.
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    /// If dropped, verifying stops. A repair of a range that has begun is finished: in one transaction, unless there is more than a
    /// megabyte of it.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn verify(&self, options: VerifyOptions) -> Result<VerifyReport, VerifyError> {
        let _turn = self.inner.desk.turn.try_lock().map_err(|_| VerifyError::AlreadyVerifying)?;
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
        let ranges = options.ranges.clone();
        let mut run = Run { slave: self, options, report: VerifyReport::default(), from: Instant::now() };
        for range in ranges {
            run.range(range).await?;
        }
        Ok(run.report)
    }
}

struct Run<'a, S> {
    slave: &'a Slave<S>,
    options: VerifyOptions,
    report: VerifyReport,
    /// Nothing is asked before.
    from: Instant,
}

impl<S: ReplicaStore> Run<'_, S> {
    async fn range(&mut self, range: KeyRange) -> Result<(), VerifyError> {
        let mut rest = Some(range);
        while let Some(range) = rest.take().filter(|range| !range.is_empty()) {
            let compared = self.ask(&range, false).await?;
            self.report.ranges += 1;
            self.report.entries += compared.entries;
            self.report.bytes += compared.bytes;
            if !compared.equal {
                let different = self.report.different;
                self.examine(compared.range.clone()).await?;
                self.report.healed += u64::from(self.report.different == different);
            }
            self.tell();
            rest = after(&range, &compared.range);
        }
        Ok(())
    }

    // It differs: which entries do?
    async fn examine(&mut self, range: KeyRange) -> Result<(), VerifyError> {
        let mut rest = Some(range);
        while let Some(range) = rest.take() {
            let compared = self.ask(&range, true).await?;
            self.report.different += compared.different;
            self.report.repaired += compared.repaired;
            self.report.differences.extend(compared.differences);
            rest = after(&range, &compared.range);
        }
        Ok(())
    }

    async fn ask(&mut self, range: &KeyRange, entries: bool) -> Result<Compared, VerifyError> {
        let inner = &self.slave.inner;
        let probe = Probe { range: range.clone(), max_bytes: self.options.chunk, entries };
        let _withdrawn = Withdrawn(&inner.desk);
        loop {
            let (answer, answered) = oneshot::channel();
            let max_differences = self.options.max_differences.saturating_sub(self.report.differences.len());
            let job = Job { repair: self.options.repair, max_differences, answer };
            let outcome = tokio::select! {
                biased;
                () = inner.closing.cancelled() => return Err(VerifyError::Closed),
                outcome = self.put_and_wait(&probe, job, answered) => outcome,
                () = self.gone() => {
                    return Err(VerifyError::Interrupted { report: Box::new(self.report.clone()) });
                }
            };
            match outcome {
                Some(Outcome::Compared(compared)) => {
                    self.report.position = Some(compared.at);
                    self.spend(compared.bytes);
                    return Ok(compared);
                }
                Some(Outcome::Unsupported) => return Err(VerifyError::Unsupported),
                // With the connection went the question: the next one takes it again.
                Some(Outcome::NotConsistent) | None => {}
            }
        }
    }

    async fn put_and_wait(&self, probe: &Probe, job: Job, answered: oneshot::Receiver<Outcome>) -> Option<Outcome> {
        sleep_until(self.from).await;
        self.slave.inner.desk.put(probe.clone(), job);
        answered.await.ok()
    }

    // Returns when nobody could have answered for longer than there is patience.
    async fn gone(&self) {
        let mut progress = self.slave.subscribe();
        loop {
            if progress.wait_for(|progress| !(progress.connected && progress.consistent)).await.is_err() {
                return;
            }
            let back = progress.wait_for(|progress| progress.connected && progress.consistent);
            if !matches!(timeout(self.options.patience, back).await, Ok(Ok(_))) {
                return;
            }
        }
    }

    fn spend(&mut self, bytes: u64) {
        let Some(rate) = self.options.bytes_per_second else { return };
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let from = self.from.max(Instant::now());
        self.from = from.checked_add(pause).unwrap_or(from);
    }

    fn tell(&self) {
        if let Some(progress) = &self.options.progress {
            progress.send_replace(self.report.clone());
        }
    }
}

/// Whoever stops waiting leaves no question behind.
struct Withdrawn<'a>(&'a Desk);

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        drop(self.0.lock().take());
    }
}

// What of `asked` lies after `compared`, a first part of it.
fn after(asked: &KeyRange, compared: &KeyRange) -> Option<KeyRange> {
    let end = compared.end()?;
    Some(KeyRange::new(end.clone(), asked.end().cloned())).filter(|rest| !rest.is_empty())
}

fn as_bytes<T: Serializer>(key: &Bytes, to: T) -> Result<T::Ok, T::Error> {
    to.collect_seq(key.iter())
}
