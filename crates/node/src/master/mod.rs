//! The master: takes writes, keeps the log, serves slaves.

mod commit;
mod compact;
mod config;
mod derive;
mod error;
mod exact;
mod handover;
pub(crate) mod history;
mod listening;
mod log;
mod open;
mod reads;
mod recording;
mod ring;
pub(crate) mod serve;
mod sessions;
pub(crate) mod slots;
mod status;
#[cfg(feature = "tcp")]
mod tcp;
mod throttle;
mod write;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Batch, DataReader, KeyRange, Keyspace, LinkId, Op, Page, Position, ReplicaStore, ScanOptions, SourceId, StoreError,
    StoreLimits,
};
use replikv_proto::layout::Superseded;
use replikv_proto::{Committer, CommitterConfig, Derives, View};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::commit::{CommitTask, Queued};
pub use self::config::{Commit, MasterConfig};
pub use self::error::{ServeError, WriteError};
pub(crate) use self::handover::ask_to_hand_over;
pub use self::handover::{HandedOver, HandoverError};
use self::history::{History, Means, Rooms, Standing};
pub use self::log::{LogError, LogPart, read_log, read_log_parts};
pub(crate) use self::open::epoch_nonce;
use self::recording::Recordings;
pub use self::recording::{Recording, Sealed};
pub use self::serve::remote_status;
use self::slots::SlotBook;
pub use self::slots::SlotSeen;
pub use self::status::{MasterProgress, MasterStatus, SlaveSeen};
pub use self::write::{Replicated, Write};
use crate::centre::Claims;
use crate::clock::Clock;
use crate::metrics::sample_every_second;
use crate::{OpenError, stored};

/// Takes writes to a store, keeps a log of them in the same transactions, and serves that log to slaves.
///
/// Handles are cheap to clone and share one master. When the last one is gone, what was written so far is committed,
/// and the master ends; [`shutdown`](Self::shutdown) does the same and waits for it.
#[derive(Debug)]
#[doc(alias = "primary")]
#[doc(alias = "leader")]
#[doc(alias = "source")]
pub struct Master<S> {
    inner: Arc<Inner<S>>,
    intents: mpsc::UnboundedSender<Queued>,
}

impl<S> Clone for Master<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), intents: self.intents.clone() }
    }
}

#[derive(Debug)]
pub(crate) struct Inner<S> {
    /// What is served. Read through, as if it were this.
    history: History<S>,
    config: MasterConfig,
    committer: CommitterConfig,
    recordings: Recordings,
    trouble: ArcSwap<status::Trouble>,
    counters: status::Counters,
    workbench: compact::Workbench,
    queue: Arc<Semaphore>,
    /// How often the store was opened anew: what was not synced may be gone since.
    reopened: AtomicU64,
    /// Held by the writer who waits for a slave; the others wait behind it, in order.
    throttle: AsyncMutex<()>,
    /// What belongs to links of the centre that this master is, if it is one.
    claims: ArcSwap<Vec<(LinkId, KeyRange)>>,
    /// Whose the history is, if it is no longer this master's.
    superseded: ArcSwapOption<Superseded>,
    /// True while writers wait for a handover.
    paused: watch::Sender<bool>,
    /// To whom it has handed over. Held while it does.
    handed_over: AsyncMutex<Option<handover::Begun>>,
    committing: AsyncMutex<Option<JoinHandle<()>>>,
    runtime: tokio::runtime::Handle,
}

impl<S> Inner<S> {
    /// How often the store was opened anew, or is about to be.
    pub(crate) fn reopened(&self) -> u64 {
        self.reopened.load(Ordering::Acquire)
    }
}

impl<S> std::ops::Deref for Inner<S> {
    type Target = History<S>;

    fn deref(&self) -> &History<S> {
        &self.history
    }
}

