//! A store around another one, that derives.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use replikv_core::{
    Chunk, Durability, EncodedOps, KeyRange, Keyspace, Op, Page, PageBuilder, ReplicaStore, ScanOptions, StoreError,
    StoreLimits, StoreStats, Subspace, WriteSet,
};
use replikv_proto::{Derive, DeriveRun, Derives, Stopped};
use tokio::sync::RwLock;

use super::changed::Changed;
use crate::{OpenError, stored};

/// What the keys of `Meta` begin with under which everything derived lies.
pub(crate) const RESERVED: &[u8] = b"derived/";
/// Those of the marks, one of each derive.
pub(crate) const MARKS: &[u8] = b"derived/mark/";

/// A store around another one that writes, in the very transaction of each write set, what follows from it.
///
/// A slave on it ([`Slave::open`](crate::Slave::open)), a centre ([`Centre::open`](crate::Centre::open)) and their
/// links write through it like into any store, and whatever way an entry comes or goes, by a batch, a copied or compared
/// range, a repair, a range delete, by undoing a link, what is derived goes with it. In each write set a [`Derive`] sees what
/// changes on the whole, key by key in order, with the value before and after.
///
/// What is derived lies in `Meta`, under a prefix that those who use the store see nothing of: it is no part of the data,
/// is not replicated, compared, counted or wiped with it, and no master's key can be in its way. Read it with an
/// [`Aggregate`](crate::Aggregate), or as a [`DerivedReader`](super::DerivedReader).
///
/// It keeps every law of a store. Nothing may write to the inner store past it; when a store was opened without it, and as a
/// slave's, a master's or a centre's, the next one derives everything anew.
///
/// # Cost
/// Each write set reads the old value of every key that it changes, and all that is in the ranges that it deletes, of what a
/// derive is asked about; what is deleted is read in pages, what is derived is held in memory until the write set is
/// committed. Write sets wait for one another, and a quarter of the largest that the inner store takes is kept free for what
/// follows.
///
/// Clones are one store.
#[derive(Debug)]
pub struct DerivedStore<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for DerivedStore<S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

#[derive(Debug)]
struct Shared<S> {
    inner: S,
    derives: Derives,
    /// Held by whoever changes the store: between what it has read and what it writes nobody else writes.
    turn: RwLock<()>,
}

/// What a store is to derive.
#[derive(Debug)]
pub struct DerivedStoreBuilder<S> {
    inner: S,
    derives: Derives,
}

impl<S: ReplicaStore> DerivedStoreBuilder<S> {
    /// Adds a derive.
    #[must_use]
    pub fn derive(mut self, derive: impl Derive) -> Self {
        let target = entries_of(derive.name());
        self.derives.push(target, Arc::new(derive));
        self
    }

    /// Opens the store. What is not there yet, was derived by another version, or was left alone while others wrote, is
    /// derived anew from all entries first; what is not derived any more is removed. A crash meanwhile costs beginning
    /// again.
    ///
    /// # Errors
    /// [`OpenError::Derive`] if names are not apart, or something cannot be derived; what the store reports.
    pub async fn open(self) -> Result<DerivedStore<S>, OpenError> {
        let Self { inner, derives } = self;
        derives.check().map_err(|(name, reason)| OpenError::Derive { name, reason })?;
        super::build::settle(&inner, &derives).await?;
        Ok(DerivedStore { shared: Arc::new(Shared { inner, derives, turn: RwLock::new(()) }) })
    }
}

/// Where the entries of a derive go.
pub(super) fn entries_of(name: &str) -> Subspace {
    Subspace::raw(RESERVED).child("of").child(name)
}

impl<S: ReplicaStore> DerivedStore<S> {
    /// Begins with nothing to derive.
    pub fn builder(inner: S) -> DerivedStoreBuilder<S> {
        DerivedStoreBuilder { inner, derives: Derives::default() }
    }

    /// The store inside. Reading it is fine; what is written to it is not derived from.
    pub fn inner(&self) -> &S {
        &self.shared.inner
    }

    pub(super) fn derives(&self) -> &Derives {
        &self.shared.derives
    }

    // What follows from the write set, in `Meta`.
    async fn derived(&self, writes: &WriteSet) -> Result<EncodedOps, StoreError> {
        let mut run = DeriveRun::new(&self.shared.derives);
        let mut changed = Changed::new(&self.shared.inner, &self.shared.derives, writes);
        while let Some(changes) = changed.next().await? {
            derive(&self.shared.inner, &mut run, &changes).await?;
        }
        run.into_ops()
    }
}

/// Runs derives over `changes`, and reads what they want.
pub(super) async fn derive<S: ReplicaStore>(
    store: &S,
    run: &mut DeriveRun<'_>,
    changes: &[replikv_proto::Change],
) -> Result<(), StoreError> {
    loop {
        let wants = match run.derive(changes) {
            Ok(()) => return Ok(()),
            Err(Stopped::Unread(wants)) => wants,
            Err(Stopped::Refused { name, reason }) => return Err(StoreError::NotDerived { name, reason }),
        };
        run.fetched(stored::look_up(store, Keyspace::Meta, wants.keys.into_iter().collect()).await?);
        for range in wants.ranges {
            let (mut entries, mut rest) = (Vec::new(), Some(range.clone()));
            while let Some(part) = rest.take() {
                let options = ScanOptions::default().max_entries(usize::MAX);
                let page = store.scan(Keyspace::Meta, part, options).await?;
                entries.extend(page.entries());
                rest = page.rest().cloned();
            }
            run.fetched_range(range, entries);
        }
    }
}

fn reserved() -> KeyRange {
    KeyRange::prefix(RESERVED)
}

