//! A slave that keeps the log: what it has of the history is served as a master's is.
//!
//! The task that applies writes the log in the write sets that apply it, and tells here what came of them. What is served
//! is made anew whenever it is another thing: after a copy, with a new epoch, in another place of the tree. Sessions of
//! the one before end with a goodbye. While the slave holds no state of its master nothing is served.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use replikv_core::{
    Cursor, Durability, Epoch, KeyRange, Keyspace, Position, ReplicaStore, SourceId, StoreError, StoreLimits, WriteSet,
    meta,
};
use replikv_proto::layout::{Epochs, Floor, Head, Kept, Stored};
use replikv_proto::{EpochStart, GroupLog, LogParts, PathNode, Welcome};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{Inner, KeepLog, RelayStatus, SlaveConfig};
use crate::clock::Clock;
use crate::master::history::{History, Means, Rooms, Standing};
use crate::master::slots::SlotBook;
use crate::stored;

/// How often slots are written, and the log is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// As many checkpoints as a store ever keeps.
const ALL_CHECKPOINTS: usize = 8 * replikv_proto::layout::Checkpoint::KEEP as usize;

/// What a slave has beside, if it keeps the log.
#[derive(Debug)]
pub(super) struct Relay<S> {
    config: KeepLog,
    handshake_timeout: Duration,
    node: PathNode,
    /// What is served, if anything is.
    served: ArcSwapOption<History<Arc<S>>>,
    facts: Mutex<Facts>,
    /// Another history begins with the next group: what is in the store counts no more.
    parting: AtomicBool,
    slots: Arc<SlotBook>,
    pub(super) rooms: Rooms,
    /// Held while a group is committed, and by whoever reads what must be of one point of the history.
    pub(super) commits: AsyncMutex<()>,
    /// Held from a look at what is served to what is written to the log for it, and while the store is opened anew, which
    /// may take away what was seen.
    quiet: AsyncMutex<()>,
    clock: Clock,
    uptime_before: u64,
    closing: CancellationToken,
}

/// What the master has told, and the store does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Whose history it spoke of. `None` if what is known is what was stored.
    source: Option<SourceId>,
    epochs: Vec<EpochStart>,
    limits: Option<StoreLimits>,
    /// The relays above.
    path: Vec<PathNode>,
}

impl Facts {
    pub(super) fn of(welcome: &Welcome) -> Self {
        Self {
            source: Some(welcome.source),
            epochs: welcome.epochs.clone(),
            limits: Some(welcome.limits),
            path: welcome.path.clone(),
        }
    }
}

impl Facts {
    /// What a master has told of another branch, which this slave is about to join, does not fit to what it still holds:
    /// whoever was told both would take the epochs of one for those of the other.
    fn know(&self, epoch: Epoch) -> bool {
        self.epochs.is_empty() || self.epochs.iter().any(|start| start.epoch == epoch)
    }
}

/// What is served has ended.
const COPIES: &str = "this relay copies or compares, and holds no state of its master until it is through";
const MOVED: &str = "this relay has moved, or has heard of a new epoch: connect again";

impl<S: ReplicaStore> Relay<S> {
    /// Prepares the store of a slave that stands at `cursor`, and serves what it has kept.
    pub(super) async fn open(
        store: &Arc<S>,
        config: &SlaveConfig,
        keep: KeepLog,
        cursor: Option<&Cursor>,
        nonce: u64,
        clock: Clock,
        closing: CancellationToken,
    ) -> Result<Self, StoreError> {
        begin(store, config, cursor).await?;
        let head: Option<Head> = stored::read(store, Head::KEY).await?;
        let kept: Option<Kept> = stored::read(store, Kept::KEY).await?;
        let epochs: Epochs = stored::read(store, Epochs::KEY).await?.unwrap_or_default();
        let facts = Facts { epochs: epochs.0, limits: kept.map(|kept| kept.limits), ..Facts::default() };
        let slots = Arc::new(SlotBook::new(SlotBook::read(store, keep.slots).await?));
        let relay = Self {
            handshake_timeout: config.handshake_timeout,
            node: PathNode { name: config.name.clone(), nonce },
            served: ArcSwapOption::empty(),
            facts: Mutex::new(facts),
            parting: AtomicBool::new(false),
            slots,
            rooms: Rooms::new(keep.max_sessions, keep.max_readers),
            commits: AsyncMutex::new(()),
            quiet: AsyncMutex::new(()),
            clock,
            uptime_before: head.map_or(0, |head| head.uptime_ms),
            closing,
            config: keep,
        };
        relay.settle(store).await?;
        Ok(relay)
    }

