//! Promising to follow nobody of an earlier epoch: what a slave does when another one is to be promoted.

use std::sync::{Mutex, PoisonError};

use replikv_core::{Cursor, Durability, Keyspace, LinkId, Outcome, Position, ReplicaStore, StoreError, WriteSet, meta};
use replikv_proto::layout::{Role, Stored};
use replikv_proto::{Candidate, Fence, FenceRefusal, FenceRequest, Fenced, Pledger};
use tokio::sync::Mutex as AsyncMutex;
use tokio_util::sync::CancellationToken;

use super::promote::candidate;
use super::{Inner, Slave};
use crate::{OpenError, stored};

/// Keeps connections out while a fence is put up, and ends the one that is there.
#[derive(Debug, Default)]
pub(super) struct Gate {
    /// Held from the moment in which connections are ended until the fence is in the store; and by whoever follows, while
    /// it waits for its turn. So nobody gets it in between.
    pub(super) entrance: AsyncMutex<()>,
    /// Ends the connections that are there.
    interrupt: Mutex<CancellationToken>,
}

impl Gate {
    /// Cancelled when the connection that begins now has to end.
    pub(super) fn interrupted(&self) -> CancellationToken {
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn interrupt(&self) {
        let mut interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *interrupt).cancel();
    }
}

impl<S: ReplicaStore> Slave<S> {
    /// Promises that this slave follows nobody of an epoch before the one that is asked for, and tells where it stands.
    /// From then on it acknowledges nothing beyond that to an older master, and neither does who opens it next, until it
    /// has come to the new epoch, or the fence is [lifted](Self::lift_fence).
    ///
    /// The connection that it follows ends first, and what it has in flight is decided. Asked the same again, it says the
    /// same. It promises one epoch of each number, and none below one that it has promised; whoever is refused leaves it
    /// as it was. Whoever can [read](Self::serve_reads) it over a connection can ask it.
    ///
    /// # Durability
    /// Promise and position are on stable storage on return.
    ///
    /// # Cancel safety
    /// If dropped, it has promised or not.
    ///
    /// # Errors
    /// [`FenceRefusal`].
    pub async fn fence(&self, request: &FenceRequest) -> Result<Fenced, FenceRefusal> {
        let inner = &self.inner;
        let fencing = async {
            let _alone = inner.gate.entrance.lock().await;
            // Whoever is refused ends nobody's connection.
            Standing::read(&*inner.store).await.map_err(failed)?.candidate().promise(request, 0)?;
            inner.gate.interrupt();
            // Given back when nothing is in flight any more.
            let _nobody_follows = inner.following.lock().await;
            let promising = async {
                inner.store.reopen().await.map_err(failed)?;
                promise(&*inner.store, request, false).await
            };
            let (fence, position) = inner.unsettle(promising).await?;
            tracing::warn!(
                target: "replikv::slave", follower = %inner.config.name, seq = %position.seq, epoch = %fence.epoch,
                by = %fence.by,
                "this slave is fenced: it follows nobody of an earlier epoch, and waits for the one that is to begin"
            );
            let fenced = Fenced::new(inner.config.name.clone(), fence.store, position);
            inner.tracker.fenced(Some(fence));
            Ok(fenced)
        };
        tokio::select! {
            biased;
            () = inner.closing.cancelled() => Err(failed(StoreError::Closed)),
            fenced = fencing => fenced,
        }
    }

    /// What this slave has promised, if it waits for an epoch that is to begin.
    pub fn fenced(&self) -> Option<Fence> {
        self.inner.tracker.fence()
    }

    /// Takes the promise back: the slave follows its old master again. Returns what it was.
    ///
    /// # Hazard
    /// Only once it is certain that nobody is promoted to that epoch, nor will be: first on the slave that was to be, whose
    /// right to begin it ends with this. Else writes that an older master acknowledges from then on may be lost, and slaves
    /// may part.
    ///
    /// # Durability
    /// On stable storage on return.
    ///
    /// # Cancel safety
    /// If dropped, it is lifted or not.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn lift_fence(&self) -> Result<Option<Fence>, StoreError> {
        let _alone = self.inner.gate.entrance.lock().await;
        // It may be being promoted to the very epoch that others wait for.
        if self.inner.closing.is_cancelled() {
            return Err(StoreError::Closed);
        }
        let lifted = lift_fence(&*self.inner.store).await?;
        self.inner.tracker.fenced(None);
        Ok(lifted)
    }
}

impl<S: ReplicaStore> Inner<S> {
    /// What the store says, for a connection that begins. What is over goes.
    pub(super) async fn standing_fence(&self) -> Result<Option<Fence>, StoreError> {
        let fence: Option<Fence> = stored::read(&self.store, Fence::KEY).await?;
        let cursor = self.store.cursor(&self.config.link).await?;
        let over = |fence: &Fence| cursor.as_ref().is_some_and(|cursor| fence.is_over(cursor));
        let Some(fence) = fence else { return Ok(None) };
        let fence = if over(&fence) {
            drop_fence(&*self.store, &fence, Durability::Buffered).await?;
            None
        } else {
            Some(fence)
        };
        self.tracker.fenced(fence.clone());
        Ok(fence)
    }
}

