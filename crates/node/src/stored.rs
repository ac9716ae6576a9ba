//! Reading and writing what `Meta` holds.

use bytes::Bytes;
use replikv_core::{Durability, KeyRange, Keyspace, Position, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_proto::layout::{Checkpoint, Identity, Stored};

use crate::derive::MARKS;

pub(crate) async fn read<S: ReplicaStore, V: Stored>(store: &S, key: &[u8]) -> Result<Option<V>, StoreError> {
    match store.get(Keyspace::Meta, key).await? {
        Some(bytes) => V::from_bytes(&bytes).map(Some),
        None => Ok(None),
    }
}

/// As [`read`], for what must be there.
pub(crate) async fn require<S: ReplicaStore, V: Stored>(store: &S, key: &[u8]) -> Result<V, StoreError> {
    let missing = || StoreError::Corrupt { what: format!("{} is missing", V::WHAT) };
    read(store, key).await?.ok_or_else(missing)
}

/// The values of keys, each with its key. One that no store of this kind could hold is not there: whoever writes it is
/// refused for it.
pub(crate) async fn look_up<S: ReplicaStore>(
    store: &S,
    keyspace: Keyspace,
    keys: Vec<Bytes>,
) -> Result<Vec<(Bytes, Option<Bytes>)>, StoreError> {
    let unfit = |error: &StoreError| {
        matches!(error, StoreError::KeyEmpty | StoreError::KeyTooLong { .. } | StoreError::KeyUnfit { .. })
    };
    match store.get_many(keyspace, &keys).await {
        Ok(values) => return Ok(keys.into_iter().zip(values).collect()),
        Err(error) if !unfit(&error) => return Err(error),
        Err(_) => {}
    }
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        let value = match store.get(keyspace, &key).await {
            Err(error) if unfit(&error) => None,
            found => found?,
        };
        values.push((key, value));
    }
    Ok(values)
}

/// What a store is for, if it was ever opened as a master or a slave.
///
/// # Errors
/// `NewerFormat` if a newer program wrote it.
pub async fn role<S: ReplicaStore>(store: &S) -> Result<Option<replikv_proto::layout::Role>, StoreError> {
    let identity: Option<Identity> = read(store, Identity::KEY).await?;
    Ok(identity.map(|identity| identity.role))
}

/// Whoever opens a store without what it derives leaves that behind: its marks go, and it is derived anew one day. A store
/// that derives shows none of its marks.
pub(crate) async fn derives_nothing<S: ReplicaStore>(store: &S) -> Result<(), StoreError> {
    let marks = KeyRange::prefix(MARKS);
    let page = store.scan(Keyspace::Meta, marks.clone(), ScanOptions::default().max_entries(1)).await?;
    if page.is_empty() {
        return Ok(());
    }
    let mut writes = WriteSet::builder();
    writes.delete_range(Keyspace::Meta, &marks);
    store.apply(writes.build(), Durability::Synced).await
}

/// Gives an identity to a store that has none.
pub(crate) async fn write_identity<S: ReplicaStore>(store: &S, identity: &Identity) -> Result<(), StoreError> {
    let mut writes = WriteSet::builder();
    writes.require(Identity::KEY, None);
    writes.put(Keyspace::Meta, Identity::KEY, identity.to_bytes())?;
    store.apply(writes.build(), Durability::Synced).await
}

/// The newest checkpoints, oldest first.
pub(crate) async fn checkpoints<S: ReplicaStore>(store: &S, newest: usize) -> Result<Vec<Checkpoint>, StoreError> {
    let mut found = Vec::new();
    let mut rest = Some(KeyRange::prefix(Checkpoint::PREFIX));
    while let Some(range) = rest.take().filter(|_| found.len() < newest) {
        let options = ScanOptions::default().max_entries(newest - found.len()).reversed();
        let page = store.scan(Keyspace::Meta, range, options).await?;
        for (_, value) in page.iter() {
            found.push(Checkpoint::from_bytes(value)?);
        }
        rest = page.rest().cloned();
    }
    found.reverse();
    Ok(found)
}

pub(crate) async fn checkpoint_positions<S: ReplicaStore>(
    store: &S,
    newest: usize,
) -> Result<Vec<Position>, StoreError> {
    Ok(checkpoints(store, newest).await?.iter().map(|checkpoint| checkpoint.position).collect())
}
