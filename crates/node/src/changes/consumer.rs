//! Named consumers: what changed, for somebody who comes back.

use std::sync::Arc;

use replikv_core::{
    Durability, InvalidLinkId, KeyRange, Keyspace, LinkId, Position, ReplicaStore, StoreError, WriteSet,
};
use replikv_proto::layout::Stored;
use replikv_proto::{SlotKind, SlotName};

use super::{Changes, ChangesError, ChangesFrom};
use crate::Master;
use crate::master::Inner;

/// A consumer of a master's changes that is known by a name, and for whom the log is kept while it is away, under the
/// same caps as for a slave.
///
/// Its position moves when it says so, with [`ack`](Self::ack): what comes after is told again after a crash. A consumer
/// that must not deal with a change twice keeps the position beside what it makes of the changes, in one transaction,
/// and goes on from there with [`changes_after`](Self::changes_after).
#[derive(Debug)]
pub struct Consumer<S: ReplicaStore> {
    master: Master<S>,
    name: SlotName,
    _held: Held<S>,
}

/// Why a consumer cannot be had, or cannot move.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumerError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] InvalidLinkId),
    /// Somebody has this consumer open.
    #[error("consumer {name} is in use")]
    InUse {
        /// Its name.
        name: String,
    },
    /// The master keeps as many slots as it may.
    #[error("there are too many slots: forget one, or raise max_slots")]
    TooManySlots,
    /// The position is not in the history, or what follows it is no longer there.
    #[error(transparent)]
    Changes(#[from] ChangesError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<S: ReplicaStore> Master<S> {
    /// The consumer called `name`. If it is new, it begins after `from`; otherwise it goes on from where it was, and
    /// `from` does not matter. On return it is on stable storage.
    ///
    /// # Cancel safety
    /// If dropped, the consumer may be there or not; asking again finds it.
    ///
    /// # Errors
    /// [`ConsumerError`].
    pub async fn consumer(
        &self,
        name: impl Into<String>,
        from: impl Into<ChangesFrom>,
    ) -> Result<Consumer<S>, ConsumerError> {
        let name = SlotName::consumer(LinkId::new(name)?.as_str());
        let inner = self.inner();
        let held = Held::new(inner, &name)?;
        if inner.slots().with(|slots| slots.get(&name)).is_none() {
            let start = inner.start_of(from.into()).await?;
            let made = inner.slots().with(|slots| slots.acked(&name, start, false, inner.slot_time()));
            if !made {
                return Err(ConsumerError::TooManySlots);
            }
        }
        inner.slots().with(|slots| slots.connected(&name, inner.slot_time()));
        let consumer = Consumer { master: self.clone(), name, _held: held };
        consumer.write().await?;
        Ok(consumer)
    }
}

impl<S: ReplicaStore> Consumer<S> {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name.name
    }

    /// The position it has acknowledged; `None` if it was forgotten meanwhile.
    pub fn position(&self) -> Option<Position> {
        self.master.inner().slots().with(|slots| slots.get(&self.name)).map(|slot| slot.position)
    }

    /// Every batch after the acknowledged position; see [`Master::changes`].
    ///
    /// # Errors
    /// As [`Master::changes`]; `Trimmed` if the consumer was away for so long that its slot was lost, `Forgotten` if it was
    /// dropped meanwhile.
    pub async fn changes(&self, ranges: impl IntoIterator<Item = KeyRange>) -> Result<Changes, ChangesError> {
        match self.position() {
            Some(position) => self.master.changes(position, ranges).await,
            None => Err(ChangesError::Forgotten),
        }
    }

    /// Every batch after `position`, for a consumer that keeps its position itself.
    ///
    /// # Errors
    /// As [`Master::changes`].
    pub async fn changes_after(
        &self,
        position: Position,
        ranges: impl IntoIterator<Item = KeyRange>,
    ) -> Result<Changes, ChangesError> {
        self.master.changes(position, ranges).await
    }

    /// Everything up to `position` is dealt with: the log need not be kept for it. On stable storage on return, so call
    /// it now and then rather than for every change.
    ///
    /// # Cancel safety
    /// The position moves or not; an older one only keeps more of the log.
    ///
    /// # Errors
    /// [`ChangesError::NotInHistory`] if the position is no point of this history; `TooManySlots` if the consumer was
    /// forgotten and there is no room for it any more; what the store reports.
    pub async fn ack(&self, position: Position) -> Result<(), ConsumerError> {
        let inner = self.master.inner();
        inner.start_of(ChangesFrom::After(position)).await?;
        if !inner.slots().with(|slots| slots.acked(&self.name, position, true, inner.slot_time())) {
            return Err(ConsumerError::TooManySlots);
        }
        self.write().await
    }

    /// Gives the consumer up: its slot goes, and nothing is kept for it.
    pub fn forget(self) {
        self.master.forget(SlotKind::Consumer, &self.name.name);
    }

    async fn write(&self) -> Result<(), ConsumerError> {
        let inner = self.master.inner();
        let Some(slot) = inner.slots().with(|slots| slots.get(&self.name)) else { return Ok(()) };
        let mut writes = WriteSet::builder();
        writes.put(Keyspace::Meta, self.name.key(), slot.to_bytes())?;
        Ok(self.master.store().apply(writes.build(), Durability::Synced).await?)
    }
}

/// A consumer that is open. Closes when dropped.
#[derive(Debug)]
struct Held<S: ReplicaStore> {
    inner: Arc<Inner<S>>,
    name: SlotName,
}

impl<S: ReplicaStore> Held<S> {
    fn new(inner: &Arc<Inner<S>>, name: &SlotName) -> Result<Self, ConsumerError> {
        if !inner.slots().open(name) {
            return Err(ConsumerError::InUse { name: name.name.clone() });
        }
        Ok(Self { inner: inner.clone(), name: name.clone() })
    }
}

impl<S: ReplicaStore> Drop for Held<S> {
    fn drop(&mut self) {
        let now = self.inner.slot_time();
        self.inner.slots().with(|slots| slots.disconnected(&self.name, now));
        self.inner.slots().shut(&self.name);
    }
}