impl<S: ReplicaStore> Master<S> {
    /// Opens `store` as a master's. A new store gets an identity of its own; one that already holds data gets a base
    /// record too, so that its slaves copy that data.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError::Superseded`] if another master was promoted; [`OpenError::Role`] if the
    /// store is a slave's; [`OpenError::Links`] if links write to it; [`OpenError::Derive`] if something cannot be derived as
    /// it is configured; `NewerFormat` if a newer program wrote it; what the store reports.
    pub async fn open(store: S, config: MasterConfig) -> Result<Self, OpenError> {
        let claims = Claims::read(&store).await?;
        if let Some((link, _)) = claims.iter().next() {
            return Err(OpenError::Links { link: link.clone() });
        }
        Self::open_centre(store, config, &claims).await
    }

    /// As [`open`](Self::open), for a store with links.
    pub(crate) async fn open_centre(store: S, config: MasterConfig, claims: &Claims) -> Result<Self, OpenError> {
        derive::check(&config.derives, claims)?;
        let opened = open::open(&store, &config).await?;
        stored::derives_nothing(&store).await?;
        // A process that was killed may have left records that are readable and not durable: none of them is published
        // before it is.
        store.sync().await?;
        let committer_config = CommitterConfig {
            epoch: opened.head.position.epoch,
            group_bytes: config.group_bytes,
            limits: opened.limits,
        };
        let committer = Committer::new(committer_config, opened.head).deriving(config.derives.clone());
        let (intents, receiver) = mpsc::unbounded_channel();
        let standing = Standing {
            source: opened.source,
            published: opened.head.position,
            log_bytes: opened.head.log_bytes,
            uptime_before: opened.head.uptime_ms,
            parts: opened.parts,
            epochs: opened.epochs,
            checkpoints: opened.checkpoints,
            limits: opened.limits,
        };
        let means = Means {
            serving: config.serving(),
            ring_bytes: config.ring_bytes,
            log_readers: config.log_readers,
            rooms: Rooms::new(config.max_sessions, config.max_readers),
            slots: Arc::new(SlotBook::new(opened.slots)),
            clock: Clock::new(),
            closing: CancellationToken::new(),
        };
        let inner = Arc::new(Inner {
            committer: committer_config,
            recordings: Recordings::new(opened.head.position),
            trouble: ArcSwap::default(),
            counters: status::Counters::default(),
            workbench: compact::Workbench::default(),
            queue: Arc::new(Semaphore::new(write::permits(config.queue_bytes))),
            reopened: AtomicU64::new(0),
            throttle: AsyncMutex::new(()),
            claims: ArcSwap::default(),
            superseded: ArcSwapOption::default(),
            paused: watch::Sender::new(false),
            handed_over: AsyncMutex::default(),
            committing: AsyncMutex::new(None),
            runtime: tokio::runtime::Handle::current(),
            history: History::new(store, standing, means),
            config,
        });
        let task = CommitTask::new(inner.clone(), committer, receiver);
        // However it ends, nobody can write any more, and whoever waits for more is told.
        let ended = inner.closing.clone().drop_guard();
        let committing = tokio::spawn(async move {
            let _ended = ended;
            task.run().await;
        });
        *inner.committing.lock().await = Some(committing);
        if inner.config.compaction.is_some() || opened.parts.compacted().is_some() {
            tokio::spawn(compact::run(inner.clone()));
        }
        tracing::info!(
            target: "replikv::master", source = %inner.source, seq = %opened.head.position.seq,
            "a master was opened"
        );
        sample_every_second(&inner.runtime, &inner, inner.closing.clone());
        let master = Self { inner, intents };
        if let Err(error) = master.settle_derives(opened.head.position.seq).await {
            // Whoever opens it may try again at once.
            drop(master.shutdown().await);
            return Err(error);
        }
        Ok(master)
    }