    /// What is served, if anything is.
    pub(super) fn served(&self) -> Option<Arc<History<Arc<S>>>> {
        self.served.load_full()
    }

    /// How long nodes have run on this store, in milliseconds.
    pub(super) fn uptime_ms(&self) -> u64 {
        let running = self.clock.now().monotonic.as_millis();
        self.uptime_before.saturating_add(u64::try_from(running).unwrap_or(u64::MAX))
    }

    /// A group goes to the store, and ends at `position`. What may be read of it from now on must not be taken for older.
    pub(super) fn hand(&self, position: Position, log: Option<&GroupLog>) {
        self.parting.store(false, Ordering::Release);
        match (self.served(), log) {
            (Some(served), Some(GroupLog { begun: None, .. })) => served.change_view(|view| view.handed = position),
            // Before it is committed: what is there afterwards is not of what was served.
            (Some(_), _) => self.close(COPIES),
            (None, _) => {}
        }
    }

    /// That group is committed.
    pub(super) async fn committed(&self, store: &Arc<S>, log: Option<GroupLog>) -> Result<(), StoreError> {
        let Some(log) = log else { return Ok(()) };
        match self.served() {
            Some(served) => served.append(log),
            None => self.settle(store).await?,
        }
        Ok(())
    }

    /// Nothing is in flight: what the store says is served.
    pub(super) async fn settle(&self, store: &Arc<S>) -> Result<(), StoreError> {
        let _quiet = self.quiet.lock().await;
        self.look_again(store).await
    }

    /// Does something after which the store may hold less than before, such as opening it anew; what it says then is served,
    /// or nothing if it says nothing.
    pub(super) async fn unsettle<T>(&self, store: &Arc<S>, action: impl Future<Output = T>) -> T {
        let _quiet = self.quiet.lock().await;
        // Also if this is dropped half way.
        let mut unknown = Unknown { relay: self, is_unknown: true };
        let done = action.await;
        unknown.is_unknown = self.look_again(store).await.is_err();
        done
    }

    async fn look_again(&self, store: &Arc<S>) -> Result<(), StoreError> {
        if self.parting.load(Ordering::Acquire) {
            return Ok(());
        }
        let head: Option<Head> = stored::read(store, Head::KEY).await?;
        if let Some(served) = self.served() {
            if head.is_some_and(|head| head.position == served.view().published) {
                // What was handed over, and came to nothing, is no longer there.
                served.change_view(|view| view.handed = view.published);
                return Ok(());
            }
            self.close(MOVED);
        }
        let facts = self.facts().clone();
        let Some((head, limits)) = head.zip(facts.limits) else { return Ok(()) };
        if facts.source.is_some_and(|source| source != head.position.source) || !facts.know(head.position.epoch) {
            return Ok(());
        }
        let standing = Standing {
            source: head.position.source,
            published: head.position,
            log_bytes: head.log_bytes,
            uptime_before: self.uptime_before,
            parts: LogParts::new(stored::require(store, Floor::KEY).await?),
            epochs: facts.epochs,
            checkpoints: stored::checkpoints(store, ALL_CHECKPOINTS).await?,
            limits,
        };
        let mut serving = self.config.serving(self.handshake_timeout);
        serving.path = facts.path;
        serving.path.push(self.node.clone());
        let means = Means {
            serving,
            ring_bytes: self.config.ring_bytes,
            log_readers: self.config.log_readers,
            rooms: self.rooms.clone(),
            slots: self.slots.clone(),
            clock: self.clock,
            closing: self.closing.child_token(),
        };
        self.served.store(Some(Arc::new(History::new(store.clone(), standing, means))));
        Ok(())
    }

