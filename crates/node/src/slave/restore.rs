//! Opening a backup as a slave's store.

use replikv_core::{Cursor, Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_proto::SlotName;
use replikv_proto::layout::{Backup, Epochs, Floor, Head, Identity, Role, Stored};

use super::SlaveConfig;
use crate::{OpenError, stored};

/// What the store says it is, once it is no backup any more.
pub(super) async fn identity<S: ReplicaStore>(store: &S, config: &SlaveConfig) -> Result<Option<Identity>, OpenError> {
    let identity: Option<Identity> = stored::read(store, Identity::KEY).await?;
    let Some(backup) = stored::read::<S, Backup>(store, Backup::KEY).await? else { return Ok(identity) };
    if backup.taken_unix_ms.is_none() {
        return Err(OpenError::UnfinishedBackup);
    }
    match identity {
        Some(Identity { role: Role::Master, .. }) if config.from_backup => {
            become_slave(store, config).await?;
            Ok(Some(Identity::slave()))
        }
        Some(Identity { role: Role::Master, .. }) => Err(OpenError::Backup),
        // A copy of a slave goes on under a name of its own, and that is all there is to say.
        other => {
            let mut writes = WriteSet::builder();
            writes.delete(Keyspace::Meta, Backup::KEY)?;
            store.apply(writes.build(), Durability::Synced).await?;
            Ok(other)
        }
    }
}

/// How many records go in one step.
const STEP: usize = 4096;

// It stands where the master stood: the checkpoints are the history's, and stay. Until the last step it is a backup of a
// master still, so that whoever dies on the way begins again.
async fn become_slave<S: ReplicaStore>(store: &S, config: &SlaveConfig) -> Result<(), StoreError> {
    let head: Head = stored::require(store, Head::KEY).await?;
    loop {
        let options = ScanOptions::default().max_entries(STEP);
        let page = store.scan(Keyspace::Log, KeyRange::all(), options).await?;
        if page.is_empty() {
            break;
        }
        let mut writes = WriteSet::builder();
        for (key, _) in page.iter() {
            writes.delete(Keyspace::Log, key)?;
        }
        store.apply(writes.build(), Durability::Buffered).await?;
    }
    let mut writes = WriteSet::builder();
    writes.require(Head::KEY, Some(head.to_bytes()));
    for key in [Head::KEY, Floor::KEY, Epochs::KEY, Backup::KEY] {
        writes.delete(Keyspace::Meta, key)?;
    }
    writes.delete_range(Keyspace::Meta, &KeyRange::prefix(SlotName::PREFIX));
    writes.put(Keyspace::Meta, Identity::KEY, Identity::slave().to_bytes())?;
    writes.set_cursor(&config.link, &Cursor::at(head.position));
    store.apply(writes.build(), Durability::Synced).await
}
