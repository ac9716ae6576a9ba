//! What waits to be committed, in a form that can be decided more than once.

use bytes::Bytes;
use replikv_core::{Batch, Condition, EncodedOps, Keyspace, Op, StoreError, StoreLimits, WriteSet};

use super::{Gathered, Intent, TransactFn, Work};
use crate::RecordKind;

/// An intent that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) ticket: T,
    pub(super) job: Job,
}

impl<T> From<Intent<T>> for Waiting<T> {
    fn from(Intent { ticket, work }: Intent<T>) -> Self {
        let job = match work {
            Work::Batch(batch) => Job::Batch(batch),
            Work::Transact(function) => Job::Transact(function),
            Work::Gathered(gathered) => Job::Gathered(gathered),
            Work::Derive { name, entries } => Job::Derive { name, entries },
            Work::Mark(kind) => Job::Mark(kind),
        };
        Self { ticket, job }
    }
}

/// What is to be done. It stays with its group until that is committed: a group that was overtaken is decided anew.
pub(super) enum Job {
    Batch(Batch),
    /// A batch that was looked at before. Its operations are shared with the group.
    Prepared(PreparedBatch),
    Transact(TransactFn),
    Gathered(Gathered),
    Derive {
        name: String,
        entries: Vec<(Bytes, Bytes)>,
    },
    Mark(RecordKind),
}

/// A batch that keeps to the limits, in its parts.
#[derive(Debug)]
pub(super) struct PreparedBatch {
    pub(super) ops: EncodedOps,
    pub(super) conditions: Vec<Condition>,
    pub(super) note: Bytes,
}

impl PreparedBatch {
    pub(super) fn new(batch: Batch, limits: &StoreLimits) -> Result<Self, StoreError> {
        batch.check(limits)?;
        let (ops, conditions, note) = batch.into_parts()?;
        Ok(Self { ops, conditions, note })
    }
}

impl Job {
    /// Brings a batch into the form in which it can be decided again and again.
    pub(super) fn prepare(&mut self, limits: &StoreLimits) -> Result<(), StoreError> {
        if let Self::Gathered(gathered) = self {
            let mut all = WriteSet::builder();
            all.append(Keyspace::Data, gathered.ops.clone());
            return all.build().check(limits);
        }
        if let Self::Batch(batch) = self {
            // Before it is taken apart: what is refused now is refused again.
            batch.check(limits)?;
            *self = Self::Prepared(PreparedBatch::new(std::mem::take(batch), limits)?);
        }
        Ok(())
    }

    /// Shows `look` the operations, where they are there already.
    pub(super) fn each_op(&self, look: impl FnMut(Op<'_>)) {
        match self {
            Self::Batch(batch) => batch.ops().for_each(look),
            Self::Prepared(batch) => batch.ops.iter().for_each(look),
            Self::Gathered(gathered) => gathered.ops.iter().for_each(look),
            Self::Transact(_) | Self::Derive { .. } | Self::Mark(_) => {}
        }
    }

    pub(super) fn conditions(&self) -> &[Condition] {
        match self {
            Self::Batch(batch) => batch.conditions(),
            Self::Prepared(batch) => &batch.conditions,
            Self::Transact(_) | Self::Gathered(_) | Self::Derive { .. } | Self::Mark(_) => &[],
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Batch(batch) => batch.fmt(f),
            Self::Prepared(batch) => batch.fmt(f),
            Self::Transact(_) => f.write_str("Transact"),
            Self::Gathered(gathered) => gathered.fmt(f),
            Self::Derive { name, entries } => write!(f, "Derive {name} from {} entries", entries.len()),
            Self::Mark(kind) => kind.fmt(f),
        }
    }
}
