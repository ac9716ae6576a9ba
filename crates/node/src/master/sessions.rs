//! The slaves that are being served.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use replikv_core::{KeyRanges, Seq};
use replikv_proto::{Compression, GoodbyeReason, Openings, Progress, Refusal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One slave, as its session knows it. Read by whoever asks for the status, without waiting.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) name: String,
    nonce: u64,
    pub(super) connected_at: Duration,
    /// Cancelled when a newer connection of the same name takes its place.
    pub(super) replaced: CancellationToken,
    /// That one is of the same slave.
    returned: AtomicBool,
    applied: AtomicU64,
    durable: AtomicU64,
    heard_ms: AtomicU64,
    consistent: AtomicBool,
    /// The keys that it subscribes to. Where that is a part of them, nobody waits for it, and it vouches for nothing.
    pub(super) ranges: KeyRanges,
    /// How what it is sent is compressed.
    pub(super) compression: Option<Compression>,
    /// Nothing is kept for it once it is gone, and nobody waits for it.
    temporary: bool,
    /// How many bytes of records there were up to `applied`.
    applied_bytes: AtomicU64,
    /// Since when a writer has waited for it, and it has applied nothing; 0 if none has.
    stuck_since_ms: AtomicU64,
    /// Since it came it has applied something, or was close enough; until writers have waited for long enough.
    counts: AtomicBool,
}

impl Session {
    /// What is said to whoever is replaced.
    pub(super) fn farewell(&self) -> (GoodbyeReason, &'static str) {
        match self.returned.load(Ordering::Acquire) {
            // Where the slave still hears it, its connections were taken in another order than they were made: it must not
            // end for good.
            true => (GoodbyeReason::Closing, "this slave has connected anew"),
            false => (GoodbyeReason::Replaced, "another slave of this name has connected"),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        Progress {
            applied: Seq::new(self.applied.load(Ordering::Acquire)),
            durable: Seq::new(self.durable.load(Ordering::Acquire)),
            consistent: self.consistent.load(Ordering::Acquire),
        }
    }

    pub(super) fn heard(&self) -> Duration {
        Duration::from_millis(self.heard_ms.load(Ordering::Acquire))
    }

    /// Somebody waits for it to move. Returns since when somebody has, without anything having come of it.
    pub(super) fn waited_for(&self, now: Duration) -> Duration {
        let now = millis(now).max(1);
        let since = self.stuck_since_ms.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
        Duration::from_millis(since.err().unwrap_or(now))
    }

    /// Nobody waits for it any more, until it moves. False if that was so already.
    pub(super) fn leave_out(&self) -> bool {
        self.counts.swap(false, Ordering::AcqRel)
    }

    // Whether writers wait for it, if it is further behind than they may leave it. One that connects again and again, and
    // never applies anything, must not begin to be waited for each time.
    fn counts(&self, floor: Seq) -> bool {
        let Progress { applied, consistent, .. } = self.progress();
        !self.temporary && self.ranges.is_all() && consistent && applied >= floor && self.counts.load(Ordering::Acquire)
    }
}

/// A slave that is accepted.
#[derive(Debug)]
pub(super) struct Joined<'a> {
    pub(super) name: &'a str,
    pub(super) nonce: u64,
    pub(super) temporary: bool,
    pub(super) ranges: KeyRanges,
    pub(super) compression: Option<Compression>,
    /// The record after which it is sent some.
    pub(super) start: Seq,
}

type Map = BTreeMap<String, Arc<Session>>;

/// All slaves that are being served, by name.
#[derive(Debug)]
pub(super) struct Sessions {
    map: ArcSwap<Map>,
    /// Outlives them.
    openings: Arc<Mutex<Openings>>,
    acks: watch::Sender<u64>,
}

impl Sessions {
    pub(super) fn new(openings: Arc<Mutex<Openings>>) -> Self {
        Self { map: ArcSwap::default(), openings, acks: watch::Sender::new(0) }
    }

