//! Reading the log: from the ring, or else from the store, and only what its digests vouch for.

use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use replikv_core::{KeyRange, Keyspace, Page, Position, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError};
use replikv_proto::layout::{Checkpoint, Floor, Head};
use replikv_proto::{
    Compression, Located, LogAnswer, Record, RecordError, Retention, Run, RunError, RunPart, Trim, WholeRun, origin,
    read_stretch,
};
use tokio::time::{Instant, timeout_at};

use super::history::History;
use super::open::log_parts;

/// How long a slave waits for its welcome while the data is measured: well below its handshake's timeout, or it would
/// come back and have the same asked again.
const MEASURING: Duration = Duration::from_secs(2);
/// How long the answer holds. It only decides what is cheaper.
const MEASURED: Duration = Duration::from_secs(60);
/// The most records that one step of trimming removes.
const TRIM_RECORDS: usize = 1024;

/// How much data there was.
#[derive(Debug)]
pub(super) struct Measured {
    at: Instant,
    /// Counted so far; more than anybody asks about if it took too long.
    bytes: u64,
    /// Whether that was all of it.
    whole: bool,
}

impl Measured {
    // The answer to somebody who wants to know no more than whether there is as much as this.
    fn answer(&self, at_most: u64) -> Option<u64> {
        let holds = self.at.elapsed() < MEASURED && (self.whole || self.bytes >= at_most);
        holds.then(|| self.bytes.min(at_most))
    }
}

