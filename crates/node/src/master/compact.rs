//! The task that compacts: it reads and prepares, one bounded step at a time; the commit task applies the step between two
//! groups. Writers wait for one write set, never for what is read to make it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, Position, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError};
use replikv_proto::layout::Head;
use replikv_proto::{CompactionStep, Expiry, Folding, LogParts, Record, Run, RunError, SlotKind};
use tokio::time::sleep;

use super::Inner;
use super::history::History;
use super::log::LogError;

/// How often the log is looked at when nothing was to be done.
const EVERY: Duration = Duration::from_secs(1);
/// What one step reads of the log, at most; one record at least.
const STEP_BYTES: usize = 2 << 20;
const STEP_RECORDS: usize = 8192;
/// How many operations one step folds, at most: many, since each step costs a transaction and the writers wait for that; and
/// no more than the store likes at once, at about so many bytes for each.
const STEP_OPS: usize = 8192;
const OP_BYTES: usize = 256;
/// How many touches one step of expiry removes.
const EXPIRE_ENTRIES: usize = 1024;

/// A step on its way from the task that prepares it to the one that applies it.
#[derive(Debug, Default)]
pub(super) struct Workbench {
    prepared: std::sync::Mutex<Option<CompactionStep>>,
    /// There is a step to be applied.
    pub(super) ready: tokio::sync::Notify,
    /// The step was applied, or refused.
    pub(super) done: tokio::sync::Notify,
}

impl Workbench {
    pub(super) fn take(&self) -> Option<CompactionStep> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn put(&self, step: CompactionStep) {
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(step);
        self.ready.notify_one();
    }
}

/// Compacts the log of one master until it is shut down.
pub(super) async fn run<S: ReplicaStore>(inner: Arc<Inner<S>>) {
    loop {
        let step = tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            step = inner.next_step() => step,
        };
        let pause = match step {
            Ok(Some(step)) => {
                let before = step.before;
                inner.workbench.put(step);
                tokio::select! {
                    biased;
                    () = inner.closing.cancelled() => return,
                    () = inner.workbench.done.notified() => {}
                }
                // There may be more to do; where nothing was done, not at once.
                if inner.parts() == before { EVERY } else { Duration::ZERO }
            }
            Ok(None) => EVERY,
            Err(LogError::Record { seq, source }) => {
                inner.record_is_damaged(seq, &source);
                EVERY
            }
            Err(LogError::Run(error)) => {
                inner.run_is_damaged(&error);
                EVERY
            }
            // Somebody else has changed the log, or the store is being opened anew: what is there then is looked at.
            Err(LogError::Store(error)) => {
                tracing::warn!(
                    target: "replikv::master", source = %inner.source, error = %crate::error_chain(&error),
                    "the log cannot be compacted now"
                );
                EVERY
            }
        };
        tokio::select! {
            biased;
            () = inner.closing.cancelled() => return,
            () = sleep(pause) => {}
        }
    }
}

impl<S: ReplicaStore> Inner<S> {
    async fn next_step(&self) -> Result<Option<CompactionStep>, LogError> {
        let parts = self.parts();
        let view = self.view();
        let head = Head { position: view.published, log_bytes: view.log_bytes, uptime_ms: self.uptime_ms() };
        if let Some(expiry) = self.next_expiry(&parts, &head).await? {
            return Ok(Some(self.expire(&expiry).await?));
        }
        let Some(compaction) = self.config.compaction.filter(|compaction| compaction.is_due(&parts, &head)) else {
            return Ok(None);
        };
        let full = parts.full_after().position;
        let records = self.full_records(full).await?;
        let until = self.held_in_full(&parts, &head);
        let checkpoints = self.with_checkpoints(|checkpoints| checkpoints.clone());
        let most_ops = (self.store.preferred_write_set() / OP_BYTES).min(self.store.preferred_operations());
        let mut most_ops = most_ops.clamp(1, STEP_OPS);
        loop {
            let Some(folding) = compaction.fold(&parts, &head, &records, most_ops, until, &checkpoints)? else {
                return Ok(None);
            };
            let (end, alone) = (folding.end(), folding.records() == 1);
            let step = self.finish_step(folding).await?;
            let (len, max) = (step.writes.byte_len(), self.store.limits().max_batch);
            if len <= max {
                return Ok(Some(step));
            }
            if alone {
                // A touch can be many times as long as the change that it stands for.
                tracing::warn!(
                    target: "replikv::master", source = %self.source, seq = %end,
                    "a record has too many changes to be compacted in one write set; the log is cut after it"
                );
                self.cut_after(end);
                return Ok(None);
            }
            most_ops /= 2;
        }
    }

