//! Backups: a copy of a store in another one, taken while the first one is used.
//!
//! Pages of a store are of different instants. A master's log mends that: pages that were read while writes went on, and
//! then the records from before the first page to after the last, in order, make exactly the state after the last record.
//! That is how slaves copy, too. A slave's store has no log, so it must stand still meanwhile; an LMDB environment is
//! copied at one instant by `LmdbStore::copy_to`, whatever is in it.
//!
//! A backup says in its `Meta` what it is: two masters with one identity would write two histories under one name.

use futures_util::TryStreamExt;
use replikv_core::{
    Durability, KeyRange, Keyspace, Op, Page, Position, ReplicaStore, ReplicaStoreExt, ScanOptions, Seq, StoreError,
    WriteSet, meta,
};
use replikv_proto::layout::{Backup, Floor, Head, Identity, Kept, Role, Stored};
use replikv_proto::{Compacted, Indexed, Record, RecordError, SlotName, TombstoneFloor};

use crate::clock::unix_ms;
use crate::derive::RESERVED;
use crate::{Master, stored};

/// Why a backup was not taken. What there is of it says that it is none: remove it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store was never a master's or a slave's. Open it as what it is first; of other data, make a copy.
    #[error("the store is no master's and no slave's")]
    NoRole,
    /// It goes where nothing is.
    #[error("the destination is not empty")]
    NotEmpty,
    /// The store was written to while it was copied, and there is no log that tells how. Try again while it stands still.
    #[error("the store changed while it was copied")]
    Changed,
    /// The log was trimmed while the data was copied: it no longer tells what changed meanwhile. Try again, or keep more
    /// log.
    #[error("the log was trimmed past what was copied")]
    Trimmed,
    /// A record of the log is damaged.
    #[error("record {seq} of the log")]
    Record {
        /// Its number.
        seq: Seq,
        /// What is wrong with it.
        source: RecordError,
    },
    /// One of the two stores failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackedUp {
    /// Whether of a master or of a slave.
    pub role: Role,
    /// The last record in it; `None` for a slave that never followed.
    pub position: Option<Position>,
}

/// Copies `store` into `destination`, which is empty, and marks the copy as a backup. `progress` is told how many entries
/// and records were copied so far.
///
/// `store` may be a master's that is written to meanwhile, here or, where a backend can be read beside a process that has
/// it open, elsewhere. A slave's must stand still: stop it, or copy an LMDB environment as a whole.
///
/// # Durability
/// On return the backup is on stable storage, and is marked as complete. What an error or a crash leaves is marked as
/// incomplete, and opens as nothing.
///
/// # Cancel safety
/// If dropped, an incomplete backup is left.
///
/// # Errors
/// [`BackupError`].
pub async fn backup<S: ReplicaStore, D: ReplicaStore>(
    store: &S,
    destination: &D,
    mut progress: impl FnMut(u64) + Send,
) -> Result<BackedUp, BackupError> {
    let identity: Identity = stored::read(store, Identity::KEY).await?.ok_or(BackupError::NoRole)?;
    for keyspace in Keyspace::ALL {
        if !destination.is_keyspace_empty(keyspace).await? {
            return Err(BackupError::NotEmpty);
        }
    }
    // Data without an identity could be taken for somebody's own: it has the mark before it has any.
    mark(destination, None).await?;
    let mut copy = Copy { store, destination, copied: 0, progress: &mut progress };
    let position = match identity.role {
        Role::Master => Some(copy.master().await?.position),
        _ => copy.slave().await?,
    };
    destination.sync().await?;
    mark(destination, Some(unix_ms())).await?;
    Ok(BackedUp { role: identity.role, position })
}

/// Marks a store that was copied by other means as a backup: whoever opens it must say as what. Returns what it holds.
///
/// # Errors
/// [`BackupError`].
pub async fn mark_backup<S: ReplicaStore>(store: &S) -> Result<BackedUp, BackupError> {
    let identity: Identity = stored::read(store, Identity::KEY).await?.ok_or(BackupError::NoRole)?;
    mark(store, Some(unix_ms())).await?;
    let position = match identity.role {
        Role::Master => Some(stored::require::<S, Head>(store, Head::KEY).await?.position),
        _ => {
            let first = store.first(Keyspace::Meta, KeyRange::prefix(meta::CURSOR_PREFIX)).await?;
            first.and_then(|(_, cursor)| replikv_core::Cursor::from_bytes(&cursor)).map(|cursor| cursor.position)
        }
    };
    Ok(BackedUp { role: identity.role, position })
}