    /// A connection begins: what an earlier one had begun and not committed is gone.
    pub(super) async fn take_turn(&self, store: &Arc<S>) -> Result<(), StoreError> {
        self.parting.store(false, Ordering::Release);
        self.settle(store).await
    }

    /// What the master has told: if it is news, what is served is made anew.
    pub(super) async fn learn(&self, store: &Arc<S>, facts: Facts) -> Result<(), StoreError> {
        let known = std::mem::replace(&mut *self.facts(), facts.clone());
        if (Facts { source: facts.source, ..known }) != facts {
            self.close(MOVED);
        }
        self.settle(store).await
    }

    /// Another history begins: nobody is served this one any more, and nobody's place in it counts.
    pub(super) fn resyncs(&self) {
        self.parting.store(true, Ordering::Release);
        self.close(COPIES);
        self.slots.forget_all();
    }

    fn close(&self, farewell: &'static str) {
        if let Some(served) = self.served.swap(None) {
            served.close(farewell);
        }
    }

    pub(super) fn status(&self) -> RelayStatus {
        match self.served() {
            Some(served) => {
                let view = served.view();
                RelayStatus {
                    blocked: None,
                    published: Some(view.published),
                    floor: Some(view.floor),
                    retained_bytes: view.retained_bytes,
                    slaves: served.slaves_seen(),
                    slots: served.slots_seen(),
                }
            }
            None => RelayStatus {
                blocked: Some(self.reason().into()),
                published: None,
                floor: None,
                retained_bytes: 0,
                slaves: Vec::new(),
                slots: Vec::new(),
            },
        }
    }

    /// Why nothing is served.
    pub(super) fn reason(&self) -> &'static str {
        if self.facts().limits.is_none() { "this relay has not heard of its master yet" } else { COPIES }
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // Nothing that runs under this lock can panic half way.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what was acknowledged; and trims the log, one step. True if there may be more to do.
    async fn tidy(&self, store: &Arc<S>) -> bool {
        let Some(served) = self.served() else { return false };
        served.save_slots().await;
        let _quiet = self.quiet.lock().await;
        let Some(served) = self.served().filter(|_| !self.closing.is_cancelled()) else { return false };
        let (view, parts) = (served.view(), served.parts());
        let (floor, writes) = if let Some(damaged) = served.take_damaged() {
            let floor = served.floor_after(damaged);
            let mut writes = WriteSet::builder();
            writes.require(Floor::KEY, Some(parts.floor.to_bytes()));
            writes.delete_range(Keyspace::Log, &KeyRange::from_bounds(..=floor.position.seq.to_key()));
            if damaged <= parts.floor.position.seq || writes.put(Keyspace::Meta, Floor::KEY, floor.to_bytes()).is_err()
            {
                return false;
            }
            (floor, writes.build())
        } else {
            let head = Head { position: view.published, log_bytes: view.log_bytes, uptime_ms: self.uptime_ms() };
            let after = parts.floor.position.seq;
            let above = served.with_checkpoints(|checkpoints| {
                let above = checkpoints.iter().filter(|checkpoint| checkpoint.position.seq > after);
                above.take(1).copied().collect::<Vec<_>>()
            });
            match served.next_trim(&self.config.retention, &head, above, served.held()).await {
                Ok(Some(trim)) => (trim.floor, trim.writes),
                Ok(None) => return false,
                Err(error) => {
                    self.untidy(&error);
                    return false;
                }
            }
        };
        // Told before it is done: nobody is sent to records that are about to go.
        served.change_view(|view| view.floor = floor.position);
        match store.apply(writes, Durability::Buffered).await {
            Ok(()) => {
                served.change_parts(LogParts::new(floor));
                true
            }
            Err(error) => {
                // A log that was begun anew meanwhile is another one.
                served.change_parts(parts);
                self.untidy(&error);
                false
            }
        }
    }