    async fn finish_step(&self, mut folding: Folding) -> Result<CompactionStep, LogError> {
        let indexed = self.store.get_many(Keyspace::Meta, &folding.index_keys()).await?;
        let found = folding.found(&indexed)?;
        let run_keys: Vec<Bytes> = found.iter().map(|seq| Bytes::copy_from_slice(&seq.to_key())).collect();
        let runs: Vec<_> = found.into_iter().zip(self.store.get_many(Keyspace::Log, &run_keys).await?).collect();
        Ok(folding.finish(&runs)??)
    }

    async fn next_expiry(&self, parts: &LogParts, head: &Head) -> Result<Option<Expiry>, LogError> {
        if let Some(unfinished) = Expiry::unfinished(parts) {
            return Ok(Some(unfinished));
        }
        if parts.compacted().is_none() {
            return Ok(None);
        }
        let after = KeyRange::all().after(&parts.floor.position.seq.to_key());
        let Some((key, value)) = self.store.first(Keyspace::Log, after).await? else { return Ok(None) };
        let oldest = Run::from_bytes(Seq::from_key(&key).unwrap_or_default(), &value)?;
        Ok(Expiry::due(&self.config.retention, parts, head, &oldest, self.held()))
    }

    async fn expire(&self, expiry: &Expiry) -> Result<CompactionStep, StoreError> {
        let options = ScanOptions::default().max_entries(EXPIRE_ENTRIES).max_bytes(STEP_BYTES);
        let page = self.store.scan(Keyspace::Log, expiry.range(), options).await?;
        let entries: Vec<(Bytes, Bytes)> = page.entries().collect();
        expiry.step(&entries, page.rest().is_none())
    }

    // Records after `after`, as far as one step takes them, each checked against the one before it.
    async fn full_records(&self, after: Position) -> Result<Vec<Record>, LogError> {
        let range = KeyRange::from_bounds(after.seq.next().unwrap_or(after.seq).to_key()..);
        let options = ScanOptions::default().max_entries(STEP_RECORDS).max_bytes(STEP_BYTES);
        let page = self.store.scan(Keyspace::Log, range, options).await?;
        let (mut records, mut last) = (Vec::new(), after);
        for (key, value) in page.entries() {
            let seq = Seq::from_key(&key).unwrap_or_default();
            // What does not continue the history is never folded into a run, which would vouch for it.
            let record = Record::decode(value).and_then(|record| record.header().verify_after(&last).map(|()| record));
            let record = record.map_err(|source| {
                // What was trimmed or cut meanwhile is not damaged.
                if self.view().floor.seq > after.seq {
                    LogError::Store(StoreError::HeadMoved)
                } else {
                    LogError::Record { seq, source }
                }
            })?;
            last = record.position();
            records.push(record);
        }
        Ok(records)
    }

    // Consumers and backups need every batch as it was written: for them what is compacted is trimmed, and the same cap
    // applies.
    fn held_in_full(&self, parts: &LogParts, head: &Head) -> Option<Seq> {
        let full = parts.full_after();
        let retained = head.log_bytes.saturating_sub(full.log_bytes);
        if retained > self.config.retention.hold_back_bytes {
            return None;
        }
        let consumers = self.slots().with(|slots| slots.all(full.position.seq));
        let consumers = consumers.into_iter().filter(|slot| slot.name.kind == SlotKind::Consumer);
        let held = consumers.map(|slot| slot.slot.position.seq).chain(self.held_by_backups());
        held.filter(|seq| *seq >= full.position.seq).min()
    }
}

impl<S> History<S> {
    /// A damaged run is never served: the log begins after it from now on, and slaves before it are told so.
    pub(super) fn run_is_damaged(&self, error: &RunError) {
        tracing::error!(
            target: "replikv::master", source = %self.source, seq = %error.seq, %error,
            "a stored run is damaged; the log is cut after it"
        );
        self.cut_after(error.seq);
    }
}
