//! Opening a store as a master's: a new history, or one to go on with.

use bytes::BytesMut;
use replikv_core::{
    Durability, EncodedOps, Epoch, Keyspace, Position, ReplicaStore, ReplicaStoreExt, Seq, SourceId, StoreError,
    StoreLimits, WriteSet, WriteSetBuilder,
};
use replikv_proto::layout::{Backup, Checkpoint, Epochs, Floor, Head, Identity, Role, Stored, Superseded};
use replikv_proto::{
    Compacted, EpochStart, LogParts, PreparedRecord, RecordDraft, RecordKind, Slots, TombstoneFloor, epoch_after,
    next_epoch, origin,
};

use super::MasterConfig;
use super::slots::SlotBook;
use crate::clock::unix_ms;
use crate::{OpenError, stored};

/// What a master's store says of itself.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) source: SourceId,
    pub(super) head: Head,
    pub(super) parts: LogParts,
    pub(super) epochs: Vec<EpochStart>,
    pub(super) checkpoints: Vec<Checkpoint>,
    pub(super) slots: Slots,
    pub(super) limits: StoreLimits,
}

/// As many checkpoints as a store ever keeps.
const ALL_CHECKPOINTS: usize = 8 * Checkpoint::KEEP as usize;
/// Room in a write set for what travels beside the operations.
const OVERHEAD: usize = 64 << 10;

pub(super) async fn open<S: ReplicaStore>(store: &S, config: &MasterConfig) -> Result<Opened, OpenError> {
    let limits = limits(store, config)?;
    let backup: Option<Backup> = stored::read(store, Backup::KEY).await?;
    if backup.is_some_and(|backup| backup.taken_unix_ms.is_none()) {
        return Err(OpenError::UnfinishedBackup);
    }
    match stored::read::<S, Identity>(store, Identity::KEY).await? {
        Some(Identity { role: Role::Master, source: Some(_) }) => {}
        Some(Identity { role: Role::Master, .. }) => {
            return Err(StoreError::Corrupt { what: "a master without a source".into() }.into());
        }
        // It was a centre, and becomes a master as well.
        Some(before @ Identity { role: Role::Centre, .. }) if config.gathers => begin(store, Some(before)).await?,
        Some(Identity { role, .. }) => return Err(OpenError::Role { found: role, wanted: Role::Master }),
        None => begin(store, None).await?,
    }
    if let Some(mark) = stored::read::<S, Superseded>(store, Superseded::KEY).await? {
        return Err(OpenError::Superseded { mark });
    }
    if config.new_epoch {
        begin_epoch(store).await?;
    } else if backup.is_some() {
        return Err(OpenError::Backup);
    }
    let head: Head = stored::require(store, Head::KEY).await?;
    let epochs: Epochs = stored::require(store, Epochs::KEY).await?;
    Ok(Opened {
        source: head.position.source,
        head,
        parts: log_parts(store).await?,
        epochs: epochs.0,
        checkpoints: stored::checkpoints(store, ALL_CHECKPOINTS).await?,
        slots: SlotBook::read(store, config.slots).await?,
        limits,
    })
}

/// The parts of the log, as they are stored.
pub(super) async fn log_parts<S: ReplicaStore>(store: &S) -> Result<LogParts, StoreError> {
    Ok(LogParts {
        floor: stored::require(store, Floor::KEY).await?,
        compacted: stored::read(store, Compacted::KEY).await?,
        tombstones: stored::read(store, TombstoneFloor::KEY).await?,
    })
}

// A batch is in the write set twice, as operations and as a record.
fn limits<S: ReplicaStore>(store: &S, config: &MasterConfig) -> Result<StoreLimits, OpenError> {
    let holds = store.limits();
    let usable = StoreLimits { max_batch: holds.max_batch.saturating_sub(OVERHEAD) / 2, ..holds };
    let limits = config.limits.min(usable);
    // The longest keys of its own: checkpoints, and what compaction knows touches by.
    let own = if config.compaction.is_some() { 24 } else { Checkpoint::PREFIX.len() + 8 };
    if limits.max_batch == 0 || limits.max_key < own {
        return Err(OpenError::Limits { reason: format!("{holds:?}") });
    }
    Ok(limits)
}

// The whole beginning is one write set: identity, epoch record and, if the store holds data, the base record that says
// so. The floor lies after the base record, so that every slave gets that data by copying.
async fn begin<S: ReplicaStore>(store: &S, before: Option<Identity>) -> Result<(), OpenError> {
    let source = SourceId::from_bytes(random()?);
    let epoch = Epoch { number: 1, nonce: epoch_nonce()? };
    let start = origin(source, epoch);
    let holds_data = !store.is_keyspace_empty(Keyspace::Data).await?;
    let mut log = Beginning { at: start, bytes: 0, writes: WriteSet::builder() };
    log.writes.require(Identity::KEY, before.map(|before| before.to_bytes()));
    log.record(epoch, RecordKind::Epoch)?;
    let mut floor = Floor { position: start, log_bytes: 0 };
    if holds_data {
        log.record(epoch, RecordKind::Base)?;
        floor = Floor { position: log.at, log_bytes: log.bytes };
    }
    let head = Head { position: log.at, log_bytes: log.bytes, uptime_ms: 0 };
    let epochs = Epochs(vec![EpochStart { epoch, first: Seq::new(1) }]);
    let mut writes = log.writes;
    writes.put(Keyspace::Meta, Identity::KEY, Identity::master(source).to_bytes())?;
    writes.put(Keyspace::Meta, Head::KEY, head.to_bytes())?;
    writes.put(Keyspace::Meta, Floor::KEY, floor.to_bytes())?;
    writes.put(Keyspace::Meta, Epochs::KEY, epochs.to_bytes())?;
    Ok(store.apply(writes.build(), Durability::Synced).await?)
}

// One write set as well: the record that begins the epoch, and the end of the mark that asked for it.
async fn begin_epoch<S: ReplicaStore>(store: &S) -> Result<(), OpenError> {
    let before: Head = stored::require(store, Head::KEY).await?;
    let epochs: Epochs = stored::require(store, Epochs::KEY).await?;
    let mut writes = WriteSet::builder();
    writes.require(Head::KEY, Some(before.to_bytes()));
    let epoch = epoch_after(&before.position, epoch_nonce()?)?;
    next_epoch(&mut writes, before, epochs, epoch, unix_ms())?;
    writes.delete(Keyspace::Meta, Backup::KEY)?;
    Ok(store.apply(writes.build(), Durability::Synced).await?)
}

#[derive(Debug)]
struct Beginning {
    at: Position,
    bytes: u64,
    writes: WriteSetBuilder,
}

impl Beginning {
    fn record(&mut self, epoch: Epoch, kind: RecordKind) -> Result<(), StoreError> {
        let body = EncodedOps::default();
        let draft = RecordDraft { epoch, kind, time: unix_ms(), note: b"", body: body.as_bytes() };
        let record = PreparedRecord::after(&self.at, &draft).map_err(StoreError::backend)?;
        let mut bytes = BytesMut::new();
        record.append_to(&mut bytes);
        self.at = record.position();
        self.bytes += bytes.len() as u64;
        self.writes.put(Keyspace::Log, self.at.seq.to_key(), &bytes)?;
        Ok(())
    }
}

/// Two epochs of one number are told apart by it.
pub(crate) fn epoch_nonce() -> Result<u64, OpenError> {
    Ok(u64::from_le_bytes(random()?))
}

fn random<const N: usize>() -> Result<[u8; N], OpenError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| OpenError::Random { reason: error.to_string() })?;
    Ok(bytes)
}
