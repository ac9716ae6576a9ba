//! Deriving what is not there, and removing what nobody derives any more.

use bytes::Bytes;
use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_proto::layout::Stored;
use replikv_proto::{Change, Derive, DeriveMark, DeriveRun, DeriveState, Derives};

use super::store::{MARKS, RESERVED, derive, entries_of};
use crate::OpenError;

/// How many entries are removed, or derived from, at once.
const STEP: usize = 4096;

/// Sees that `store` holds what `derives` make of its data, and nothing else that is derived.
pub(super) async fn settle<S: ReplicaStore>(store: &S, derives: &Derives) -> Result<(), OpenError> {
    let mut complete = Vec::new();
    for (key, value) in all(store, KeyRange::prefix(MARKS)).await? {
        let mark = DeriveMark::from_bytes(&value)?;
        let current = |derive: &dyn Derive| {
            derive.name() == mark.name && derive.version() == mark.version && mark.state == DeriveState::Complete
        };
        if derives.iter().any(|(derive, _)| current(derive.as_ref())) {
            complete.push(mark.name);
        } else {
            // First, so that what is half removed is not taken for whole.
            let mut writes = WriteSet::builder();
            writes.delete(Keyspace::Meta, key)?;
            store.apply(writes.build(), Durability::Synced).await?;
        }
    }
    remove_others(store, &complete).await?;
    for (derive, _) in derives.iter() {
        if !complete.iter().any(|name| name == derive.name()) {
            build(store, derive.as_ref(), &derives.only(derive.name())).await?;
        }
    }
    Ok(())
}

// Everything but marks, and what is complete.
async fn remove_others<S: ReplicaStore>(store: &S, complete: &[String]) -> Result<(), StoreError> {
    let mut kept: Vec<KeyRange> = complete.iter().map(|name| entries_of(name).range()).collect();
    kept.push(KeyRange::prefix(MARKS));
    kept.sort_by(|a, b| a.start().cmp(b.start()));
    let mut from = Bytes::from_static(RESERVED);
    let end = KeyRange::prefix(RESERVED).end().cloned();
    for kept in kept {
        remove(store, KeyRange::new(from, Some(kept.start().clone()))).await?;
        from = kept.end().cloned().unwrap_or_default();
    }
    remove(store, KeyRange::new(from, end)).await
}

async fn remove<S: ReplicaStore>(store: &S, range: KeyRange) -> Result<(), StoreError> {
    if range.is_empty() {
        return Ok(());
    }
    loop {
        let page = store.scan(Keyspace::Meta, range.clone(), ScanOptions::default().max_entries(STEP)).await?;
        if page.is_empty() {
            return Ok(());
        }
        let mut writes = WriteSet::builder();
        for (key, _) in page.iter() {
            writes.delete(Keyspace::Meta, key)?;
        }
        store.apply(writes.build(), Durability::Buffered).await?;
    }
}

async fn build<S: ReplicaStore>(store: &S, built: &dyn Derive, alone: &Derives) -> Result<(), OpenError> {
    let mut rest = Some(built.source());
    while let Some(range) = rest.take() {
        let options = ScanOptions::default().max_entries(STEP).max_bytes(4 << 20);
        let page = store.scan(Keyspace::Data, range, options).await?;
        rest = page.rest().cloned();
        let change = |(key, value)| Change { key, old: None, new: Some(value) };
        let changes: Vec<Change> = page.entries().map(change).collect();
        let mut run = DeriveRun::new(alone);
        derive(store, &mut run, &changes).await.map_err(|error| match error {
            StoreError::NotDerived { name, reason } => OpenError::Derive { name, reason },
            error => OpenError::Store(error),
        })?;
        let mut writes = WriteSet::builder();
        writes.append(Keyspace::Meta, run.into_ops()?);
        store.apply(writes.build(), Durability::Buffered).await?;
    }
    let (name, version) = (built.name().to_owned(), built.version());
    let mark = DeriveMark { name, version, state: DeriveState::Complete, epoch: (0, 0) };
    let key = [MARKS, mark.name.as_bytes()].concat();
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Meta, key, mark.to_bytes())?;
    Ok(store.apply(writes.build(), Durability::Synced).await?)
}

pub(super) async fn all<S: ReplicaStore>(store: &S, range: KeyRange) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    let (mut all, mut rest) = (Vec::new(), Some(range));
    while let Some(range) = rest.take() {
        let page = store.scan(Keyspace::Meta, range, ScanOptions::default()).await?;
        all.extend(page.entries());
        rest = page.rest().cloned();
    }
    Ok(all)
}
