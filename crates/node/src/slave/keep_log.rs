//! How a slave keeps the log, and serves it.

use std::time::Duration;

use replikv_proto::{Retention, SlotLimits};

use crate::master::history::{MAX_CHUNK, Serving};

/// How a slave keeps the log that it receives, and serves slaves of its own from it. Each setting has a default.
#[derive(Debug, Clone)]
pub struct KeepLog {
    pub(super) retention: Retention,
    pub(super) ring_bytes: usize,
    pub(super) slots: SlotLimits,
    pub(super) heartbeat: Duration,
    pub(super) max_sessions: usize,
    pub(super) max_readers: usize,
    pub(super) chunk: usize,
    pub(super) compare_bytes_per_second: Option<u64>,
    pub(super) compression: bool,
    pub(super) log_readers: usize,
    pub(super) wait: Duration,
}

impl Default for KeepLog {
    fn default() -> Self {
        Self {
            retention: Retention { max_bytes: 1 << 30, max_age_ms: None, hold_back_bytes: 4 << 30 },
            ring_bytes: 64 << 20,
            slots: SlotLimits { max: 1024, expire_after_ms: Some(7 * 24 * 3600 * 1000) },
            heartbeat: Duration::from_secs(2),
            max_sessions: 1024,
            max_readers: 256,
            chunk: 256 << 10,
            compare_bytes_per_second: None,
            compression: true,
            log_readers: 4,
            wait: Duration::from_secs(300),
        }
    }
}

impl KeepLog {
    /// How much of the log is kept. Default: 1 GiB, whatever its age; the slaves of this one, and those of them that are
    /// away, hold back up to 4 GiB. It is kept whether its master still has it or not.
    #[must_use]
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = retention;
        self
    }

    /// How many bytes of recent records are kept in memory for slaves that are close. Default: 64 MiB.
    #[must_use]
    pub fn ring_bytes(mut self, bytes: usize) -> Self {
        self.ring_bytes = bytes;
        self
    }

    /// How many slots are kept for slaves of this one. Default: 1,024.
    #[must_use]
    pub fn max_slots(mut self, slots: usize) -> Self {
        self.slots.max = slots;
        self
    }

    /// After how much running time a slot goes whose owner was not heard of. Default: seven days. `None`: never.
    #[must_use]
    pub fn slot_expiry(mut self, after: Option<Duration>) -> Self {
        self.slots.expire_after_ms = after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// How often a connection to a slave of this one says something, at least. Default: 2 seconds.
    #[must_use]
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.heartbeat = interval.max(Duration::from_millis(1));
        self
    }

    /// How many slaves are served at once. Default: 1,024. More are told to come back later.
    #[must_use]
    pub fn max_sessions(mut self, sessions: usize) -> Self {
        self.max_sessions = sessions;
        self
    }

    /// How many connections may read at once through [`Slave::serve`](super::Slave::serve). Default: 256.
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
    /// slave asks for.
    #[must_use]
    pub fn compare_bytes_per_second(mut self, bytes: u64) -> Self {
        self.compare_bytes_per_second = Some(bytes.max(1));
        self
    }

    /// Whether what is sent is compressed for slaves that [ask for it](super::SlaveConfig::compression). Default: yes.
    #[must_use]
    pub fn compression(mut self, compress: bool) -> Self {
        self.compression = compress;
        self
    }

    /// How long a slave that is ahead of this one is kept waiting until this one has come as far. Default: five minutes.
    /// Then it is sent away as from a busy master: it may come again, here or elsewhere.
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    pub(super) fn serving(&self, handshake_timeout: Duration) -> Serving {
        Serving {
            heartbeat: self.heartbeat,
            handshake_timeout,
            chunk: self.chunk,
            compare_bytes_per_second: self.compare_bytes_per_second,
            max_lag: None,
            compression: self.compression,
            wait: Some(self.wait),
            path: Vec::new(),
        }
    }
}
