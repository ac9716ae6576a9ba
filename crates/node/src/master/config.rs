//! How a master behaves.

use std::sync::Arc;
use std::time::Duration;

use replikv_core::{StoreLimits, Subspace};
use replikv_proto::{Compaction, Derive, Derives, Retention, SlotLimits};

use super::history::{MAX_CHUNK, Serving};

/// When a record is published: sent to slaves, and seen by subscribers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Commit {
    /// Every group is on stable storage before anybody hears of it. The default, because group commit makes it cheap.
    Synced,
    /// Writers are answered once their group is readable; the store is synced every so often, and only then are
    /// records published. Power loss takes what was written since, from the master alone: no slave has seen it.
    Buffered {
        /// The longest that a written record waits to be published.
        sync_every: Duration,
    },
}

/// The settings of a [`Master`](super::Master). Each has a default.
#[derive(Debug, Clone)]
pub struct MasterConfig {
    pub(crate) commit: Commit,
    pub(crate) ship_unsynced: bool,
    pub(crate) limits: StoreLimits,
    pub(crate) group_bytes: usize,
    pub(crate) queue_bytes: usize,
    pub(crate) ring_bytes: usize,
    pub(crate) retention: Retention,
    pub(crate) compaction: Option<Compaction>,
    pub(crate) slots: SlotLimits,
    pub(crate) heartbeat: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) max_sessions: usize,
    pub(crate) max_readers: usize,
    pub(crate) chunk: usize,
    pub(crate) compare_bytes_per_second: Option<u64>,
    pub(crate) max_lag: Option<u64>,
    pub(crate) compression: bool,
    pub(crate) log_readers: usize,
    pub(crate) new_epoch: bool,
    pub(crate) derives: Derives,
    /// It belongs to a centre.
    pub(crate) gathers: bool,
}

impl Default for MasterConfig {
    fn default() -> Self {
        Self {
            commit: Commit::Synced,
            ship_unsynced: false,
            limits: StoreLimits { max_key: KEY, max_value: 32 << 20, max_batch: 64 << 20 },
            group_bytes: 8 << 20,
            queue_bytes: 64 << 20,
            ring_bytes: 64 << 20,
            retention: Retention { max_bytes: 1 << 30, max_age_ms: None, hold_back_bytes: 4 << 30 },
            compaction: None,
            slots: SlotLimits { max: 1024, expire_after_ms: Some(7 * 24 * 3600 * 1000) },
            heartbeat: Duration::from_secs(2),
            handshake_timeout: Duration::from_secs(10),
            max_sessions: 1024,
            max_readers: 256,
            chunk: 256 << 10,
            compare_bytes_per_second: None,
            max_lag: None,
            compression: true,
            log_readers: 4,
            new_epoch: false,
            derives: Derives::default(),
            gathers: false,
        }
    }
}

/// The longest key by default. Under a prefix of up to 31 bytes it still fits into every backend.
const KEY: usize = 480;

impl MasterConfig {
    pub(super) fn serving(&self) -> Serving {
        Serving {
            heartbeat: self.heartbeat,
            handshake_timeout: self.handshake_timeout,
            chunk: self.chunk,
            compare_bytes_per_second: self.compare_bytes_per_second,
            max_lag: self.max_lag,
            compression: self.compression,
            wait: None,
            path: Vec::new(),
        }
    }

    /// The master of what a centre gathers: a write set of a link, which holds several batches, is one record.
    pub(crate) fn gathering(mut self) -> Self {
        /// Links take batches of as many bytes as a master accepts by default, and put a prefix before each key.
        const BATCH: usize = 192 << 20;
        const PREFIX: usize = 31;
        self.gathers = true;
        self.limits.max_batch = self.limits.max_batch.max(BATCH);
        self.limits.max_key += PREFIX;
        self
    }

    /// Begins a new epoch when the store is opened: what a backup of a master needs to go on as the master. Default: no.
    ///
    /// What its slaves had beyond the backup is no longer part of the history: they are refused, or resync. The master
    /// that the backup was taken of must never run again: slaves tell the two apart, writers do not. Say it once, since
    /// each opening begins another epoch.
    #[must_use]
    pub fn new_epoch(mut self) -> Self {
        self.new_epoch = true;
        self
    }

    /// When records are durable, and published. Default: [`Commit::Synced`].
    #[must_use]
    pub fn commit(mut self, commit: Commit) -> Self {
        self.commit = commit;
        self
    }

    /// Publishes records before they are synced. Default: no.
    ///
    /// # Hazard
    /// After power loss a slave may hold records that the master has lost. It is refused then as ahead of its master,
    /// and must be copied anew. For masters whose store is rebuilt anyway.
    #[must_use]
    pub fn ship_unsynced(mut self, ship: bool) -> Self {
        self.ship_unsynced = ship;
        self
    }

    /// The longest key, value and batch that are accepted, in bytes. Default: 480 bytes, 32 MiB, 64 MiB, or less if
    /// the store holds less. LMDB holds keys of 511 bytes: what is left is for the prefix of a link, where a centre gathers
    /// what this master writes. A slave whose store cannot hold as much is refused: raise them only if every slave can.
    #[must_use]
    pub fn limits(mut self, limits: StoreLimits) -> Self {
        self.limits = limits;
        self
    }

    /// How many bytes go into one store transaction when many writers wait. Default: 8 MiB.
    #[must_use]
    pub fn group_bytes(mut self, bytes: usize) -> Self {
        self.group_bytes = bytes.max(1);
        self
    }

