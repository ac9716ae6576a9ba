//! How a slave behaves.

use std::sync::Arc;
use std::time::Duration;

use replikv_core::{Durability, KeyRanges, LinkId};
use replikv_proto::{Compression, OnDivergence};

use super::{KeepLog, Quarantine};

/// The settings of a [`Slave`](super::Slave). Every setting but the name has a default.
#[derive(Debug, Clone)]
pub struct SlaveConfig {
    pub(crate) name: String,
    pub(crate) link: LinkId,
    pub(crate) ranges: Option<KeyRanges>,
    pub(crate) temporary: bool,
    pub(crate) durability: Durability,
    pub(crate) sync_every: Duration,
    pub(crate) group_bytes: Option<usize>,
    pub(crate) handshake_timeout: Duration,
    pub(crate) backoff: (Duration, Duration),
    pub(crate) stale_after: Duration,
    pub(crate) on_divergence: OnDivergence,
    pub(crate) quarantine: Option<Arc<dyn Quarantine>>,
    pub(crate) from_backup: bool,
    pub(crate) rejoin: bool,
    pub(crate) keep_log: Option<KeepLog>,
    pub(crate) compression: Option<Compression>,
    pub(crate) verify_every: Option<Duration>,
    pub(crate) verify_bytes_per_second: u64,
}

