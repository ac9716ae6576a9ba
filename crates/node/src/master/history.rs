//! A history as it is served: to slaves by its master, and by a slave that keeps the log.
//!
//! Whoever has one writes to it in a way of its own, and tells here what came of that: what was handed to the store, what
//! is published, where the log begins. Sessions know nothing else of either.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use replikv_core::{Position, Seq, SourceId, StoreLimits};
use replikv_proto::layout::Checkpoint;
use replikv_proto::{EpochStart, GroupLog, LogParts, Openings, PathNode, View};
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::listening::Audience;
use super::log::Measured;
use super::ring::Ring;
use super::sessions::Sessions;
use super::slots::SlotBook;
use crate::clock::Clock;
use crate::metrics::{SourceMetrics, Traffic};
use crate::transport::Packing;

/// The most that one message aims for: decoders have room for 4 MiB beside the largest batch, for headers as well.
pub(crate) const MAX_CHUNK: usize = 2 << 20;

/// How a history is served.
#[derive(Debug, Clone)]
pub(crate) struct Serving {
    pub(crate) heartbeat: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) chunk: usize,
    pub(crate) compare_bytes_per_second: Option<u64>,
    pub(crate) max_lag: Option<u64>,
    /// Whether slaves that ask for it are sent compressed frames.
    pub(crate) compression: bool,
    /// How long a slave that is ahead may wait for this relay. `None`: it is a master, for which nobody waits.
    pub(crate) wait: Option<Duration>,
    /// The relays above, and this one, from the master down; empty on a master.
    pub(crate) path: Vec<PathNode>,
}

/// Room for those who connect. Outlives a history.
#[derive(Debug, Clone)]
pub(crate) struct Rooms {
    pub(crate) sessions: Arc<Semaphore>,
    pub(crate) readers: Arc<Semaphore>,
    /// Which slave has which name.
    pub(super) openings: Arc<Mutex<Openings>>,
}

impl Rooms {
    pub(crate) fn new(sessions: usize, readers: usize) -> Self {
        let room = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Self { sessions: room(sessions), readers: room(readers), openings: Arc::default() }
    }
}

/// Where a history stands when it begins to be served.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) source: SourceId,
    pub(crate) published: Position,
    pub(crate) log_bytes: u64,
    /// How long nodes had run on the store before, in milliseconds.
    pub(crate) uptime_before: u64,
    pub(crate) parts: LogParts,
    pub(crate) epochs: Vec<EpochStart>,
    pub(crate) checkpoints: Vec<Checkpoint>,
    pub(crate) limits: StoreLimits,
}

/// What a session reads.
#[derive(Debug)]
pub(crate) struct History<S> {
    pub(super) store: S,
    pub(super) serving: Serving,
    pub(super) clock: Clock,
    pub(super) source: SourceId,
    pub(super) epochs: Vec<EpochStart>,
    pub(super) limits: StoreLimits,
    pub(super) view: watch::Sender<View>,
    /// The same view, for readers that must not wait.
    pub(super) seen: ArcSwap<View>,
    /// How often what was handed to the store has come to nothing.
    pub(super) setbacks: AtomicU64,
    pub(super) metrics: SourceMetrics,
    pub(super) ring: Mutex<Ring>,
    pub(super) packing: Arc<Packing>,
    pub(super) checkpoints: Mutex<Vec<Checkpoint>>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) audience: Audience,
    pub(super) slots: Arc<SlotBook>,
    /// How long nodes had run on this store when this one was opened, in milliseconds.
    pub(super) uptime_before: u64,
    pub(super) rooms: Rooms,
    pub(super) log_reads: Semaphore,
    /// How much data there was when somebody last asked. Whoever counts holds it.
    pub(super) measured: AsyncMutex<Option<Measured>>,
    /// What is being read, and needs the log from here on: backups.
    pub(super) held: Mutex<Vec<Seq>>,
    /// Where the parts of the log begin and end. The one task that writes changes them.
    pub(super) parts: Mutex<LogParts>,
    /// A record up to here is damaged: the log begins after it.
    pub(super) damaged: Mutex<Option<Seq>>,
    pub(super) wake: Notify,
    pub(super) closing: CancellationToken,
    /// What sessions are told when it closes, unless its node shuts down.
    farewell: OnceLock<&'static str>,
}

/// What comes from the configuration.
#[derive(Debug)]
pub(crate) struct Means {
    pub(crate) serving: Serving,
    pub(crate) ring_bytes: usize,
    pub(crate) log_readers: usize,
    pub(crate) rooms: Rooms,
    pub(crate) slots: Arc<SlotBook>,
    pub(crate) clock: Clock,
    pub(crate) closing: CancellationToken,
}

