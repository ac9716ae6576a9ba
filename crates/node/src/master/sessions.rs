//! The slaves that are being served.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use replikv_core::Seq;
use replikv_proto::Progress;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One slave, as its session knows it. Read by whoever asks for the status, without waiting.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) name: String,
    pub(super) connected_at: Duration,
    /// Cancelled when a newer connection of the same slave takes its place.
    pub(super) replaced: CancellationToken,
    applied: AtomicU64,
    durable: AtomicU64,
    heard_ms: AtomicU64,
    consistent: AtomicBool,
}

impl Session {
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
}

type Map = BTreeMap<String, Arc<Session>>;

/// All slaves that are being served, by name.
#[derive(Debug)]
pub(super) struct Sessions {
    map: ArcSwap<Map>,
    acks: watch::Sender<u64>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self { map: ArcSwap::default(), acks: watch::Sender::new(0) }
    }

    /// Enters a slave. An older session of that name is told to end: the newest connection counts, since the older one
    /// may be half open for a long time.
    pub(super) fn enter(self: &Arc<Self>, name: &str, start: Seq, now: Duration) -> Entered {
        let session = Arc::new(Session {
            name: name.into(),
            connected_at: now,
            replaced: CancellationToken::new(),
            // What comes before is there, or is never sent.
            applied: AtomicU64::new(start.as_u64()),
            durable: AtomicU64::new(0),
            heard_ms: AtomicU64::new(millis(now)),
            consistent: AtomicBool::new(false),
        });
        let before = self.map.rcu(|map| {
            let mut map = Map::clone(map);
            map.insert(name.into(), session.clone());
            map
        });
        if let Some(older) = before.get(name) {
            older.replaced.cancel();
        }
        Entered { sessions: self.clone(), session }
    }

    pub(super) fn is_connected(&self, name: &str) -> bool {
        self.map.load().contains_key(name)
    }

    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.map.load().values().cloned().collect()
    }

    /// How many consistent slaves hold the record numbered `seq` on stable storage.
    pub(super) fn durable(&self, seq: Seq) -> usize {
        let holds = |session: &&Arc<Session>| {
            let progress = session.progress();
            progress.consistent && progress.durable >= seq
        };
        self.map.load().values().filter(holds).count()
    }

    /// Where the slowest slave is.
    pub(super) fn slowest(&self) -> Option<Seq> {
        self.map.load().values().map(|session| session.progress().applied).min()
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

    pub(super) fn progress(&self, progress: Progress, now: Duration) {
        self.session.applied.store(progress.applied.as_u64(), Ordering::Release);
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
