//! The slave: follows a master into a store of its own.

mod apply;
mod config;
mod error;
mod fence;
mod fenced;
mod follow;
mod keep_log;
mod probe;
mod promote;
mod quarantine;
mod reads;
mod relay;
mod restore;
mod serve;
mod status;
mod subscribe;
mod takeover;
#[cfg(feature = "tcp")]
mod tcp;
mod trend;
mod verify;
mod wait;

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Cursor, DataReader, KeyRange, KeyRanges, Keyspace, LinkId, Page, ReplicaStore, ReplicaStoreExt, ScanOptions,
    StoreError, meta,
};
use replikv_proto::layout::{Identity, Role};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

pub use self::config::SlaveConfig;
pub use self::error::{Ending, FollowError, WaitError};
pub use self::fence::{fence, lift_fence};
#[cfg(feature = "tcp")]
pub use self::fenced::promote_fenced_tcp;
pub use self::fenced::{
    FenceConfig, FencedPromoteError, FencedPromotion, FencedSlave, UnfencedSlave, promote_fenced, remote_fence,
};
pub use self::keep_log::KeepLog;
pub use self::promote::{PromoteError, Promoted, promote};
pub use self::quarantine::{Quarantine, QuarantineFile};
use self::relay::Relay;
use self::status::Tracker;
pub use self::status::{FenceSeen, RelayStatus, SlaveProgress, SlaveState, SlaveStatus};
pub use self::subscribe::subscription;
pub use self::takeover::{TakeOverError, TookOver};
use self::verify::Desk;
pub use self::verify::{Difference, Verification, VerifyError, VerifyOptions, VerifyOutcome, VerifyReport};
pub(crate) use self::wait::holds;
use crate::changes::GroupFeed;
use crate::clock::Clock;
use crate::metrics::{FollowerMetrics, Sampled, sample_every_second};
use crate::{OpenError, stored};

/// A copy of a master's data that follows the master's writes.
///
/// Whole batches only: every state that a reader sees is one that the master had, except while the slave copies, and
/// then [`status`](Self::status) says so. Nothing but its master writes to it; there is no method that does.
///
/// Handles are cheap to clone and share one slave.
#[derive(Debug)]
#[doc(alias = "replica")]
#[doc(alias = "follower")]
#[doc(alias = "secondary")]
pub struct Slave<S> {
    inner: Arc<Inner<S>>,
}

impl<S> Clone for Slave<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

#[derive(Debug)]
struct Inner<S> {
    store: Arc<S>,
    config: SlaveConfig,
    /// What it subscribes to.
    ranges: KeyRanges,
    nonce: u64,
    clock: Clock,
    tracker: Tracker,
    feed: GroupFeed,
    /// What it keeps of the log, and serves.
    relay: Option<Relay<S>>,
    /// Where questions to the master lie.
    desk: Arc<Desk>,
    metrics: FollowerMetrics,
    /// Held while a connection is followed, and while its last write set is in flight.
    following: Arc<Mutex<()>>,
    /// Held by whoever follows.
    active: Arc<Mutex<()>>,
    /// What a fence ends, and keeps out.
    gate: fence::Gate,
    closing: CancellationToken,
    /// The runtime that it was opened in.
    runtime: Option<tokio::runtime::Handle>,
}