    /// Enters a slave. An older session of that name is told to end: the newest connection counts, since the older one
    /// may be half open for a long time.
    ///
    /// # Errors
    /// A [`Refusal`] if another slave has taken its name; nobody is told anything then.
    pub(super) fn enter(self: &Arc<Self>, slave: Joined<'_>, now: Duration) -> Result<Entered, Refusal> {
        let Joined { name, nonce, temporary, ranges, compression, start } = slave;
        // Held over both: who is fenced and who is there are decided in one order.
        let mut openings = self.openings.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = self.map.load();
        openings.join(name, nonce, |name| connected.contains_key(name))?;
        let session = Arc::new(Session {
            name: name.into(),
            nonce,
            connected_at: now,
            replaced: CancellationToken::new(),
            returned: AtomicBool::new(false),
            // What comes before is there, or is never sent.
            applied: AtomicU64::new(start.as_u64()),
            durable: AtomicU64::new(0),
            heard_ms: AtomicU64::new(millis(now)),
            consistent: AtomicBool::new(false),
            ranges,
            compression,
            temporary,
            applied_bytes: AtomicU64::new(0),
            stuck_since_ms: AtomicU64::new(0),
            counts: AtomicBool::new(false),
        });
        let before = self.map.rcu(|map| {
            let mut map = Map::clone(map);
            map.insert(name.into(), session.clone());
            map
        });
        if let Some(older) = before.get(name) {
            older.returned.store(older.nonce == nonce, Ordering::Release);
            older.replaced.cancel();
        }
        Ok(Entered { sessions: self.clone(), session })
    }

    pub(super) fn is_connected(&self, name: &str) -> bool {
        self.map.load().contains_key(name)
    }

    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.map.load().values().cloned().collect()
    }

    /// How many consistent slaves, of those that hold every key, hold the record numbered `seq` on stable storage.
    pub(super) fn durable(&self, seq: Seq) -> usize {
        let holds = |session: &&Arc<Session>| {
            let progress = session.progress();
            session.ranges.is_all() && progress.consistent && progress.durable >= seq
        };
        self.map.load().values().filter(holds).count()
    }

    /// What a consistent slave of that name holds on stable storage, if it holds every key.
    pub(super) fn durable_of(&self, name: &str) -> Option<Seq> {
        let map = self.map.load();
        let session = map.get(name)?;
        let progress = session.progress();
        (progress.consistent && session.ranges.is_all()).then_some(progress.durable)
    }

    /// Whether the slave of that name subscribes to a part of the keys.
    pub(super) fn is_filtered(&self, name: &str) -> bool {
        self.map.load().get(name).is_some_and(|session| !session.ranges.is_all())
    }

    /// Where the slowest slave is.
    pub(super) fn slowest(&self) -> Option<Seq> {
        self.map.load().values().map(|session| session.progress().applied).min()
    }

    /// A slave that writers wait for, and that has less than `bytes` of the records that are published.
    pub(super) fn laggard(&self, bytes: u64, floor: Seq) -> Option<Arc<Session>> {
        let lags =
            |session: &&Arc<Session>| session.applied_bytes.load(Ordering::Acquire) < bytes && session.counts(floor);
        self.map.load().values().find(lags).cloned()
    }

    pub(super) fn acks(&self) -> watch::Receiver<u64> {
        self.acks.subscribe()
    }

    fn changed(&self) {
        self.acks.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// A slave's place among the sessions. Leaves when dropped.
#[derive(Debug)]
pub(super) struct Entered {
    sessions: Arc<Sessions>,
    session: Arc<Session>,
}

impl Entered {
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// The slave has told how far it is: `bytes` of records, up to what it has applied, which is `close` enough for
    /// writers or not.
    pub(super) fn progress(&self, progress: Progress, bytes: u64, close: bool, now: Duration) {
        let before = self.session.applied.swap(progress.applied.as_u64(), Ordering::AcqRel);
        self.session.applied_bytes.store(bytes, Ordering::Release);
        if before != progress.applied.as_u64() {
            self.session.stuck_since_ms.store(0, Ordering::Release);
            self.session.counts.store(true, Ordering::Release);
        } else if close {
            self.session.counts.store(true, Ordering::Release);
        }
        self.session.durable.store(progress.durable.as_u64(), Ordering::Release);
        self.session.consistent.store(progress.consistent, Ordering::Release);
        self.session.heard_ms.store(millis(now), Ordering::Release);
        self.sessions.changed();
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.map.rcu(|map| {
            let mut map = Map::clone(map);
            if map.get(&self.session.name).is_some_and(|there| Arc::ptr_eq(there, &self.session)) {
                map.remove(&self.session.name);
            }
            map
        });
        self.sessions.changed();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
