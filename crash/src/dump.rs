//! A memory store as a file, so that the same master can be met again in another process.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use bytes::{Buf, BufMut, Bytes};
use futures_util::TryStreamExt;
use replikv::{Durability, KeyRange, Keyspace, MemoryStore, ReplicaStore, ReplicaStoreExt, ScanOptions, WriteSet};

use crate::history::Content;

/// Everything that a store holds in a keyspace.
pub(crate) async fn content<S: ReplicaStore + ?Sized>(store: &S, keyspace: Keyspace) -> Result<Content> {
    let options = ScanOptions::default().max_entries(10_000).max_bytes(8 << 20);
    Ok(store.entries(keyspace, KeyRange::all(), options).try_collect().await?)
}

/// A store that holds `data`.
pub(crate) async fn of(data: &Content) -> Result<MemoryStore> {
    let store = MemoryStore::new();
    let mut writes = WriteSet::builder();
    for (key, value) in data {
        writes.put(Keyspace::Data, key, value)?;
    }
    store.apply(writes.build(), Durability::Buffered).await?;
    Ok(store)
}

pub(crate) async fn save(store: &MemoryStore, path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    for (number, keyspace) in (0u8..).zip(Keyspace::ALL) {
        for (key, value) in content(store, keyspace).await? {
            bytes.put_u8(number);
            for part in [key, value] {
                bytes.put_u32_le(u32::try_from(part.len())?);
                bytes.put_slice(&part);
            }
        }
    }
    std::fs::write(path, bytes).with_context(|| format!("{} cannot be written", path.display()))
}

pub(crate) async fn load(path: &Path) -> Result<MemoryStore> {
    let mut rest = Bytes::from(std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?);
    let part = |rest: &mut Bytes| -> Result<Bytes> {
        ensure!(rest.len() >= 4, "the dump is cut");
        let len = usize::try_from(rest.get_u32_le())?;
        ensure!(rest.len() >= len, "the dump is cut");
        Ok(rest.split_to(len))
    };
    let mut writes = WriteSet::builder();
    while rest.has_remaining() {
        let keyspace = Keyspace::ALL.get(usize::from(rest.get_u8())).copied().context("a keyspace")?;
        let (key, value) = (part(&mut rest)?, part(&mut rest)?);
        writes.put(keyspace, key, value)?;
    }
    let store = MemoryStore::new();
    store.apply(writes.build(), Durability::Buffered).await?;
    Ok(store)
}