/// Takes back what the store of a slave that nobody has open has promised: see [`Slave::lift_fence`], and its hazard.
///
/// # Errors
/// What the store reports.
pub async fn lift_fence<S: ReplicaStore>(store: &S) -> Result<Option<Fence>, StoreError> {
    if fence(store).await?.is_none() {
        return Ok(None);
    }
    let Some(fence) = stored::read(store, Fence::KEY).await? else { return Ok(None) };
    drop_fence(store, &fence, Durability::Synced).await?;
    Ok(Some(fence))
}

/// What the store of a slave has promised, if it waits for an epoch that is to begin.
///
/// # Errors
/// `NewerFormat` if a newer program wrote it.
pub async fn fence<S: ReplicaStore>(store: &S) -> Result<Option<Fence>, StoreError> {
    let Standing { cursor, fence, .. } = Standing::read(store).await?;
    Ok(fence.filter(|fence| cursor.is_none_or(|cursor| !fence.is_over(&cursor))))
}

async fn drop_fence<S: ReplicaStore>(store: &S, fence: &Fence, durability: Durability) -> Result<(), StoreError> {
    let mut writes = WriteSet::builder();
    writes.require(Fence::KEY, Some(fence.to_bytes()));
    writes.delete(Keyspace::Meta, Fence::KEY)?;
    store.apply(writes.build(), durability).await
}

/// What a store says of the slave that it is.
#[derive(Debug, Default)]
pub(super) struct Standing {
    pub(super) link: Option<LinkId>,
    pub(super) cursor: Option<Cursor>,
    pub(super) fence: Option<Fence>,
    filtered: bool,
    resyncs: bool,
    /// It is a copy of a slave's store, and was not opened since.
    pub(super) copied: bool,
    /// Where it is a master.
    reigns: bool,
}

impl Standing {
    pub(super) async fn read<S: ReplicaStore>(store: &S) -> Result<Self, StoreError> {
        let Candidate { identity, subscription, cursor, resync, fence, backup, .. } = candidate(store).await?;
        let (link, cursor) = cursor.unzip();
        // A copy has promised what the original has; only that one may be promoted.
        let copied = backup.is_some();
        Ok(Self {
            link,
            cursor,
            fence: if copied { fence.map(Fence::of_copy) } else { fence },
            filtered: subscription.is_some(),
            copied,
            resyncs: resync.is_some(),
            reigns: identity.is_some_and(|identity| identity.role != Role::Slave),
        })
    }

    pub(super) fn is_slave(&self) -> bool {
        !self.reigns
    }

    pub(super) fn candidate(&self) -> Pledger<'_> {
        let Self { cursor, fence, filtered, resyncs, .. } = self;
        Pledger { cursor: cursor.as_ref(), filtered: *filtered, resyncs: *resyncs, held: fence.as_ref() }
    }
}

/// Writes the promise into the store of a slave that follows nobody; `own` if it is this one that is to be promoted.
/// Returns it, and where the slave stands.
pub(super) async fn promise<S: ReplicaStore>(
    store: &S,
    request: &FenceRequest,
    own: bool,
) -> Result<(Fence, Position), FenceRefusal> {
    let standing = Standing::read(store).await.map_err(failed)?;
    let drawn = random().map_err(failed)?;
    let promised = standing.candidate().promise(request, drawn)?;
    let position = standing.candidate().position()?;
    let Some(fence) = promised else {
        let held = standing.fence.ok_or_else(|| failed(StoreError::Closed))?;
        // What was applied since may not be durable.
        store.sync().await.map_err(failed)?;
        return Ok((held, position));
    };
    let fence = Fence { own, ..fence };
    let writing = async {
        let mut writes = WriteSet::builder();
        writes.require(Fence::KEY, store.get(Keyspace::Meta, Fence::KEY).await?);
        if let Some((link, cursor)) = standing.link.as_ref().zip(standing.cursor.as_ref()) {
            writes.require(meta::cursor_key(link), Some(cursor.to_bytes()));
        }
        writes.put(Keyspace::Meta, Fence::KEY, fence.to_bytes())?;
        // The position as well: what is synced is synced with all before it.
        store.apply(writes.build(), Durability::Synced).await
    };
    if let Err(error) = writing.await {
        if error.outcome() == Outcome::Unknown {
            // It may have promised, which harms nobody; whoever follows next reads what is there.
            drop(store.reopen().await);
        }
        return Err(failed(error));
    }
    Ok((fence, position))
}

pub(super) fn random() -> Result<u64, OpenError> {
    getrandom::u64().map_err(|error| OpenError::Random { reason: error.to_string() })
}

pub(super) fn failed(error: impl std::error::Error) -> FenceRefusal {
    FenceRefusal::Failed { reason: crate::error_chain(&error) }
}