impl<S: ReplicaStore> Master<S> {
    /// Copies the master's store into `destination`, while writes go on, as [`backup`] does: what is published when this
    /// returns is in it, and nothing that is not. The log is kept meanwhile, up to the cap of
    /// [`MasterConfig::retention`](crate::MasterConfig::retention).
    ///
    /// # Cancel safety
    /// If dropped, an incomplete backup is left.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn backup<D: ReplicaStore>(
        &self,
        destination: &D,
        progress: impl FnMut(u64) + Send,
    ) -> Result<BackedUp, BackupError> {
        let _held = self.inner().hold_log();
        let backed_up = backup(self.store(), destination, progress).await?;
        let Some(position) = backed_up.position else { return Ok(backed_up) };
        // It may hold what is readable, and not durable yet: that may still come to nothing.
        if self.subscribe().reached(position.seq).await.is_err()
            || self.inner().position_at(position.seq).await?.is_some_and(|published| published != position)
        {
            mark(destination, None).await?;
            return Err(BackupError::Changed);
        }
        Ok(backed_up)
    }
}

async fn mark<D: ReplicaStore>(store: &D, taken_unix_ms: Option<u64>) -> Result<(), StoreError> {
    let mut writes = WriteSet::builder();
    writes.put(Keyspace::Meta, Backup::KEY, Backup { taken_unix_ms }.to_bytes())?;
    store.apply(writes.build(), Durability::Synced).await
}

// The mark is the destination's own, what is said of compacted records goes with these, and what a store derives for itself
// may be of another moment than the data: it is derived anew.
fn is_copied(key: &[u8]) -> bool {
    let left = [Head::KEY, Floor::KEY, Backup::KEY, Compacted::KEY, TombstoneFloor::KEY];
    !left.contains(&key) && !key.starts_with(Indexed::PREFIX) && !key.starts_with(RESERVED)
}

/// How much is read at once.
const PAGE_BYTES: usize = 1 << 20;
/// How often a copy that was overtaken begins again with its log, or its cursor.
const ATTEMPTS: u32 = 3;

struct Copy<'a, S, D> {
    store: &'a S,
    destination: &'a D,
    copied: u64,
    progress: &'a mut (dyn FnMut(u64) + Send),
}