impl<S> History<S> {
    pub(crate) fn new(store: S, standing: Standing, means: Means) -> Self {
        let Standing { source, published, log_bytes, uptime_before, parts, epochs, checkpoints, limits } = standing;
        let view = View {
            published,
            handed: published,
            floor: parts.begins().position,
            log_bytes,
            retained_bytes: log_bytes.saturating_sub(parts.missing_bytes()),
        };
        let metrics = SourceMetrics::new(source);
        Self {
            store,
            serving: means.serving,
            clock: means.clock,
            source,
            epochs,
            limits,
            view: watch::Sender::new(view),
            seen: ArcSwap::from_pointee(view),
            setbacks: AtomicU64::new(0),
            packing: Arc::new(Packing::new(metrics.compressed())),
            metrics,
            ring: Mutex::new(Ring::new(means.ring_bytes)),
            checkpoints: Mutex::new(checkpoints),
            sessions: Arc::new(Sessions::new(means.rooms.openings.clone())),
            audience: Audience::default(),
            slots: means.slots,
            uptime_before,
            rooms: means.rooms,
            log_reads: Semaphore::new(means.log_readers.min(Semaphore::MAX_PERMITS)),
            measured: AsyncMutex::new(None),
            held: Mutex::default(),
            parts: Mutex::new(parts),
            damaged: Mutex::new(None),
            wake: Notify::new(),
            closing: means.closing,
            farewell: OnceLock::new(),
        }
    }

    pub(crate) fn source(&self) -> SourceId {
        self.source
    }

    /// Where it stands. Never waits.
    pub(crate) fn view(&self) -> View {
        **self.seen.load()
    }

    /// Ends every session, which is told why.
    pub(crate) fn close(&self, farewell: &'static str) {
        self.farewell.get_or_init(|| farewell);
        self.closing.cancel();
    }

    /// True if it was closed: what the store holds from now on is not of it.
    pub(super) fn is_over(&self) -> bool {
        self.farewell.get().is_some()
    }

    pub(super) fn farewell(&self) -> &'static str {
        self.farewell.get().copied().unwrap_or("the node was shut down")
    }

    /// What goes over a connection to a slave is counted with it.
    pub(crate) fn traffic(&self) -> Traffic {
        self.metrics.traffic()
    }

    /// Records are committed that go on with it, and are published.
    pub(crate) fn append(&self, log: GroupLog) {
        let GroupLog { head, entries, checkpoints, .. } = log;
        self.keep_checkpoints(checkpoints);
        self.with_ring(|ring| entries.iter().for_each(|entry| ring.push(entry.clone())));
        let missing_bytes = self.parts().missing_bytes();
        self.publish(entries.iter(), |view| {
            (view.published, view.handed) = (head.position, head.position);
            view.log_bytes = head.log_bytes;
            view.retained_bytes = head.log_bytes.saturating_sub(missing_bytes);
        });
    }

    /// A record up to here was found to be damaged.
    pub(crate) fn take_damaged(&self) -> Option<Seq> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn change_view(&self, change: impl FnOnce(&mut View)) {
        self.view.send_modify(|view| {
            let handed = view.handed.seq;
            change(view);
            if view.handed.seq < handed {
                self.setbacks.fetch_add(1, Ordering::SeqCst);
            }
            self.seen.store(Arc::new(*view));
        });
    }

    /// The store holds the log in these parts.
    pub(crate) fn change_parts(&self, parts: LogParts) {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner) = parts;
        self.change_view(|view| {
            view.floor = parts.begins().position;
            view.retained_bytes = view.log_bytes.saturating_sub(parts.missing_bytes());
        });
    }

    /// The parts of the log.
    pub(crate) fn parts(&self) -> LogParts {
        *self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the recorder where it stands. `before` are the slaves that were connected at the last look.
    pub(crate) fn sample(&self, before: &mut BTreeSet<String>) {
        let view = self.view();
        let log = (view.published.seq, view.floor.seq, view.retained_bytes);
        self.metrics.sample_served(log, &self.slaves_seen(), before);
    }

    pub(super) fn with_ring<R>(&self, look: impl FnOnce(&mut Ring) -> R) -> R {
        // Nothing that runs under these locks can panic half way.
        look(&mut self.ring.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn keep_checkpoints(&self, new: Vec<Checkpoint>) {
        self.with_checkpoints(|kept| new.into_iter().for_each(|checkpoint| checkpoint.keep_in(kept)));
    }

    pub(crate) fn with_checkpoints<R>(&self, look: impl FnOnce(&mut Vec<Checkpoint>) -> R) -> R {
        look(&mut self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