impl SlaveConfig {
    /// A slave that its master knows as `name`: 1 to 128 bytes, no control characters, or else [`Slave::open`] refuses
    /// it. Two slaves of one master must have different names: the one that connects last is served, and the other one is
    /// refused from then on.
    ///
    /// [`Slave::open`]: super::Slave::open
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            link: LinkId::default(),
            ranges: None,
            temporary: false,
            durability: Durability::Synced,
            sync_every: Duration::from_secs(1),
            group_bytes: None,
            handshake_timeout: Duration::from_secs(10),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
            stale_after: Duration::from_secs(30),
            on_divergence: OnDivergence::Refuse,
            quarantine: None,
            from_backup: false,
            rejoin: false,
            keep_log: None,
            compression: None,
            verify_every: None,
            verify_bytes_per_second: 4 << 20,
        }
    }

    /// The link under which the store keeps its cursor. Default: `default`.
    #[must_use]
    pub fn link(mut self, link: LinkId) -> Self {
        self.link = link;
        self
    }

    /// Subscribes to these keys: the master sends nothing of any other, and the slave holds none of them. At most 64 ranges
    /// that do not touch each other, whose bounds have 16 KiB at most. Default: what the store has kept from the last time,
    /// and every key if it is new; say [`KeyRanges::all`] to go back to that.
    ///
    /// Where the store has kept another set, what is new is copied once the slave follows, and nothing else is; what is no
    /// longer wanted is dropped by [`Slave::open`], in bounded steps, and is in no quarantine. Either is gone on with after a
    /// crash.
    ///
    /// A slave that subscribes to a part of the keys cannot be promoted, does not count for
    /// [`replicated`](crate::Write::replicated), and nobody waits for it. Where nothing that is written touches its ranges,
    /// it is told how far it is with each heartbeat, and not with each batch. Reads of other keys are
    /// [`NotSubscribed`](replikv_core::StoreError::NotSubscribed), and not empty.
    ///
    /// [`Slave::open`]: super::Slave::open
    #[must_use]
    pub fn subscribe(mut self, ranges: impl Into<KeyRanges>) -> Self {
        self.ranges = Some(ranges.into());
        self
    }

    /// Comes once, or now and then: its master makes no slot for it, and keeps nothing of the log while it is away.
    /// Default: no.
    #[must_use]
    pub fn temporary(mut self) -> Self {
        self.temporary = true;
        self
    }

    /// Whether a group is on stable storage before it is acknowledged as durable. Default: [`Durability::Synced`].
    /// `Buffered` gains on slow disks and loses the last second on power failure, which the master then sends again.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// How often a buffered store is synced. Default: one second.
    #[must_use]
    pub fn sync_every(mut self, interval: Duration) -> Self {
        self.sync_every = interval;
        self
    }

    /// How many bytes of records go into one store transaction when the slave is behind. Default: what the store prefers,
    /// 32 MiB for most. The slave holds about twice as much in memory.
    #[must_use]
    pub fn group_bytes(mut self, bytes: usize) -> Self {
        self.group_bytes = Some(bytes.max(1));
        self
    }

    /// How long the master may take to answer the hello. Default: 10 seconds.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// How long `follow_tcp` waits before it connects again: from `first`, doubled each time up to `longest`, half of
    /// it random, and back to `first` after a connection that worked. Default: 100 ms to 10 s.
    #[must_use]
    pub fn reconnect(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = (first, longest.max(first));
        self
    }

    /// Becomes what its master is when their histories have parted: when the master was restored from a backup, has lost
    /// batches, or is a copy of the one that was followed. Default: the slave stays refused, and its owner decides.
    ///
    /// Ranges are compared, and only what differs is replaced. Every entry that the slave loses, because the master holds
    /// another value or none, is written to `quarantine` and synced before it is overwritten: a
    /// [`QuarantineFile`](super::QuarantineFile), or a place of your own. Nobody can tell which of both sides wrote what
    /// differs, so that what the master changed since is in it as well. Until it is through, the slave holds no state of
    /// any master, as while it compares.
    ///
    /// What [`VerifyOptions::repair`](super::VerifyOptions::repair) overwrites or takes away goes to `quarantine` as well.
    ///
    /// Another source stays refused: see [`adopt_source`](Self::adopt_source). So does a master that holds nothing.
    #[must_use]
    pub fn resync(mut self, quarantine: impl Quarantine) -> Self {
        self.quarantine = Some(Arc::new(quarantine));
        if self.on_divergence == OnDivergence::Refuse {
            self.on_divergence = OnDivergence::Resync;
        }
        self
    }

    /// As [`resync`](Self::resync), also where the master is another one altogether. Say this once, and not by habit: with
    /// it a wrong address replaces all that the slave holds. Default: no.
    #[must_use]
    pub fn adopt_source(mut self, quarantine: impl Quarantine) -> Self {
        self.quarantine = Some(Arc::new(quarantine));
        self.on_divergence = OnDivergence::AdoptSource;
        self
    }

    /// Keeps what [`VerifyOptions::repair`](super::VerifyOptions::repair) overwrites or takes away, and leaves it at that: a
    /// slave whose history has parted from its master's stays refused, unless [`resync`](Self::resync) is said as well.
    /// Default: what a repair overwrites is kept nowhere.
    #[must_use]
    pub fn quarantine(mut self, quarantine: impl Quarantine) -> Self {
        self.quarantine = Some(Arc::new(quarantine));
        self
    }

    /// Takes a store that is a backup of a master: it becomes this slave's, and goes on from where the backup was taken,
    /// without a copy. The log that is in it goes. Default: no, a backup of a master is refused.
    ///
    /// A store that is a slave's already stays what it is.
    #[must_use]
    pub fn from_backup(mut self) -> Self {
        self.from_backup = true;
        self
    }

    /// Takes a store that is a master's: of one that was superseded, or that is not to write any more, since another one was
    /// promoted. It becomes this slave's, and its log goes. What it wrote that the new master never had makes it part from
    /// that one's history: say with [`resync`](Self::resync) where such entries are kept. Default: no.
    ///
    /// A store that is a slave's already stays what it is.
    #[must_use]
    pub fn rejoin(mut self) -> Self {
        self.rejoin = true;
        self
    }

    /// Keeps the log as it is received, in the same transactions as the data: this slave can have slaves of its own, see
    /// [`Slave::serve`], and others go on from its log if it is promoted. Default: no; a log that was kept goes when the
    /// store is opened without this.
    ///
    /// The log begins where the slave stands, or at the beginning if it follows from there. A copy, a comparison, a resync,
    /// and what comes from the compacted part of its master's log cut it: then it begins where the slave is through.
    ///
    /// # Cost
    /// What a master's log costs: each batch is written a second time. A large value is held in memory once more.
    ///
    /// [`Slave::serve`]: super::Slave::serve
    #[must_use]
    pub fn keep_log(mut self, keep: KeepLog) -> Self {
        self.keep_log = Some(keep);
        self
    }

    /// Whether it keeps the log.
    pub(crate) fn keeps_log(&self) -> bool {
        self.keep_log.is_some()
    }

    /// Asks its master to compress what it sends. Default: no. A master that cannot, or [may
    /// not](crate::MasterConfig::compression), sends it as it is: nothing fails. It is decided for each connection anew.
    ///
    /// # Cost
    /// On either side time of a processor: worth it where the network is slower than that, or is paid for by the byte.
    #[must_use]
    pub fn compression(mut self, compression: impl Into<Option<Compression>>) -> Self {
        self.compression = compression.into();
        self
    }

    /// Verifies in the background that the slave holds what its master holds, as [`Slave::verify`] does: first so long
    /// after it was opened, then so long after the last verification has ended; one second at least. What came of it is in
    /// [`SlaveStatus::verification`], in the metrics, and in a warning if something differs; nothing is repaired. A
    /// connection that breaks is waited for as long, and whoever calls [`Slave::verify`] meanwhile goes first. It runs in
    /// the tokio runtime that the slave is opened in. Default: never.
    ///
    /// [`Slave::verify`]: super::Slave::verify
    /// [`SlaveStatus::verification`]: super::SlaveStatus::verification
    #[must_use]
    pub fn verify_every(mut self, interval: Duration) -> Self {
        self.verify_every = Some(interval.max(Duration::from_secs(1)));
        self
    }

    /// How many bytes of entries a second [verifying in the background](Self::verify_every) reads on either side, at most.
    /// Default: 4 MiB.
    #[must_use]
    pub fn verify_bytes_per_second(mut self, bytes: u64) -> Self {
        self.verify_bytes_per_second = bytes.max(1);
        self
    }

    /// After how long without a word from the master the slave calls itself stale. Default: 30 seconds.
    #[must_use]
    pub fn stale_after(mut self, silence: Duration) -> Self {
        self.stale_after = silence;
        self
    }
}