impl<S: ReplicaStore, D: ReplicaStore> Copy<'_, S, D> {
    async fn master(&mut self) -> Result<Head, BackupError> {
        let before: Head = stored::require(self.store, Head::KEY).await?;
        self.data().await?;
        for _ in 0..ATTEMPTS {
            // Everything that `Meta` says of records is said of those up to the head that is read after it.
            let said = self.meta().await?;
            let head: Head = stored::require(self.store, Head::KEY).await?;
            let floor = self.floor(&said)?;
            if floor.position.seq > before.position.seq {
                return Err(BackupError::Trimmed);
            }
            if self.log(floor.position, before.position.seq, head.position).await? {
                let mut writes = WriteSet::builder();
                for (key, value) in said.iter().filter(|(key, _)| is_copied(key)) {
                    writes.put(Keyspace::Meta, key, value)?;
                }
                writes.put(Keyspace::Meta, Floor::KEY, floor.to_bytes())?;
                writes.put(Keyspace::Meta, Head::KEY, head.to_bytes())?;
                self.destination.apply(writes.build(), Durability::Buffered).await?;
                return Ok(head);
            }
            // What it begins with has been trimmed meanwhile. The data is what it is: it is brought up to date again.
            let mut writes = WriteSet::builder();
            writes.delete_range(Keyspace::Log, &KeyRange::all());
            self.destination.apply(writes.build(), Durability::Buffered).await?;
        }
        Err(BackupError::Trimmed)
    }

    async fn slave(&mut self) -> Result<Option<Position>, BackupError> {
        for _ in 0..ATTEMPTS {
            let before = self.meta_of_slave().await?;
            self.data().await?;
            if self.meta_of_slave().await? == before {
                let mut writes = WriteSet::builder();
                for (key, value) in before.iter().filter(|(key, _)| !key.starts_with(RESERVED)) {
                    writes.put(Keyspace::Meta, key, value)?;
                }
                self.destination.apply(writes.build(), Durability::Buffered).await?;
                let cursor = before.iter().find(|(key, _)| key.starts_with(meta::CURSOR_PREFIX));
                let cursor = cursor.and_then(|(_, value)| replikv_core::Cursor::from_bytes(value));
                return Ok(cursor.map(|cursor| cursor.position));
            }
            let mut writes = WriteSet::builder();
            writes.delete_range(Keyspace::Data, &KeyRange::all());
            self.destination.apply(writes.build(), Durability::Buffered).await?;
        }
        Err(BackupError::Changed)
    }

    async fn meta(&mut self) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, StoreError> {
        self.store.entries(Keyspace::Meta, KeyRange::all(), ScanOptions::default()).try_collect().await
    }

    // Without the log that it may keep, and what is known of that.
    async fn meta_of_slave(&mut self) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, StoreError> {
        let mut all = self.meta().await?;
        all.retain(|(key, _)| is_copied(key) && key[..] != *Kept::KEY && !key.starts_with(SlotName::PREFIX));
        Ok(all)
    }

    // The records begin after it. What is compacted before them is left out.
    fn floor(&self, said: &[(bytes::Bytes, bytes::Bytes)]) -> Result<Floor, StoreError> {
        let find = |key: &[u8]| said.iter().find(|(found, _)| found[..] == *key).map(|(_, bytes)| bytes);
        let missing = || StoreError::Corrupt { what: format!("{} is missing", Floor::WHAT) };
        let floor = Floor::from_bytes(find(Floor::KEY).ok_or_else(missing)?)?;
        let compacted = find(Compacted::KEY).map(|bytes| Compacted::from_bytes(bytes)).transpose()?;
        let compacted = compacted.map(|Compacted { position, log_bytes, .. }| Floor { position, log_bytes });
        Ok(compacted.filter(|compacted| compacted.position.seq > floor.position.seq).unwrap_or(floor))
    }

    async fn data(&mut self) -> Result<(), StoreError> {
        let mut rest = Some(KeyRange::all());
        while let Some(range) = rest.take() {
            let page = self.page(Keyspace::Data, range).await?;
            let mut writes = WriteSet::builder();
            writes.append(Keyspace::Data, page.ops().clone());
            self.put(writes, page.len()).await?;
            rest = page.rest().cloned();
        }
        Ok(())
    }

    // Copies the records after `floor` up to `head`, and does to the data what those after `before` do. False if the log
    // no longer begins after `floor`.
    async fn log(&mut self, floor: Position, before: Seq, head: Position) -> Result<bool, BackupError> {
        let mut last = floor;
        while last.seq < head.seq {
            // Not from behind the key of the last one: touches of a run come after the run.
            let next = last.seq.next().unwrap_or(last.seq).to_key();
            let range = KeyRange::from_bounds(next..).intersect(&KeyRange::from_bounds(..=head.seq.to_key()));
            let page = self.page(Keyspace::Log, range).await?;
            if page.is_empty() {
                return Ok(false);
            }
            let mut writes = WriteSet::builder();
            for (key, value) in page.entries() {
                let seq = Seq::from_key(&key).unwrap_or_default();
                if last.seq.next() != Some(seq) {
                    return Ok(false);
                }
                let broken = |source| BackupError::Record { seq, source };
                let record = Record::decode(value).map_err(broken)?;
                record.header().verify_after(&last).map_err(broken)?;
                last = record.position();
                writes.push(Keyspace::Log, Op::Put { key: &key, value: record.bytes() })?;
                if seq > before {
                    writes.append(Keyspace::Data, record.body().clone());
                }
            }
            self.put(writes, page.len()).await?;
        }
        Ok(last == head)
    }

    async fn page(&mut self, keyspace: Keyspace, range: KeyRange) -> Result<Page, StoreError> {
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(PAGE_BYTES);
        self.store.scan(keyspace, range, options).await
    }

    async fn put(&mut self, mut writes: replikv_core::WriteSetBuilder, entries: usize) -> Result<(), StoreError> {
        self.destination.apply(writes.build(), Durability::Buffered).await?;
        self.copied += entries as u64;
        (self.progress)(self.copied);
        Ok(())
    }
}