    /// Writes one entry.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<replikv_core::Token, WriteError> {
        self.write(Batch::new().put(key, value)).await
    }

    /// Removes one entry, if it is there.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<replikv_core::Token, WriteError> {
        self.write(Batch::new().delete(key)).await
    }

    /// The value of `key`, or `None`: what is readable in the store, published or not.
    ///
    /// # Errors
    /// As [`ReplicaStore::get`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StoreError> {
        self.inner.store.get(Keyspace::Data, key.as_ref()).await
    }

    /// One page of `range`, as it was at one instant.
    ///
    /// # Errors
    /// As [`ReplicaStore::scan`].
    pub async fn scan(&self, range: impl Into<KeyRange>, options: ScanOptions) -> Result<Page, StoreError> {
        self.inner.store.scan(Keyspace::Data, range.into(), options).await
    }

    /// The store. Reading it is fine; what is written to it directly is in no log, and reaches no slave.
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// The history that this master writes.
    pub fn source(&self) -> SourceId {
        self.inner.source
    }

    /// The longest key, value and batch that are accepted.
    pub fn limits(&self) -> StoreLimits {
        self.inner.limits
    }

    /// Where the master is, how it is, and whom it serves. Never waits.
    pub fn status(&self) -> MasterStatus {
        self.inner.status()
    }

    /// Progress as it happens: the latest is kept, what lies between may be skipped. Only published records count.
    pub fn subscribe(&self) -> MasterProgress {
        MasterProgress::new(self.inner.view.subscribe(), self.inner.closing.clone())
    }

    /// Commits what was written so far, says goodbye to slaves, and closes the store: when this returns it can be
    /// opened again.
    ///
    /// # Cancel safety
    /// If dropped, the master ends nevertheless; the store may stay open until the last handle is gone.
    ///
    /// # Errors
    /// As [`ReplicaStore::close`].
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        if self.records_here() {
            return Err(StoreError::Busy {
                holder: "a recorder is open on this thread: commit or drop it first".into(),
            });
        }
        self.inner.closing.cancel();
        let mut committing = self.inner.committing.lock().await;
        if let Some(task) = committing.as_mut()
            && let Err(error) = task.await
        {
            tracing::error!(target: "replikv::master", source = %self.inner.source, %error, "the commit task died");
        }
        *committing = None;
        self.inner.store.close().await
    }
}

impl<S> Master<S> {
    pub(crate) fn inner(&self) -> &Arc<Inner<S>> {
        &self.inner
    }

    pub(crate) fn runtime(&self) -> &tokio::runtime::Handle {
        &self.inner.runtime
    }
}

impl<S> Inner<S> {
    /// Whether a commit may be answered before it is on stable storage.
    pub(crate) fn is_buffered(&self) -> bool {
        matches!(self.config.commit, Commit::Buffered { .. })
    }

    /// What links have to themselves, from now on.
    pub(crate) fn claim(&self, claims: Vec<(LinkId, KeyRange)>) {
        self.claims.store(Arc::new(claims));
    }

    /// Sees that nothing of `batch` belongs to a link, or to what is derived.
    fn unclaimed(&self, batch: &Batch) -> Result<(), WriteError> {
        let claims = self.claims.load();
        if claims.is_empty() && self.config.derives.is_empty() {
            return Ok(());
        }
        for op in batch.ops() {
            let (key, range) = match op {
                Op::Put { key, .. } | Op::Delete { key } => (key, KeyRange::from_bounds(key..=key)),
                Op::DeleteRange { start, end } => {
                    let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                    (start, range)
                }
            };
            if let Some((link, _)) = claims.iter().find(|(_, claimed)| !claimed.intersect(&range).is_empty()) {
                return Err(WriteError::Claimed { key: Bytes::copy_from_slice(key), link: link.clone() });
            }
            if let Some((derive, _)) = self.config.derives.meets(&range) {
                let name = derive.name().to_owned();
                return Err(WriteError::Derived { key: Bytes::copy_from_slice(key), name });
            }
        }
        Ok(())
    }

    /// What is derived from each batch.
    pub(crate) fn derives(&self) -> &Derives {
        &self.config.derives
    }

    /// Tells what a page may show from now on, if `handed` is the last record of the commit task's.
    fn hand_over(&self, handed: Position) {
        // Under this lock, so that no recording comes in between.
        let recordings = self.recordings.lock();
        self.change_view(|view| view.handed = recordings.handed(handed));
    }
}

#[async_trait]
impl<S: ReplicaStore> DataReader for Master<S> {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(key).await
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.scan(range, options).await
    }
}