/// What of `range` lies before and after what is reserved; empty where there is nothing.
fn around(range: &KeyRange) -> [KeyRange; 2] {
    let reserved = reserved();
    let below = range.intersect(&KeyRange::new(Bytes::new(), Some(reserved.start().clone())));
    let above = reserved.end().map_or_else(KeyRange::empty, |end| range.intersect(&KeyRange::new(end.clone(), None)));
    [below, above]
}

fn meets(range: &KeyRange) -> bool {
    !range.is_empty() && !range.intersect(&reserved()).is_empty()
}

// Nobody above writes where nothing is seen of what is derived.
fn spared(ops: &EncodedOps) -> Result<Option<EncodedOps>, StoreError> {
    let touches = |op: Op<'_>| match op {
        Op::Put { key, .. } | Op::Delete { key } => key.starts_with(RESERVED),
        Op::DeleteRange { start, end } => {
            meets(&KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice)))
        }
    };
    if !ops.iter().any(touches) {
        return Ok(None);
    }
    let mut kept = bytes::BytesMut::new();
    for op in ops {
        match op {
            Op::DeleteRange { start, end } => {
                let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
                for part in around(&range).iter().filter(|part| !part.is_empty()) {
                    Op::delete_range(part).encode_into(&mut kept);
                }
            }
            // It is not there for whoever deletes it.
            Op::Delete { key } if key.starts_with(RESERVED) => {}
            Op::Put { key, .. } if key.starts_with(RESERVED) => {
                let reason = "such keys belong to what is derived".into();
                return Err(StoreError::KeyUnfit { table: Keyspace::Meta.name().into(), reason });
            }
            op => op.encode_into(&mut kept),
        }
    }
    EncodedOps::from_bytes(kept.freeze()).map(Some).map_err(StoreError::backend)
}

#[async_trait]
impl<S: ReplicaStore> ReplicaStore for DerivedStore<S> {
    async fn apply(&self, writes: WriteSet, durability: Durability) -> Result<(), StoreError> {
        writes.check(&self.limits())?;
        let _turn = self.shared.turn.write().await;
        let of = |keyspace| writes.chunks().iter().filter(move |chunk: &&Chunk| chunk.keyspace == keyspace);
        let mut spares = false;
        for chunk in of(Keyspace::Meta) {
            spares |= spared(&chunk.ops)?.is_some();
        }
        let derived = match of(Keyspace::Data).next() {
            Some(_) if !self.shared.derives.is_empty() => self.derived(&writes).await?,
            _ => EncodedOps::default(),
        };
        if derived.is_empty() && !spares {
            return self.shared.inner.apply(writes, durability).await;
        }
        let mut all = WriteSet::builder();
        for condition in writes.preconditions() {
            all.require(condition.key.clone(), condition.value.clone());
        }
        for Chunk { keyspace, ops } in writes.into_chunks() {
            let ops = if keyspace == Keyspace::Meta { spared(&ops)?.unwrap_or(ops) } else { ops };
            all.append(keyspace, ops);
        }
        all.append(Keyspace::Meta, derived);
        let all = all.build();
        let len = all.byte_len();
        let limits = self.shared.inner.limits();
        if let Err(error) = all.check(&limits) {
            let names: Vec<&str> = self.shared.derives.iter().map(|(derive, _)| derive.name()).collect();
            let reason = format!("{error}, with what follows ({len} bytes)");
            return Err(StoreError::NotDerived { name: names.join(", "), reason });
        }
        self.shared.inner.apply(all, durability).await
    }

    async fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if keyspace == Keyspace::Meta && key.starts_with(RESERVED) {
            return Ok(None);
        }
        self.shared.inner.get(keyspace, key).await
    }

    async fn get_many(&self, keyspace: Keyspace, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut values = self.shared.inner.get_many(keyspace, keys).await?;
        if keyspace == Keyspace::Meta {
            let reserved = keys.iter().zip(&mut values).filter(|(key, _)| key.starts_with(RESERVED));
            reserved.for_each(|(_, value)| *value = None);
        }
        Ok(values)
    }

    async fn scan(&self, keyspace: Keyspace, range: KeyRange, options: ScanOptions) -> Result<Page, StoreError> {
        if keyspace != Keyspace::Meta || !meets(&range) {
            return self.shared.inner.scan(keyspace, range, options).await;
        }
        // Of one instant: nobody writes meanwhile.
        let _turn = self.shared.turn.read().await;
        let mut page = PageBuilder::new(range.clone(), options);
        let mut parts = around(&range);
        if options.reverse {
            parts.reverse();
        }
        for part in parts {
            let mut rest = Some(part).filter(|part| !part.is_empty());
            while let Some(range) = rest.take() {
                let found = self.shared.inner.scan(keyspace, range, options).await?;
                if found.iter().any(|(key, value)| page.push(key, value).is_full()) {
                    return Ok(page.finish());
                }
                rest = found.rest().cloned();
            }
        }
        Ok(page.finish())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.shared.inner.sync().await
    }

    async fn reopen(&self) -> Result<(), StoreError> {
        self.shared.inner.reopen().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shared.inner.close().await
    }

    fn limits(&self) -> StoreLimits {
        let holds = self.shared.inner.limits();
        StoreLimits { max_batch: holds.max_batch - holds.max_batch / 4, ..holds }
    }

    fn preferred_write_set(&self) -> usize {
        self.shared.inner.preferred_write_set()
    }

    fn preferred_operations(&self) -> usize {
        self.shared.inner.preferred_operations()
    }

    fn stats(&self) -> StoreStats {
        self.shared.inner.stats()
    }
}
