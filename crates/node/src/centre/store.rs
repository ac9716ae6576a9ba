//! A link's view of the centre's store: a store of its own, for all that its slave can tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Cursor, Durability, KeyRange, KeyRanges, Keyspace, LinkId, Page, Placement, ReplicaStore, ScanOptions, StoreError,
    StoreLimits, StoreStats, Subspace, WriteSet, meta,
};
use replikv_proto::layout::Stored;
use replikv_proto::{Claim, Subscription};

use super::Inner;
use super::claims::Lease;

/// The part of a centre's store that one link writes: what the link calls `k` is under its prefix there, and what it
/// knows of its master is apart from what other links know.
///
/// It keeps every law of a store, with shorter keys: what the prefix takes, keys of the master cannot have. Where the link
/// strips a prefix, keys have it here and not in the centre. A key that does not begin with it is not there, and
/// [`StoreError::NotSubscribed`] to a write; a range delete ends where the prefix does.
#[derive(Debug)]
pub struct LinkStore<S> {
    shared: Arc<Inner<S>>,
    link: LinkId,
    data: Placement,
    knowledge: Subspace,
    limits: StoreLimits,
    /// Given back when the link is closed.
    lease: Mutex<Option<Lease>>,
    /// How many write sets were dropped by whoever waited for them, and how many of those are decided.
    abandoned: AtomicU64,
    decided: AtomicU64,
    /// How many of the centre's setbacks this link knows of.
    setbacks: AtomicU64,
}

impl<S: ReplicaStore> LinkStore<S> {
    pub(super) fn new(shared: &Arc<Inner<S>>, link: &LinkId, data: Placement, lease: Lease) -> Self {
        let whole = shared.limits();
        let prefix = data.target().prefix().len();
        let limits = StoreLimits {
            max_key: (whole.max_key + data.strip().prefix().len()).saturating_sub(prefix),
            // Every operation of a batch grows by the prefix; how many there are, only the batch itself can tell.
            max_batch: if prefix == 0 { whole.max_batch } else { whole.max_batch - whole.max_batch / 4 },
            ..whole
        };
        Self {
            shared: shared.clone(),
            link: link.clone(),
            data,
            knowledge: Claim::knowledge(link),
            limits,
            lease: Mutex::new(Some(lease)),
            abandoned: AtomicU64::new(0),
            decided: AtomicU64::new(0),
            setbacks: AtomicU64::new(shared.setbacks()),
        }
    }

    /// Where its entries are, in the centre.
    pub fn target(&self) -> &Subspace {
        self.data.target()
    }

    /// What is stripped off its master's keys; the root if nothing is.
    pub fn strip(&self) -> &Subspace {
        self.data.strip()
    }

    fn place(&self, keyspace: Keyspace) -> (Keyspace, Placement) {
        match keyspace {
            Keyspace::Data => (Keyspace::Data, self.data.clone()),
            // A slave keeps no log; whoever does keeps it with what else it knows.
            Keyspace::Log => (Keyspace::Meta, self.knowledge.child("log").into()),
            Keyspace::Meta => (Keyspace::Meta, self.knowledge.child("meta").into()),
        }
    }

    fn check_open(&self) -> Result<(), StoreError> {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        lease.as_ref().map(|_| ()).ok_or(StoreError::Closed)
    }

    fn check_key(&self, key: &[u8]) -> Result<(), StoreError> {
        if key.is_empty() {
            return Err(StoreError::KeyEmpty);
        }
        let (len, max) = (key.len(), self.limits.max_key);
        if len > max { Err(StoreError::KeyTooLong { len, max }) } else { Ok(()) }
    }

    // Whoever drops a write set does not wait for what becomes of it; whoever comes next does.
    async fn ready(&self) -> Result<(), StoreError> {
        self.check_open()?;
        let abandoned = self.abandoned.load(Ordering::Acquire);
        if self.decided.load(Ordering::Acquire) < abandoned {
            self.shared.writer.all_decided().await?;
            self.decided.fetch_max(abandoned, Ordering::AcqRel);
        }
        Ok(())
    }

    // Another link's failure may have taken what this one had not synced: it looks again where it stands before it goes on.
    fn check_setbacks(&self) -> Result<(), StoreError> {
        if self.setbacks.load(Ordering::Acquire) == self.shared.setbacks() {
            return Ok(());
        }
        let reason = "the store was opened anew after another link's failure, and may have lost what was not synced";
        Err(StoreError::Fatal { reason: reason.into() })
    }