impl<S: ReplicaStore> Slave<S> {
    /// Opens a slave on `store`: an empty one, or one that followed before.
    ///
    /// # Errors
    /// [`OpenError::Name`] if the configured name is none; [`OpenError::Role`] if the store is a master's, and
    /// [`OpenError::Backup`] if it is a backup of one and the configuration does not say that it takes it;
    /// [`OpenError::NoRelay`] if it is to keep the log, and subscribes to a part of the keys;
    /// [`OpenError::Subscription`] if no slave can subscribe to what the configuration says;
    /// [`OpenError::OtherLink`] if it follows under another link's name: one store has one lineage. A store with data
    /// that came from no master opens, and is refused when it follows; nothing is written to it.
    pub async fn open(store: S, config: SlaveConfig) -> Result<Self, OpenError> {
        LinkId::new(config.name.as_str())?;
        let identity = restore::identity(&store, &config).await?;
        if let Some(Identity { role, .. }) = identity
            && role != Role::Slave
        {
            return Err(OpenError::Role { found: role, wanted: Role::Slave });
        }
        let own = meta::cursor_key(&config.link);
        let cursors = KeyRange::prefix(meta::CURSOR_PREFIX);
        let page = store.scan(Keyspace::Meta, cursors, ScanOptions::default()).await?;
        if let Some((other, _)) = page.iter().find(|(key, _)| *key != &own[..]) {
            let other = other.strip_prefix(meta::CURSOR_PREFIX).unwrap_or(other).escape_ascii().to_string();
            return Err(OpenError::OtherLink { other, wanted: config.link.to_string() });
        }
        let cursor = store.cursor(&config.link).await?;
        // Nothing is written to a store that holds data of its own.
        let own_data = identity.is_none() && cursor.is_none() && !store.is_keyspace_empty(Keyspace::Data).await?;
        if identity.is_none() && !own_data {
            stored::write_identity(&store, &Identity::slave()).await?;
        }
        let ranges = subscribe::wanted(&store, &config).await?;
        if config.keep_log.is_some() && !ranges.is_all() {
            return Err(OpenError::NoRelay { reason: "it subscribes to a part of the keys" });
        }
        stored::derives_nothing(&store).await?;
        if !own_data {
            subscribe::settle(&store, &config, &ranges).await?;
        }
        let cursor = store.cursor(&config.link).await?;
        // What a killed process left is acknowledged as durable from here on.
        store.sync().await?;
        let nonce = getrandom::u64().map_err(|error| OpenError::Random { reason: error.to_string() })?;
        let clock = Clock::new();
        let tracker = Tracker::new(&config, &ranges, cursor.as_ref());
        let (following, active, closing) = (Arc::default(), Arc::default(), CancellationToken::new());
        let feed = GroupFeed::new();
        let runtime = tokio::runtime::Handle::try_current().ok();
        let metrics = FollowerMetrics::new(&config.name);
        let desk = Arc::default();
        let store = Arc::new(store);
        let relay = match config.keep_log.clone() {
            Some(keep) => {
                let closing = closing.clone();
                Some(Relay::open(&store, &config, keep, cursor.as_ref(), nonce, clock, closing).await?)
            }
            None => {
                relay::drop_log(&*store).await?;
                None
            }
        };
        let inner = Inner {
            store,
            config,
            ranges,
            nonce,
            clock,
            tracker,
            feed,
            relay,
            desk,
            metrics,
            following,
            active,
            gate: fence::Gate::default(),
            closing,
            runtime,
        };
        inner.standing_fence().await?;
        let inner = Arc::new(inner);
        if let Some(runtime) = &inner.runtime {
            sample_every_second(runtime, &inner, inner.closing.clone());
            verify::start(runtime, &inner);
            relay::start(runtime, &inner);
        }
        Ok(Self { inner })
    }

