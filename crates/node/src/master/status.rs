//! What a master says of itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use replikv_core::{KeyRanges, Position, ReplicaStore, Seq, SourceId, StoreError};
use replikv_proto::{Compacted, Compression, LogEntry, RecordHeader, View};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::history::History;
use super::sessions::Session;
use super::{Inner, SlotSeen, WriteError};
use crate::health::{Health, HealthState};
use crate::metrics::Sampled;

/// Where a master is, how it is, and whom it serves.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MasterStatus {
    /// The history that it writes.
    pub source: SourceId,
    /// How it is.
    pub health: Health,
    /// The last published record.
    pub published: Position,
    /// The last record handed to the store, published or not.
    pub handed: Position,
    /// What came after this is in the log: compacted, or in full. While old touches are being removed this is the
    /// tombstone floor.
    pub floor: Position,
    /// The compacted part of the log: records after its position are there in full. `None` if there is none.
    pub compacted: Option<Compacted>,
    /// Bytes of records ever published.
    pub log_bytes: u64,
    /// Bytes that the log holds.
    pub retained_bytes: u64,
    /// Records committed since the master was opened.
    pub records: u64,
    /// Store transactions since the master was opened.
    pub groups: u64,
    /// Transactions that somebody else has committed to the database of the store; `None` if the store cannot tell. What
    /// they changed is in no log: if it is replicated data, slaves do not have it.
    pub foreign_commits: Option<u64>,
    /// The slaves that are being served, by name.
    pub slaves: Vec<SlaveSeen>,
    /// The slots, of slaves and consumers, connected or not.
    pub slots: Vec<SlotSeen>,
}

/// A slave, as its master sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SlaveSeen {
    /// Its name.
    pub name: String,
    /// The keys that it subscribes to; `None` if that is every key. As JSON an array of objects with `start` and `end`, as
    /// text; what is not printable is escaped.
    #[serde(serialize_with = "crate::health::ranges_as_text")]
    pub ranges: Option<KeyRanges>,
    /// How what it is sent is compressed; `None` if it is sent as it is. As JSON its name: `lz4`, `zstd`.
    #[serde(serialize_with = "crate::health::displayed")]
    pub compression: Option<Compression>,
    /// The last record that is readable there.
    pub applied: Seq,
    /// The last record that is on stable storage there.
    pub durable: Seq,
    /// Whether it is at a batch boundary; not so while it copies.
    pub consistent: bool,
    /// How many published records it has not applied.
    pub lag_seqs: u64,
    /// How many bytes they have. Where their beginning is no longer in memory, up to 255 records too many.
    pub lag_bytes: u64,
    /// How long ago the oldest of them was committed, in milliseconds; 0 if there is none. Where that record is no
    /// longer in memory, the oldest that is.
    pub lag_ms: u64,
    /// Milliseconds since it was heard of.
    pub last_contact_ms: u64,
    /// Milliseconds since it connected.
    pub connected_ms: u64,
}

/// What went wrong last, if it still does.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble(Option<(HealthState, String, u64)>);

impl Trouble {
    pub(super) fn superseded(words: String) -> Self {
        Self(Some((HealthState::Replaced, words, crate::clock::unix_ms())))
    }

    pub(super) fn from_commit(error: &StoreError) -> Self {
        let state = match error {
            StoreError::Closed => HealthState::Stopped,
            _ => HealthState::Blocked,
        };
        Self(Some((state, crate::error_chain(error), crate::clock::unix_ms())))
    }
}

/// How much a group holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupSize {
    records: usize,
    bytes: u64,
}

impl GroupSize {
    pub(super) fn of(entries: &[LogEntry]) -> Self {
        Self { records: entries.len(), bytes: entries.iter().map(|entry| entry.byte_len() as u64).sum() }
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    records: AtomicU64,
    groups: AtomicU64,
}

impl Counters {
    pub(super) fn committed(&self, records: usize) {
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        self.groups.fetch_add(1, Ordering::Relaxed);
    }
}

impl<S: ReplicaStore> Inner<S> {
    // Loads of atomics only: whoever asks never waits for a writer, nor a writer for them.
    pub(super) fn status(&self) -> MasterStatus {
        let view = **self.seen.load();
        let now = self.clock.now();
        let millis =
            |since: Duration| u64::try_from(now.monotonic.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
        let started = now.unix_ms.saturating_sub(millis(Duration::ZERO));
        let (state, reason, since) = match &self.trouble.load().0 {
            _ if self.closing.is_cancelled() => (HealthState::Stopped, "shut down".into(), now.unix_ms),
            Some((state, reason, since)) => (*state, reason.clone(), *since),
            None => (HealthState::Ready, "takes writes".into(), started),
        };
        MasterStatus {
            source: self.source,
            health: Health { state, reason, since_unix_ms: since },
            published: view.published,
            handed: view.handed,
            floor: view.floor,
            compacted: self.parts().compacted(),
            log_bytes: view.log_bytes,
            retained_bytes: view.retained_bytes,
            records: self.counters.records.load(Ordering::Relaxed),
            groups: self.counters.groups.load(Ordering::Relaxed),
            foreign_commits: self.store.stats().foreign_commits,
            slaves: self.slaves_seen(),
            slots: self.slots_seen(),
        }
    }
}

impl<S: ReplicaStore> Sampled for Inner<S> {
    type Before = BTreeSet<String>;

