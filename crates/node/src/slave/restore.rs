//! Opening a backup, or the store of a master whose time is over, as a slave's.

use replikv_core::{Durability, KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError, WriteSet};
use replikv_proto::layout::{Backup, Head, Identity, Role, Stored};
use replikv_proto::{Fence, Indexed, step_down};

use super::SlaveConfig;
use crate::{OpenError, stored};

/// What the store says it is, once it is no backup any more.
pub(super) async fn identity<S: ReplicaStore>(store: &S, config: &SlaveConfig) -> Result<Option<Identity>, OpenError> {
    let identity: Option<Identity> = stored::read(store, Identity::KEY).await?;
    let Some(backup) = stored::read::<S, Backup>(store, Backup::KEY).await? else {
        return match identity {
            Some(Identity { role: Role::Master, .. }) if config.rejoin => {
                become_slave(store, config).await?;
                Ok(Some(Identity::slave()))
            }
            other => Ok(other),
        };
    };
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
            // It keeps the promise, and is not the one that may begin the epoch.
            if let Some(fence) = stored::read::<S, Fence>(store, Fence::KEY).await? {
                writes.put(Keyspace::Meta, Fence::KEY, fence.of_copy().to_bytes())?;
            }
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
    for (keyspace, range) in [(Keyspace::Log, KeyRange::all()), (Keyspace::Meta, KeyRange::prefix(Indexed::PREFIX))] {
        loop {
            let options = ScanOptions::default().max_entries(STEP);
            let page = store.scan(keyspace, range.clone(), options).await?;
            if page.is_empty() {
                break;
            }
            let mut writes = WriteSet::builder();
            for (key, _) in page.iter() {
                writes.delete(keyspace, key)?;
            }
            store.apply(writes.build(), Durability::Buffered).await?;
        }
    }
    store.apply(step_down(&head, &config.link)?, Durability::Synced).await
}
