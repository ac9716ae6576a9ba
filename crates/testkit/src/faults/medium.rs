//! What is on stable storage, beside what is readable.

use std::collections::BTreeMap;

use bytes::Bytes;
use replikv_core::{Durability, KeyRange, Keyspace, Op, ReplicaStore, ScanOptions, StoreError, WriteSet};

type Maps = BTreeMap<Keyspace, BTreeMap<Bytes, Bytes>>;

/// The synced image of a store, and the write sets that it has applied since.
#[derive(Debug, Default)]
pub(super) struct Medium {
    /// `None` before the first write: until then everything that is readable is taken for synced.
    synced: Option<Maps>,
    since: Vec<WriteSet>,
    in_flight: bool,
    /// An apply was dropped half way, or its outcome is unknown: what was written since the sync must be looked at.
    unsure: bool,
    /// When the store is reopened, what was not synced is gone.
    pub(super) loses: bool,
}

impl Medium {
    /// Before the store sees a write set.
    pub(super) async fn begin<S: ReplicaStore>(&mut self, store: &S) -> Result<(), StoreError> {
        if self.synced.is_none() {
            self.synced = Some(read(store).await?);
        }
        self.unsure |= self.in_flight;
        self.in_flight = true;
        Ok(())
    }

    /// The store has answered: `applied` is there, or nothing was changed.
    pub(super) fn decided(&mut self, applied: Option<WriteSet>) {
        self.since.extend(applied);
        self.in_flight = false;
    }

    /// Everything that is readable is on stable storage.
    pub(super) async fn synced<S: ReplicaStore>(&mut self, store: &S) -> Result<(), StoreError> {
        if self.unsure || self.in_flight {
            self.synced = Some(read(store).await?);
            self.since.clear();
            (self.unsure, self.in_flight) = (false, false);
        }
        if let Some(maps) = &mut self.synced {
            for writes in self.since.drain(..) {
                writes.ops().for_each(|(keyspace, op)| change(maps.entry(keyspace).or_default(), op));
            }
        }
        Ok(())
    }

    /// Makes the store hold what is on stable storage, and nothing else.
    pub(super) async fn restore<S: ReplicaStore>(&mut self, store: &S) -> Result<(), StoreError> {
        self.since.clear();
        (self.unsure, self.in_flight, self.loses) = (false, false, false);
        let Some(maps) = &self.synced else { return Ok(()) };
        let mut writes = WriteSet::builder();
        for keyspace in Keyspace::ALL {
            writes.delete_range(keyspace, &KeyRange::all());
        }
        for (keyspace, map) in maps {
            for (key, value) in map {
                writes.put(*keyspace, key, value)?;
                if writes.byte_len() > store.limits().max_batch / 4 {
                    store.apply(writes.build(), Durability::Buffered).await?;
                }
            }
        }
        store.apply(writes.build(), Durability::Synced).await
    }

    /// What is on stable storage is changed behind everybody's back.
    pub(super) fn rot(&mut self, keyspace: Keyspace, key: &[u8], value: &[u8]) {
        let stored = self.synced.as_mut().and_then(|maps| maps.get_mut(&keyspace)?.get_mut(key));
        if let Some(stored) = stored {
            *stored = Bytes::copy_from_slice(value);
        }
    }
}

async fn read<S: ReplicaStore>(store: &S) -> Result<Maps, StoreError> {
    let mut maps = Maps::new();
    for keyspace in Keyspace::ALL {
        let mut rest = Some(KeyRange::all());
        while let Some(range) = rest {
            let page = store.scan(keyspace, range, ScanOptions::default()).await?;
            maps.entry(keyspace).or_default().extend(page.entries());
            rest = page.rest().cloned();
        }
    }
    Ok(maps)
}

fn change(map: &mut BTreeMap<Bytes, Bytes>, op: Op<'_>) {
    match op {
        Op::Put { key, value } => drop(map.insert(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value))),
        Op::Delete { key } => drop(map.remove(key)),
        Op::DeleteRange { start, end } => {
            let range = KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice));
            map.retain(|key, _| !range.contains(key));
        }
    }
}