    fn sample(&self, before: &mut BTreeSet<String>) {
        self.metrics.sample(&self.status(), before);
    }
}

impl<S> Inner<S> {
    /// A group is committed; `took` if it is known how long that took.
    pub(super) fn count(&self, size: GroupSize, took: Option<Duration>) {
        self.counters.committed(size.records);
        self.metrics.committed(size.records, size.bytes, took);
    }
}

impl<S> History<S> {
    /// Those that are being served.
    pub(crate) fn slaves_seen(&self) -> Vec<SlaveSeen> {
        let view = **self.seen.load();
        let now = self.clock.now();
        let millis =
            |since: Duration| u64::try_from(now.monotonic.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
        let seen = |session: Arc<Session>| {
            let progress = session.progress();
            SlaveSeen {
                name: session.name.clone(),
                ranges: (!session.ranges.is_all()).then(|| session.ranges.clone()),
                compression: session.compression,
                applied: progress.applied,
                durable: progress.durable,
                consistent: progress.consistent,
                lag_seqs: view.published.seq.since(progress.applied),
                lag_bytes: view.log_bytes.saturating_sub(self.log_bytes_at(progress.applied, &view)),
                lag_ms: self.committed_at(progress.applied).map_or(0, |time| now.unix_ms.saturating_sub(time)),
                last_contact_ms: millis(session.heard()),
                connected_ms: millis(session.connected_at),
            }
        };
        self.sessions.all().into_iter().map(seen).collect()
    }

    // How many bytes of records there were up to `seq`, or up to a checkpoint not long before it.
    pub(super) fn log_bytes_at(&self, seq: Seq, view: &View) -> u64 {
        if let Some(bytes) = self.with_ring(|ring| ring.entry(seq).map(|entry| entry.log_bytes)) {
            return bytes;
        }
        let before = self.with_checkpoints(|checkpoints| {
            let end = checkpoints.partition_point(|checkpoint| checkpoint.position.seq <= seq);
            end.checked_sub(1).and_then(|last| checkpoints.get(last)).map(|checkpoint| checkpoint.log_bytes)
        });
        if seq >= view.published.seq { view.log_bytes } else { before.unwrap_or(0) }
    }

    // When the record after `applied` was committed, as far as the ring goes back.
    fn committed_at(&self, applied: Seq) -> Option<u64> {
        let bytes = self.with_ring(|ring| {
            let oldest = ring.oldest()?.position.seq;
            ring.entry(applied.next()?.max(oldest)).map(|entry| entry.bytes.clone())
        });
        RecordHeader::read(&bytes?).ok().map(|header| header.time)
    }
}

/// The last published record, as it moves.
#[derive(Debug, Clone)]
pub struct MasterProgress {
    view: watch::Receiver<View>,
    closing: CancellationToken,
}

impl MasterProgress {
    pub(super) fn new(view: watch::Receiver<View>, closing: CancellationToken) -> Self {
        Self { view, closing }
    }

    /// The last published record.
    pub fn position(&self) -> Position {
        self.view.borrow().published
    }

    /// Waits until a record numbered `seq`, or a later one, is published, and returns the last one that is.
    ///
    /// # Cancel safety
    /// Nothing is lost: ask again.
    ///
    /// # Errors
    /// [`WriteError::Closed`] once the master was shut down.
    pub async fn reached(&mut self, seq: Seq) -> Result<Position, WriteError> {
        tokio::select! {
            biased;
            view = self.view.wait_for(|view| view.published.seq >= seq) => {
                view.map(|view| view.published).map_err(|_| WriteError::Closed)
            }
            () = self.closing.cancelled() => Err(WriteError::Closed),
        }
    }
}