    /// The value of `key`, or `None`.
    ///
    /// # Errors
    /// As [`ReplicaStore::get`]; [`StoreError::NotSubscribed`] if the slave does not subscribe to `key`.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StoreError> {
        let key = key.as_ref();
        if !key.is_empty() && !self.inner.ranges.contains(key) {
            return Err(StoreError::NotSubscribed { what: format!("key {}", key.escape_ascii()) });
        }
        self.inner.store.get(Keyspace::Data, key).await
    }

    /// One page of `range`, as it was at one instant.
    ///
    /// # Errors
    /// As [`ReplicaStore::scan`]; [`StoreError::NotSubscribed`] if `range` holds keys that the slave does not subscribe to:
    /// whoever wants what there is asks for one of its [`ranges`](Self::ranges) after the other.
    pub async fn scan(&self, range: impl Into<KeyRange>, options: ScanOptions) -> Result<Page, StoreError> {
        let range = range.into();
        self.inner.subscribes_to(&range)?;
        self.inner.store.scan(Keyspace::Data, range, options).await
    }

    /// The keys that the slave subscribes to, and holds once it has caught up.
    pub fn ranges(&self) -> &KeyRanges {
        &self.inner.ranges
    }

    /// The store. Reading it is fine; what else is written to it is lost, or found as a difference.
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// Where the slave is, and how it is. Never waits.
    pub fn status(&self) -> SlaveStatus {
        self.inner.status()
    }

    /// Progress as it happens: the latest is kept, what lies between may be skipped.
    pub fn subscribe(&self) -> watch::Receiver<SlaveProgress> {
        self.inner.tracker.subscribe()
    }

    /// Stops following, waits for what is in flight, and closes the store: when this returns it can be opened again.
    ///
    /// # Cancel safety
    /// If dropped, the slave stops nevertheless; the store may stay open until the last handle is gone.
    ///
    /// # Errors
    /// As [`ReplicaStore::close`].
    pub async fn shutdown(&self) -> Result<(), StoreError> {
        self.inner.closing.cancel();
        let _following = self.inner.following.lock().await;
        self.inner.tracker.stopped();
        if let Some(relay) = &self.inner.relay {
            relay.finish().await;
        }
        // The last look was before that.
        self.inner.sample(&mut BTreeSet::new());
        self.inner.store.close().await
    }

    pub(crate) async fn stored_cursor(&self) -> Result<Option<Cursor>, StoreError> {
        self.inner.store.cursor(&self.inner.config.link).await
    }
}

// The link that a slave's store follows under, if it ever did.
pub(crate) async fn only_link<S: ReplicaStore>(store: &S) -> Result<Option<LinkId>, StoreError> {
    let found = store.first(Keyspace::Meta, KeyRange::prefix(meta::CURSOR_PREFIX)).await?;
    let Some((key, _)) = found else { return Ok(None) };
    let name = key.strip_prefix(meta::CURSOR_PREFIX).and_then(|name| std::str::from_utf8(name).ok());
    let link = name.and_then(|name| LinkId::new(name).ok());
    link.map(Some).ok_or_else(|| StoreError::Corrupt { what: "the cursor of no link".into() })
}

impl<S> Inner<S> {
    // A part of what was asked for would look like all of it.
    fn subscribes_to(&self, range: &KeyRange) -> Result<(), StoreError> {
        if self.ranges.covers(range) {
            return Ok(());
        }
        Err(StoreError::NotSubscribed { what: format!("some of {}", KeyRanges::from(range.clone())) })
    }
}

impl<S> Slave<S> {
    pub(crate) fn subscribes_to(&self, range: &KeyRange) -> Result<(), StoreError> {
        self.inner.subscribes_to(range)
    }

    pub(crate) fn feed(&self) -> &GroupFeed {
        &self.inner.feed
    }

    pub(crate) fn runtime(&self) -> Option<&tokio::runtime::Handle> {
        self.inner.runtime.as_ref()
    }

    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.inner.closing
    }
}

impl<S: ReplicaStore> Inner<S> {
    fn status(&self) -> SlaveStatus {
        let relay = self.relay.as_ref().map(Relay::status);
        SlaveStatus { relay, ..self.tracker.status(self.clock.now()) }
    }
}

impl<S: ReplicaStore> Sampled for Inner<S> {
    /// The slaves of this one that were connected.
    type Before = BTreeSet<String>;

    fn sample(&self, before: &mut BTreeSet<String>) {
        if let Some(served) = self.relay.as_ref().and_then(Relay::served) {
            served.sample(before);
        }
        let progress = self.tracker.subscribe().borrow().clone();
        self.metrics.sample(&self.tracker.status(self.clock.now()), &progress);
    }
}

#[async_trait]
impl<S: ReplicaStore> DataReader for Slave<S> {
    async fn get_data(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.get(key).await
    }

    async fn scan_data(&self, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.scan(range, options).await
    }
}
