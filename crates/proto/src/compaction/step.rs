//! One step of compaction: some records become a run, in one write set.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use replikv_core::{Digest, KeyRange, Keyspace, Op, Seq, StoreError, WriteSet};
use serde::{Deserialize, Serialize};

use super::run::{Run, RunError, hash, id_of, touch_key, touch_value};
use super::{Compacted, Compaction, LogParts};
use crate::Record;
use crate::layout::{Checkpoint, Head, Stored};
use crate::planted::{self, Bug};

/// Where the newest touch of a key is, under the key's hash: what lets it be removed when the key is touched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Indexed {
    /// Its run.
    pub run: Seq,
    /// How many bytes it has.
    pub(super) len: u64,
    /// What it adds to the sum of the run.
    pub(super) sum: Digest,
}

impl Stored for Indexed {
    const WHAT: &'static str = "the place of a touch";
}

impl Indexed {
    /// What the keys of all of them begin with.
    pub const PREFIX: &'static [u8] = b"touch/";

    pub(super) fn new(run: Seq, value: &[u8]) -> Self {
        Self { run, len: value.len() as u64, sum: hash(value) }
    }

    pub(super) fn key(id: &Digest) -> Bytes {
        Bytes::from([Self::PREFIX, id.as_bytes()].concat())
    }
}

/// A write set that changes the compacted part, and what the log is once it is applied.
#[derive(Debug, Clone)]
pub struct CompactionStep {
    /// The write set: it requires the parts that it changes.
    pub writes: WriteSet,
    /// The parts before it.
    pub before: LogParts,
    /// The parts after it.
    pub after: LogParts,
}

/// Records on their way to a run. What the index holds of their keys is asked for, then the runs that these touches leave.
#[derive(Debug)]
pub struct Folding {
    before: LogParts,
    run: Run,
    /// By what they are known by: the number of the last record, and the operation.
    touches: BTreeMap<Digest, (Seq, Bytes)>,
    /// The newest touches so far, of the same keys.
    replaced: Vec<(Digest, Indexed)>,
}

impl Compaction {
    /// True if there is enough to be compacted for a step to be worth its while.
    pub fn is_due(&self, parts: &LogParts, head: &Head) -> bool {
        const WORTH: u64 = 256 << 10;
        const WORTH_RECORDS: u64 = 256;
        let full = parts.full_after();
        let bytes = head.log_bytes.saturating_sub(full.log_bytes).saturating_sub(self.window_bytes);
        let records = head.position.seq.since(full.position.seq).saturating_sub(self.window_records);
        let worth = WORTH.min(self.window_bytes / 4).max(1);
        records > 0 && bytes > 0 && (bytes >= worth || records >= WORTH_RECORDS)
    }

    /// Folds what of `records` lies behind the window: full records in order, the first of the log, as many as hold
    /// `most_ops` operations, and one at least. `until`: nothing after this one. `None` if there is nothing to be done.
    ///
    /// # Errors
    /// `HeadMoved` if the records do not follow what is compacted already: somebody else has changed the log.
    pub fn fold(
        &self,
        parts: &LogParts,
        head: &Head,
        records: &[Record],
        most_ops: usize,
        until: Option<Seq>,
        checkpoints: &[Checkpoint],
    ) -> Result<Option<Folding>, StoreError> {
        let full = parts.full_after();
        let (mut log_bytes, mut ops, mut taken) = (full.log_bytes, 0, Vec::new());
        for record in records {
            let seq = record.position().seq;
            log_bytes += record.bytes().len() as u64;
            ops += record.body().iter().count();
            let recent = head.log_bytes.saturating_sub(log_bytes) < self.window_bytes
                || head.position.seq.since(seq) < self.window_records
                || seq > head.position.seq;
            if recent || until.is_some_and(|until| seq > until) || (ops > most_ops && !taken.is_empty()) {
                break;
            }
            taken.push((record, log_bytes));
        }
        // Where a run ends with a checkpoint, slaves keep that point as well, and are known by it later.
        let last = taken.iter().rposition(|(record, _)| Checkpoint::is_due(record.position().seq));
        taken.truncate(last.map_or(taken.len(), |last| last + 1));
        let Some((last, log_bytes)) = taken.last() else { return Ok(None) };
        if taken.first().is_none_or(|(first, _)| full.position.seq.next() != Some(first.position().seq)) {
            return Err(StoreError::HeadMoved);
        }
        let end = last.position();
        let next = checkpoints.iter().find(|checkpoint| checkpoint.position.seq >= end.seq);
        let mut folding = Folding {
            before: *parts,
            run: Run {
                end,
                log_bytes: *log_bytes,
                uptime_ms: next.map_or(head.uptime_ms, |checkpoint| checkpoint.uptime_ms),
                time: last.header().time,
                entries: 0,
                bytes: 0,
                sum: Digest::from_bytes([0; 16]),
            },
            touches: BTreeMap::new(),
            replaced: Vec::new(),
        };
        for (record, _) in taken {
            folding.take(record);
        }
        Ok(Some(folding))
    }
}