    fn untidy(&self, error: &StoreError) {
        tracing::warn!(
            target: "replikv::slave", follower = %self.node.name, error = %crate::error_chain(error),
            "the kept log could not be trimmed"
        );
    }

    /// Writes what was acknowledged, for the last time. Nothing is trimmed afterwards.
    pub(super) async fn finish(&self) {
        if let Some(served) = self.served() {
            served.save_slots().await;
        }
        drop(self.quiet.lock().await);
    }

    /// Drops the slot of a slave or a consumer.
    pub(super) fn forget(&self, name: &replikv_proto::SlotName) -> bool {
        match self.served() {
            Some(served) => served.forget_slot(name),
            None => self.slots.with(|slots| slots.forget(name)),
        }
    }
}

/// What the store holds is not known: nothing is served, and the next connection looks again.
struct Unknown<'a, S: ReplicaStore> {
    relay: &'a Relay<S>,
    is_unknown: bool,
}

impl<S: ReplicaStore> Drop for Unknown<'_, S> {
    fn drop(&mut self) {
        if self.is_unknown {
            self.relay.close(MOVED);
        }
    }
}

/// Keeps slots and log of a slave in order, until it is shut down or gone.
pub(super) fn start<S: ReplicaStore>(runtime: &tokio::runtime::Handle, inner: &Arc<Inner<S>>) {
    if inner.relay.is_some() {
        // Nobody is kept alive by being tidied.
        runtime.spawn(run(Arc::downgrade(inner), inner.closing.clone()));
    }
}

async fn run<S: ReplicaStore>(inner: Weak<Inner<S>>, closing: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            () = sleep(EVERY) => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        let Some(relay) = &inner.relay else { return };
        while !closing.is_cancelled() && relay.tidy(&inner.store).await {}
    }
}

// The log ends where the slave stands, or there is none. One that was begun before may have been left by a slave that did
// not go on with it.
async fn begin<S: ReplicaStore>(
    store: &Arc<S>,
    config: &SlaveConfig,
    cursor: Option<&Cursor>,
) -> Result<(), StoreError> {
    let head: Option<Head> = stored::read(store, Head::KEY).await?;
    let stands = cursor.filter(|cursor| cursor.is_consistent()).map(|cursor| cursor.position);
    if head.map(|head| head.position) == stands {
        return Ok(());
    }
    let mut writes = WriteSet::builder();
    writes.require(meta::cursor_key(&config.link), cursor.map(Cursor::to_bytes));
    writes.delete_range(Keyspace::Log, &KeyRange::all());
    match stands {
        Some(position) => {
            let (log_bytes, uptime_ms) = head.map_or((0, 0), |head| (head.log_bytes, head.uptime_ms));
            writes.put(Keyspace::Meta, Floor::KEY, Floor { position, log_bytes }.to_bytes())?;
            writes.put(Keyspace::Meta, Head::KEY, Head { position, log_bytes, uptime_ms }.to_bytes())?;
        }
        None => {
            writes.delete(Keyspace::Meta, Floor::KEY)?;
            writes.delete(Keyspace::Meta, Head::KEY)?;
        }
    }
    store.apply(writes.build(), Durability::Synced).await
}

/// A slave that does not keep the log has no use for one that it kept.
pub(super) async fn drop_log<S: ReplicaStore>(store: &S) -> Result<(), StoreError> {
    if stored::read::<S, Head>(store, Head::KEY).await?.is_none() {
        return Ok(());
    }
    let mut writes = WriteSet::builder();
    writes.delete_range(Keyspace::Log, &KeyRange::all());
    for key in [Head::KEY, Floor::KEY, Kept::KEY] {
        writes.delete(Keyspace::Meta, key)?;
    }
    writes.delete_range(Keyspace::Meta, &KeyRange::prefix(replikv_proto::SlotName::PREFIX));
    store.apply(writes.build(), Durability::Synced).await
}