    fn placed(&self, writes: WriteSet) -> Result<WriteSet, StoreError> {
        let mut placed = WriteSet::builder();
        let meta = self.knowledge.child("meta");
        for condition in writes.preconditions() {
            placed.require(meta.key(&condition.key), condition.value.clone());
        }
        for chunk in writes.into_chunks() {
            let (keyspace, placement) = self.place(chunk.keyspace);
            placed.append(keyspace, placement.place(chunk.ops)?);
        }
        Ok(placed.build())
    }
}

/// The cursor of a link, as its centre's store holds it.
pub(super) async fn cursor<S: ReplicaStore>(store: &S, link: &LinkId) -> Result<Option<Cursor>, StoreError> {
    let key = Claim::knowledge(link).child("meta").key(meta::cursor_key(&LinkId::default()));
    let Some(bytes) = store.get(Keyspace::Meta, &key).await? else { return Ok(None) };
    let cursor = Cursor::from_bytes(&bytes);
    cursor.map(Some).ok_or_else(|| StoreError::Corrupt { what: format!("the cursor of link {link}") })
}

/// The keys of its master that a link subscribes to, as its centre's store holds them; `None` if that is every key.
pub(super) async fn ranges<S: ReplicaStore>(store: &S, link: &LinkId) -> Result<Option<KeyRanges>, StoreError> {
    let key = Claim::knowledge(link).child("meta").key(Subscription::KEY);
    let Some(bytes) = store.get(Keyspace::Meta, &key).await? else { return Ok(None) };
    Ok(Some(Subscription::from_bytes(&bytes)?.ranges))
}

#[async_trait]
impl<S: ReplicaStore> ReplicaStore for LinkStore<S> {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        self.ready().await?;
        self.check_setbacks()?;
        writes.check(&self.limits)?;
        let writes = self.placed(writes)?;
        let mut dropped = Abandoned(Some(&self.abandoned));
        let result = self.shared.writer.apply(&self.shared.store, &self.link, writes, durability).await;
        dropped.0 = None;
        self.shared.setbacks.note(&result);
        result
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.ready().await?;
        self.check_key(key)?;
        let (keyspace, placement) = self.place(keyspace);
        match placement.key(key) {
            Some(key) => self.shared.store.get(keyspace, &key).await,
            None => Ok(None),
        }
    }

    async fn get_many(&self, keyspace: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.ready().await?;
        keys.iter().try_for_each(|key| self.check_key(key))?;
        let (keyspace, placement) = self.place(keyspace);
        let placed: Vec<Option<Bytes>> = keys.iter().map(|key| placement.key(key)).collect();
        let asked: Vec<Bytes> = placed.iter().flatten().cloned().collect();
        let mut found = self.shared.store.get_many(keyspace, &asked).await?.into_iter();
        Ok(placed.iter().map(|key| key.as_ref().and_then(|_| found.next().flatten())).collect())
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        self.ready().await?;
        let (keyspace, placement) = self.place(keyspace);
        let page = self.shared.store.scan(keyspace, placement.range_of(&range), options).await?;
        Ok(placement.lift(&page, &range, options))
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.ready().await?;
        self.check_setbacks()?;
        let result = self.shared.store.sync().await;
        self.shared.setbacks.note(&result);
        result?;
        // It may have been lost before.
        self.check_setbacks()
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.ready().await?;
        self.shared.setbacks.reopening();
        let count = self.shared.setbacks();
        self.shared.store.reopen().await?;
        self.setbacks.store(count, Ordering::Release);
        Ok(())
    }

    /// Closes the link; the centre's store stays open.
    async fn close(&self) -> Result<(), StoreError> {
        // A write set that was dropped is decided before the link can be opened again.
        let ready = self.ready().await;
        drop(self.lease.lock().unwrap_or_else(PoisonError::into_inner).take());
        match ready {
            Ok(()) => self.shared.store.sync().await,
            Err(_) => Ok(()),
        }
    }

    fn limits(&self) -> StoreLimits {
        self.limits
    }

    /// The centre's, shared by the links that are open, so that a busy one does not hold up the others for long.
    fn preferred_write_set(&self) -> usize {
        const LEAST: usize = 1 << 20;
        let whole = self.shared.store.preferred_write_set();
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let links = lease.as_ref().map_or(1, Lease::open_links).max(1);
        (whole / links).max(LEAST).min(whole)
    }

    fn preferred_operations(&self) -> usize {
        self.shared.store.preferred_operations()
    }

    fn stats(&self) -> StoreStats {
        // How much the whole centre holds is nothing that a link could say of its own.
        let mut stats = self.shared.store.stats();
        stats.data_bytes = None;
        stats
    }
}

struct Abandoned<'a>(Option<&'a AtomicU64>);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(abandoned) = self.0 {
            abandoned.fetch_add(1, Ordering::AcqRel);
        }
    }
}
