//! A record that is committed beside the committer, in a transaction that holds its operations already.

use replikv_core::{Batch, Position, StoreError, WriteSet};

use super::group::Building;
use super::job::PreparedBatch;
use super::{CommitterConfig, LogEntry};
use crate::layout::{Checkpoint, Head};
use crate::{Now, RecordKind};

/// A record for a transaction that somebody else commits.
///
/// Whoever makes one must hold the store's write lock from the moment the head was read until the transaction ends, and
/// must tell the committer: see [`Committer::adopted`](super::Committer::adopted).
#[derive(Debug, Clone)]
pub struct LoneRecord {
    /// The position that it builds upon.
    pub before: Position,
    /// What goes into the transaction beside the operations: the record, the head, and a checkpoint when one is due.
    pub writes: WriteSet,
    /// The head after it.
    pub head: Head,
    /// The record.
    pub entry: LogEntry,
    /// The checkpoints, one at most.
    pub checkpoints: Vec<Checkpoint>,
}

impl LoneRecord {
    /// The record of `batch` that follows `before`; `None` if there is nothing in it. Conditions of the batch are not
    /// looked at: whoever holds the lock has looked.
    ///
    /// # Errors
    /// As [`Batch::check`]; and `Backend` after the last sequence number.
    pub fn new(
        config: &CommitterConfig,
        before: Head,
        batch: Batch,
        now: Now,
        uptime_ms: u64,
    ) -> Result<Option<Self>, StoreError> {
        if batch.is_empty() {
            return Ok(None);
        }
        let PreparedBatch { ops, note, .. } = PreparedBatch::new(batch, &config.limits)?;
        let mut building = Building::<()>::new(before, now, uptime_ms);
        building.record(config, RecordKind::Batch, ops, &note);
        building.finish_alone(before)
    }
}