/// A stored record that is not what it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The record is damaged.
    #[error("record {seq} of the log")]
    Record {
        /// Its number, by its key.
        seq: Seq,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A run of the compacted part is damaged.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A part of a log: a record, or what older ones came to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogPart {
    /// A batch, as it was written.
    Full(Record),
    /// The records after the part before, up to the end of the run, are compacted.
    Compacted {
        /// What is known of them.
        run: Run,
        /// What they touched, each with the number of the record; in no particular order. Nothing of it is touched again in
        /// a later run.
        touched: Vec<(Seq, RunPart)>,
    },
}

impl LogPart {
    /// The last record that it stands for.
    pub fn end(&self) -> Position {
        match self {
            Self::Full(record) => record.position(),
            Self::Compacted { run, .. } => run.end,
        }
    }
}

/// Reads up to `limit` parts of the log of a store after `after`, in order: runs of the compacted part, then records. Each
/// record is checked against its own hash, and against the part before it; the first one only if it is the first of the
/// history. A run is checked against its own hash, and its touches against its sum.
///
/// # Errors
/// [`LogError`].
pub async fn read_log_parts<S: ReplicaStore>(store: &S, after: Seq, limit: usize) -> Result<Vec<LogPart>, LogError> {
    let mut parts: Vec<LogPart> = Vec::new();
    let (mut at, mut more) = (after, 1);
    while parts.len() < limit {
        let Some(next) = at.next() else { break };
        // One entry more than is wanted: it tells that a run before it is whole.
        let entries = (limit - parts.len()).saturating_add(1).max(1000).saturating_mul(more);
        let bytes = ScanOptions::default().max_bytes.saturating_mul(more);
        let options = ScanOptions::default().max_entries(entries).max_bytes(bytes);
        let page = store.scan(Keyspace::Log, KeyRange::from_bounds(next.to_key()..), options).await?;
        let before = parts.len();
        for (key, value) in page.entries().take(if page_begins_with_a_run(&page) { 0 } else { limit - parts.len() }) {
            let seq = Seq::from_key(&key).unwrap_or_default();
            let last = parts.last().map(LogPart::end);
            let record = decode_at(seq, value, last).map_err(|source| LogError::Record { seq, source })?;
            parts.push(LogPart::Full(record));
        }
        if page_begins_with_a_run(&page) {
            // Read as far as it goes: the page must be of one instant.
            if let Some(WholeRun { run, touched }) = Run::read(page.entries(), page.rest().is_none())? {
                parts.push(LogPart::Compacted { run, touched });
            } else if page.rest().is_some() {
                more = more.saturating_mul(4);
                continue;
            }
        }
        if parts.len() == before {
            break;
        }
        at = parts.last().map_or(at, |last| last.end().seq);
    }
    Ok(parts)
}

fn page_begins_with_a_run(page: &Page) -> bool {
    page.iter().next().is_some_and(|(_, first)| Run::is_run(first))
}

/// As [`read_log_parts`], of the records alone: what is compacted is left out.
///
/// # Errors
/// [`LogError`].
pub async fn read_log<S: ReplicaStore>(store: &S, after: Seq, limit: usize) -> Result<Vec<Record>, LogError> {
    let mut records: Vec<Record> = Vec::new();
    let mut at = after;
    while records.len() < limit {
        let parts = read_log_parts(store, at, limit - records.len()).await?;
        let Some(last) = parts.last() else { break };
        at = last.end().seq;
        records.extend(parts.into_iter().filter_map(|part| match part {
            LogPart::Full(record) => Some(record),
            LogPart::Compacted { .. } => None,
        }));
    }
    Ok(records)
}

// The record whose key says `seq`.
fn decode_at(seq: Seq, value: Bytes, before: Option<Position>) -> Result<Record, RecordError> {
    let record = Record::decode(value)?;
    let header = record.header();
    if header.seq != seq {
        return Err(RecordError::Chain { seq: header.seq, what: "its key names another number" });
    }
    let start = (seq == Seq::new(1)).then(|| origin(header.source, header.epoch));
    if let Some(before) = before.or(start) {
        header.verify_after(&before)?;
    }
    Ok(record)
}

impl<S: ReplicaStore> History<S> {
    /// Published records after `after`, up to about `max_bytes`. Where they are compressed they end where they did for
    /// whoever read from there before.
    pub(super) async fn read_records(
        &self,
        after: Position,
        max_bytes: usize,
        compression: Option<Compression>,
    ) -> Result<LogAnswer, StoreError> {
        let recent = match compression {
            None => self.with_ring(|ring| ring.read(after.seq, max_bytes)),
            Some(algorithm) => {
                let block = 1 << max_bytes.max(1).ilog2();
                let read = |until| self.with_ring(|ring| ring.read_block(after.seq, block, until));
                self.packing.plan(after.seq, algorithm, read)
            }
        };
        if let Some((parts, last)) = recent {
            return Ok(LogAnswer::Records { parts, last });
        }
        // Slaves that are far behind share a few readers, so that they cannot starve the store.
        let Ok(_permit) = self.log_reads.acquire().await else { return Err(StoreError::Closed) };
        let published = self.seen.load().published.seq;
        // Not the touches behind a run that ends there.
        let first = after.seq.next().unwrap_or(after.seq).to_key();
        let range = KeyRange::from_bounds(first..).intersect(&KeyRange::from_bounds(..=published.to_key()));
        let options = ScanOptions::default().max_entries(4096).max_bytes(max_bytes);
        let page = self.store.scan(Keyspace::Log, range, options).await?;
        if page.iter().next().is_some_and(|(_, first)| Run::is_run(first)) {
            return self.read_stretch(after.seq).await;
        }
        let (mut parts, mut last) = (Vec::<Bytes>::new(), after);
        for (key, bytes) in page.entries() {
            // By its key: what the record says of itself may be what is damaged.
            let seq = Seq::from_key(&key).unwrap_or_default();
            if parts.is_empty() && last.seq.next() != Some(seq) {
                return Ok(LogAnswer::Trimmed);
            }
            let record = match decode_at(seq, bytes, None) {
                Ok(record) => record,
                Err(error) => {
                    self.record_is_damaged(seq, &error);
                    break;
                }
            };
            if let Err(error) = record.header().verify_after(&last) {
                self.record_is_damaged(seq, &error);
                break;
            }
            last = record.position();
            parts.push(record.bytes().clone());
        }
        Ok(if parts.is_empty() { LogAnswer::Trimmed } else { LogAnswer::Records { parts, last } })
    }

    // A run and its touches lie in one page, which is of one instant: a step of compaction is in it, or not.
    async fn read_stretch(&self, after: Seq) -> Result<LogAnswer, StoreError> {
        const BYTES: usize = 256 << 10;
        let range = KeyRange::from_bounds(after.next().unwrap_or(after).to_key()..);
        let mut bytes = 2 * BYTES;
        loop {
            let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(bytes);
            let page = self.store.scan(Keyspace::Log, range.clone(), options).await?;
            // What was cut meanwhile is not there; what has begun to go must not be served. A run does not say where it
            // begins, and another process on the store may have cut what was before it: the store knows.
            let begins = log_parts(&self.store).await?.begins().position.seq;
            if begins.max(self.view().floor.seq) > after {
                return Ok(LogAnswer::Trimmed);
            }
            match read_stretch(page.entries(), page.rest().is_none(), after, BYTES) {
                Ok(Some(stretch)) => return Ok(LogAnswer::Compacted(stretch)),
                Ok(None) if page.rest().is_some() => bytes = bytes.saturating_mul(4),
                Ok(None) => return Ok(LogAnswer::Trimmed),
                Err(error) => {
                    self.run_is_damaged(&error);
                    return Ok(LogAnswer::Trimmed);
                }
            }
        }
    }

    /// As [`read_records`](Self::read_records), as much as a session takes at once.
    pub(crate) async fn read_chunk(&self, after: Position) -> Result<LogAnswer, StoreError> {
        self.read_records(after, self.serving.chunk, None).await
    }

    /// True if the ring holds the record after `seq`.
    pub(crate) fn rings_after(&self, seq: Seq) -> bool {
        seq.next().is_some_and(|next| self.with_ring(|ring| ring.entry(next).is_some()))
    }

    /// The position of the record numbered `seq`; `None` if it is no longer there.
    pub(crate) async fn position_at(&self, seq: Seq) -> Result<Option<Position>, StoreError> {
        let view = self.view();
        if let Some(known) = [view.published, view.floor].into_iter().find(|known| known.seq == seq) {
            return Ok(Some(known));
        }
        if let Some(held) = self.with_ring(|ring| ring.entry(seq).map(|entry| entry.position)) {
            return Ok(Some(held));
        }
        let parts = self.parts();
        if let Some(compacted) = parts.compacted().filter(|compacted| compacted.position.seq == seq) {
            return Ok(Some(compacted.position));
        }
        if seq < parts.full_after().position.seq {
            return Ok(None);
        }
        let Some(bytes) = self.store.get(Keyspace::Log, &seq.to_key()).await? else { return Ok(None) };
        if Run::is_run(&bytes) {
            // Compacted meanwhile.
            return Ok(Run::from_bytes(seq, &bytes).ok().map(|run| run.end));
        }
        match Record::decode(bytes) {
            Ok(record) => Ok(Some(record.position())),
            Err(error) => {
                self.record_is_damaged(seq, &error);
                Ok(None)
            }
        }
    }

    /// Where positions lie in the history.
    pub(crate) async fn locate(&self, positions: &[Position]) -> Result<Vec<Located>, StoreError> {
        let mut located = Vec::with_capacity(positions.len());
        for position in positions {
            located.push(self.locate_one(position).await?);
        }
        Ok(located)
    }

    async fn locate_one(&self, position: &Position) -> Result<Located, StoreError> {
        let view = **self.seen.load();
        let same = |held: Position, log_bytes| {
            if held == *position { Located::Held { log_bytes } } else { Located::Mismatch }
        };
        let floor_bytes = view.log_bytes.saturating_sub(view.retained_bytes);
        if position.source != self.source {
            return Ok(Located::Mismatch);
        }
        if position.seq > view.published.seq {
            return Ok(Located::Ahead);
        }
        if position.seq == view.published.seq {
            return Ok(same(view.published, view.log_bytes));
        }
        if position.seq == view.floor.seq {
            // Before the first record there is no epoch to compare.
            let held =
                if position.seq == Seq::ZERO { Position { epoch: position.epoch, ..view.floor } } else { view.floor };
            return Ok(same(held, floor_bytes));
        }
        if position.seq < view.floor.seq {
            return Ok(self.locate_below(position));
        }
        let entry = self.with_ring(|ring| ring.entry(position.seq).map(|entry| (entry.position, entry.log_bytes)));
        if let Some((held, log_bytes)) = entry {
            return Ok(same(held, log_bytes));
        }
        if position.seq <= self.parts().full_after().position.seq {
            return self.locate_compacted(position, floor_bytes).await;
        }
        let bytes = self.store.get(Keyspace::Log, &position.seq.to_key()).await?;
        let Some(bytes) = bytes.filter(|bytes| !Run::is_run(bytes)) else {
            // Compacted meanwhile.
            return self.locate_compacted(position, floor_bytes).await;
        };
        let error = match Record::decode(bytes) {
            Ok(record) if record.position() == *position => {
                // The log does not say how much lies before a record; the checkpoint before it does.
                let before = self.with_checkpoints(|checkpoints| {
                    let below = checkpoints.iter().rev().find(|checkpoint| checkpoint.position.seq <= position.seq);
                    below.map_or(0, |checkpoint| checkpoint.log_bytes)
                });
                return Ok(Located::Held { log_bytes: before.max(floor_bytes) });
            }
            // It says so itself: a record whose digest was damaged must not make the slave look as if it had diverged.
            Ok(record) => match self.verify_stored(position.seq, &record).await? {
                Some(Ok(())) => return Ok(Located::Mismatch),
                Some(Err(error)) => error,
                None => return self.locate_compacted(position, floor_bytes).await,
            },
            Err(error) => error,
        };
        self.record_is_damaged(position.seq, &error);
        // Whose epoch reigned there is known nevertheless.
        Ok(self.locate_below(position))
    }

    // What follows is there, as touches. The digest of the record itself is known where something has kept it: the end of
    // the compacted part and of each run, checkpoints, and slots. How much is still to be sent nobody can tell before the
    // keys are looked up; as much as the log holds is the most that is known.
    async fn locate_compacted(&self, position: &Position, floor_bytes: u64) -> Result<Located, StoreError> {
        let compacted = self.parts().compacted();
        let held = Located::Held { log_bytes: floor_bytes };
        if compacted.is_some_and(|compacted| compacted.position == *position) {
            return Ok(held);
        }
        match self.locate_below(position) {
            Located::Shared => return Ok(held),
            Located::Below => {}
            other => return Ok(other),
        }
        let Some(bytes) = self.store.get(Keyspace::Log, &position.seq.to_key()).await? else {
            return Ok(Located::Below);
        };
        match Run::from_bytes(position.seq, &bytes) {
            Ok(run) if run.end == *position => Ok(held),
            Ok(_) => Ok(Located::Mismatch),
            Err(error) => {
                self.run_is_damaged(&error);
                Ok(Located::Below)
            }
        }
    }

    // Whether the record stored under `seq` continues the one before it; `None` if it is no longer there.
    async fn verify_stored(&self, seq: Seq, record: &Record) -> Result<Option<Result<(), RecordError>>, StoreError> {
        let after = |before: &Position| record.header().verify_after(before);
        let before = Seq::new(seq.as_u64().saturating_sub(1));
        let full_after = self.parts().full_after().position;
        if before == full_after.seq {
            return Ok(Some(after(&full_after)));
        }
        let stored = self.store.get(Keyspace::Log, &before.to_key()).await?;
        if stored.as_deref().is_none_or(Run::is_run) {
            // A step that trims or compacts is in the store before it is known here.
            let full_after = log_parts(&self.store).await?.full_after().position;
            if seq <= full_after.seq {
                return Ok(None);
            } else if before == full_after.seq {
                return Ok(Some(after(&full_after)));
            }
        }
        Ok(Some(Record::decode(stored.unwrap_or_default()).and_then(|stored| after(&stored.position()))))
    }

    // Records are gone, digests are not: checkpoints, slots and the beginnings of epochs outlive them.
    fn locate_below(&self, position: &Position) -> Located {
        if position.seq == Seq::ZERO {
            let origin = origin(self.source, position.epoch);
            return if *position == origin { Located::Shared } else { Located::Mismatch };
        }
        // The last epoch that had begun by then. Where an epoch is known, so is what came after it.
        let reigning = self.epochs.iter().rfind(|start| start.first <= position.seq);
        if reigning.is_none_or(|start| start.epoch != position.epoch) {
            return Located::Mismatch;
        }
        let checkpoint = self.with_checkpoints(|checkpoints| {
            let index = checkpoints.binary_search_by_key(&position.seq, |checkpoint| checkpoint.position.seq);
            index.ok().map(|index| checkpoints[index].position)
        });
        match checkpoint {
            Some(held) if held == *position => Located::Shared,
            Some(_) => Located::Mismatch,
            None if self.slots.with(|slots| slots.knows(position)) => Located::Shared,
            None => Located::Below,
        }
    }

    /// The next step of trimming. Old checkpoints are far apart; a step ends at a record in between, so that no write set is long.
    pub(crate) async fn next_trim(
        &self,
        retention: &Retention,
        head: &Head,
        mut above: Vec<Checkpoint>,
        held: Option<Seq>,
    ) -> Result<Option<Trim>, StoreError> {
        let floor = self.parts().floor;
        let Some(trim) = retention.step(&floor, head, &above, held)? else { return Ok(None) };
        if trim.floor.position.seq.since(floor.position.seq) <= TRIM_RECORDS as u64 {
            return Ok(Some(trim));
        }
        let range = KeyRange::all().after(&floor.position.seq.to_key());
        let options = ScanOptions::default().max_entries(TRIM_RECORDS).max_bytes(usize::MAX);
        let page = self.store.scan(Keyspace::Log, range, options).await?;
        let bytes: u64 = page.iter().map(|(_, record)| record.len() as u64).sum();
        let last = page.entries().last().and_then(|(_, record)| Record::decode(record).ok());
        // A record that cannot be read names no position; the checkpoint does.
        let Some(last) = last else { return Ok(Some(trim)) };
        let uptime_ms = above.first().map_or(0, |checkpoint| checkpoint.uptime_ms);
        let log_bytes = floor.log_bytes.saturating_add(bytes);
        above.insert(0, Checkpoint { position: last.position(), log_bytes, uptime_ms });
        retention.step(&floor, head, &above, held)
    }

    /// Where the log begins if the record numbered `damaged` is left out: at the next point whose digest is known.
    pub(crate) fn floor_after(&self, damaged: Seq) -> Floor {
        // Not past what is published: what comes after it is still to be sent.
        let view = self.view();
        let next = self.with_checkpoints(|checkpoints| {
            let published = checkpoints.iter().filter(|checkpoint| checkpoint.position.seq <= view.published.seq);
            published.copied().find(|checkpoint| checkpoint.position.seq >= damaged)
        });
        next.map_or(Floor { position: view.published, log_bytes: view.log_bytes }, |next| Floor {
            position: next.position,
            log_bytes: next.log_bytes,
        })
    }

    /// The bytes of the data, or `at_most` if there are as many, or if that is not known within two seconds. Whoever
    /// asks within a minute gets what is known already, and there is one count at a time; none where the store itself says
    /// that there is far more.
    pub(super) async fn measure_data(&self, at_most: u64) -> Result<u64, StoreError> {
        if at_most == 1 {
            // Whether there is any: what was counted a while ago is no answer to that.
            return Ok(u64::from(!self.store.is_keyspace_empty(Keyspace::Data).await?));
        }
        // Twice as much is said than matters: also if that is half wrong, there is as much.
        if self.store.stats().data_bytes.is_some_and(|bytes| bytes / 2 >= at_most) {
            return Ok(at_most);
        }
        let deadline = Instant::now() + MEASURING;
        let Ok(mut measured) = timeout_at(deadline, self.measured.lock()).await else { return Ok(at_most) };
        if let Some(bytes) = measured.as_ref().and_then(|measured| measured.answer(at_most)) {
            return Ok(bytes);
        }
        let (bytes, whole) = match timeout_at(deadline, self.count_data(at_most)).await {
            Ok(counted) => counted?,
            Err(_) => (u64::MAX, false),
        };
        *measured = Some(Measured { at: Instant::now(), bytes, whole });
        Ok(bytes.min(at_most))
    }

    // The bytes of the data, and whether these are all: counting ends at `at_most`.
    async fn count_data(&self, at_most: u64) -> Result<(u64, bool), StoreError> {
        use futures_util::TryStreamExt;
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(4 << 20);
        let mut pages = self.store.pages(Keyspace::Data, KeyRange::all(), options);
        let mut bytes = 0;
        while let Some(page) = pages.try_next().await? {
            bytes += page.ops().byte_len() as u64;
            if bytes >= at_most {
                return Ok((bytes, false));
            }
        }
        Ok((bytes, true))
    }
}

impl<S> History<S> {
    /// Points of the history that a slave is told to keep, oldest first.
    pub(super) fn newest_checkpoints(&self) -> Vec<Position> {
        const MOST: usize = 64;
        let published = self.view().published.seq;
        self.with_checkpoints(|checkpoints| {
            let published =
                checkpoints.iter().rev().map(|checkpoint| checkpoint.position).filter(|at| at.seq <= published);
            let mut newest: Vec<_> = published.take(MOST).collect();
            newest.reverse();
            newest
        })
    }

    // A damaged record is never served: the log begins after it from now on, and slaves before it are told so.
    pub(super) fn record_is_damaged(&self, seq: Seq, error: &RecordError) {
        tracing::error!(
            target: "replikv::master", source = %self.source, %seq, %error,
            "a stored record is damaged; the log is cut after it"
        );
        self.cut_after(seq);
    }

    pub(super) fn cut_after(&self, seq: Seq) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        *damaged = (*damaged).max(Some(seq));
        self.wake.notify_one();
    }
}