    /// How many bytes of batches may wait for the store before writers are held up. Default: 64 MiB.
    #[must_use]
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes.max(1);
        self
    }

    /// How many bytes of recent records are kept in memory for slaves that are close. Default: 64 MiB. Slaves that
    /// are further behind are served from the stored log.
    #[must_use]
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.ring_bytes = bytes;
        self
    }

    /// How much of the log is kept on disk. Default: 1 GiB, whatever its age; slaves and consumers hold back up to
    /// 4 GiB, also while they are away.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// Compacts the log by key, in the background: behind a window of recent records only the newest change of each key is
    /// kept, without its value. The log is then bounded by the number of keys that were ever touched, until
    /// [`retention`](Self::retention), which counts what is really there, lets the oldest go; and a slave that comes back
    /// after any time gets at most one value of each key that has changed, and the recent records. Default: none.
    ///
    /// # Cost
    /// Each key that was ever changed takes about 100 bytes of the store beside its own length, twice. Streams of
    /// [`changes`](super::Master::changes) begin after the compacted part. Named consumers hold compaction back, up to the
    /// cap of the retention.
    #[must_use]
    pub fn compaction(mut self, compaction: impl Into<Option<Compaction>>) -> Self {
        self.compaction = compaction.into();
        self
    }

    /// How many slots are kept, one for each slave that ever acknowledged something durably and for each named consumer.
    /// Default: 1,024. Further slaves are served, and nothing of the log is kept for them while they are away.
    #[must_use]
    pub fn max_slots(mut self, slots: usize) -> Self {
        self.slots.max = slots;
        self
    }

    /// After how much running time of the master a slot goes whose owner was not heard of. Default: seven days. `None`:
    /// never.
    #[must_use]
    pub fn slot_expiry(mut self, after: Option<Duration>) -> Self {
        self.slots.expire_after_ms = after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// How often a connection says something, at least. Default: 2 seconds. After four of silence it is given up.
    #[must_use]
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = interval.max(Duration::from_millis(1));
        self
    }

    /// How long a connection may take until it says who it is. Default: 10 seconds.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How many connections are served at once. Default: 1,024. More are told to come back later.
    #[must_use]
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.max_sessions = sessions;
        self
    }

    /// How many connections may read at once; more are told that it is busy. Each pins one answer at most. They take no
    /// place of slaves. Default: 256. 0: nobody reads from this master over a connection.
    #[must_use]
    pub fn max_readers(mut self, readers: usize) -> Self {
        self.max_readers = readers;
        self
    }

    /// What one message of records or one page of content aims for, in bytes; at most 2 MiB, for which slaves have room
    /// beside the largest batch. Default: 256 KiB.
    #[must_use]
    pub fn chunk_bytes(mut self, bytes: usize) -> Self {
        self.chunk = bytes.clamp(1, MAX_CHUNK);
        self
    }

    /// How many bytes of data a second are read, for each slave that compares, to answer it. Default: as many as the
    /// slave asks for. A comparison reads all of the data once, and what differs two or three times; a bound makes it
    /// slower and leaves more of the disk to writers.
    #[must_use]
    pub fn compare_bytes_per_second(mut self, bytes: u64) -> Self {
        self.compare_bytes_per_second = Some(bytes.max(1));
        self
    }

    /// How many bytes of published records the slowest slave may lack before writers wait for it. Default: none, and
    /// writers never wait for slaves.
    ///
    /// A slave counts while it is connected, not temporary, at a batch boundary, and within the log: not while it copies
    /// or compares. It begins to count once it has applied something on its connection, or is near enough. Writers wait
    /// until it has come closer, or is gone; nothing is refused. One that has applied nothing for four
    /// [heartbeats](Self::heartbeat) is stuck, and is left out until it moves again. What is already committing is not
    /// held up, so that a slave may lack as much more as writers have under way, at most
    /// [`queue_bytes`](Self::queue_bytes). [`Recording`](super::Recording)s never wait.
    ///
    /// # Hazard
    /// Writers are as slow as the slowest slave that counts. One that comes back far behind, and goes through the log,
    /// holds them up until it is that close.
    #[must_use]
    pub fn max_lag(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.max_lag = bytes.into();
        self
    }

    /// Whether what is sent is compressed for slaves that [ask for it](crate::SlaveConfig::compression), if this build knows
    /// how. Default: yes. What many slaves are sent at about the same time is compressed once.
    #[must_use]
    pub fn compression(mut self, compress: bool) -> Self {
        self.compression = compress;
        self
    }

    /// How many slaves may read the stored log at the same time. Default: 4.
    #[must_use]
    pub fn log_readers(mut self, readers: usize) -> Self {
        self.log_readers = readers.max(1);
        self
    }

    /// Writes what `derive` makes of each batch with the batch, in one record: into `target`, a part of the key space that
    /// nobody else writes to ([`WriteError::Derived`](super::WriteError::Derived)). It is data like any other: slaves get it,
    /// and a slave that is promoted goes on with it. Default: none.
    ///
    /// When the store is opened with a derive that it does not have in this version, or that was left out meanwhile, all of
    /// the data is read and derived from before the master is there. `target` must be empty the first time.
    ///
    /// # Cost
    /// One read of the store for each key that a batch changes, and what the derive itself reads and writes. A range delete
    /// reads what it deletes, of which there may be 256 MiB. [`Recording`](super::Recording)s are refused: what an
    /// application commits beside the master is not looked at.
    #[must_use]
    pub fn derive(mut self, target: Subspace, derive: impl Derive) -> Self {
        self.derives.push(target, Arc::new(derive));
        self
    }
}