impl Folding {
    fn take(&mut self, record: &Record) {
        let seq = record.position().seq;
        let mut buffer = BytesMut::new();
        for op in record.body() {
            match op {
                Op::Delete { .. } if planted::is(Bug::DeletesNotTouched) => continue,
                Op::Put { key, .. } | Op::Delete { key } => Op::Delete { key }.encode_into(&mut buffer),
                Op::DeleteRange { .. } => op.encode_into(&mut buffer),
            }
            let op = buffer.split().freeze();
            self.touches.insert(id_of(&op), (seq, op));
        }
    }

    /// The last record that is folded.
    pub fn end(&self) -> Seq {
        self.run.end.seq
    }

    /// How many records are folded.
    pub fn records(&self) -> u64 {
        self.run.end.seq.since(self.before.full_after().position.seq)
    }

    /// The keys of `Meta` that tell where these keys were touched before, in order.
    pub fn index_keys(&self) -> Vec<Bytes> {
        self.touches.keys().map(Indexed::key).collect()
    }

    /// What is there, in the same order. Returns the runs that lose a touch, in order: their keys in the log are those of
    /// records.
    ///
    /// # Errors
    /// `Corrupt` if an answer does not decode.
    pub fn found(&mut self, indexed: &[Option<Bytes>]) -> Result<Vec<Seq>, StoreError> {
        self.replaced.clear();
        for (id, bytes) in self.touches.keys().zip(indexed) {
            if let Some(bytes) = bytes {
                self.replaced.push((*id, Indexed::from_bytes(bytes)?));
            }
        }
        // What is going anyway has no sum to keep.
        let begins = self.before.begins().position.seq;
        let mut runs: Vec<Seq> =
            self.replaced.iter().map(|(_, indexed)| indexed.run).filter(|run| *run > begins).collect();
        runs.sort_unstable();
        runs.dedup();
        Ok(runs)
    }

    /// The step, given the runs as they are stored.
    ///
    /// # Errors
    /// The run that is missing or damaged: the log must be cut after it.
    pub fn finish(self, runs: &[(Seq, Option<Bytes>)]) -> Result<Result<CompactionStep, StoreError>, RunError> {
        let mut stored = BTreeMap::new();
        for (seq, bytes) in runs {
            let bytes = bytes.as_ref().ok_or(RunError { seq: *seq, what: "it is missing" })?;
            stored.insert(*seq, (Run::from_bytes(*seq, bytes)?, bytes.len() as u64));
        }
        Ok(self.into_step(stored))
    }

    fn into_step(mut self, mut stored: BTreeMap<Seq, (Run, u64)>) -> Result<CompactionStep, StoreError> {
        let full = self.before.full_after();
        let mut compacted = self.before.compacted().unwrap_or(Compacted {
            position: full.position,
            log_bytes: full.log_bytes,
            entries: 0,
            runs: 0,
            bytes: 0,
        });
        let mut writes = WriteSet::builder();
        self.before.require(&mut writes);
        // The records go; from here on their numbers belong to the run.
        let first = full.position.seq.next().unwrap_or(full.position.seq);
        writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(first.to_key()..=self.run.end.seq.to_key()));
        for (id, indexed) in &self.replaced {
            writes.delete(Keyspace::Log, touch_key(indexed.run, id))?;
            // An index that outlived a damaged run points to nothing that is counted.
            if indexed.run > self.before.floor.position.seq {
                compacted.entries = compacted.entries.saturating_sub(1);
                compacted.bytes = compacted.bytes.saturating_sub(indexed.len);
            }
            if let Some((run, _)) = stored.get_mut(&indexed.run) {
                run.remove(indexed);
            }
        }
        for (seq, (run, len)) in stored {
            compacted.bytes = compacted.bytes.saturating_sub(len);
            if run.entries == 0 {
                // The next run stands for its records too.
                writes.delete(Keyspace::Log, seq.to_key())?;
                compacted.runs = compacted.runs.saturating_sub(1);
            } else {
                let bytes = run.to_bytes();
                compacted.bytes += bytes.len() as u64;
                writes.put(Keyspace::Log, seq.to_key(), bytes)?;
            }
        }
        let end = self.run.end.seq;
        for (id, (seq, op)) in &self.touches {
            let value = touch_value(*seq, op);
            let indexed = Indexed::new(end, &value);
            self.run.add(&indexed);
            compacted.entries += 1;
            compacted.bytes += indexed.len;
            writes.put(Keyspace::Log, touch_key(end, id), value)?;
            writes.put(Keyspace::Meta, Indexed::key(id), indexed.to_bytes())?;
        }
        let run = self.run.to_bytes();
        compacted.runs += 1;
        compacted.bytes += run.len() as u64;
        writes.put(Keyspace::Log, end.to_key(), run)?;
        (compacted.position, compacted.log_bytes) = (self.run.end, self.run.log_bytes);
        writes.put(Keyspace::Meta, Compacted::KEY, compacted.to_bytes())?;
        let after = LogParts { compacted: Some(compacted), ..self.before };
        Ok(CompactionStep { writes: writes.build(), before: self.before, after })
    }
}
