//! Promotion: a slave's store becomes a master's, in a new epoch of the same history.

use replikv_core::{Durability, Epoch, KeyRanges, Position, ReplicaStore, StoreError};
use replikv_proto::layout::{Backup, Epochs, Head, Identity};
use replikv_proto::{Candidate, Fence, Promotion, Resync, Subscription, Unfit};
use tokio::sync::MutexGuard;

use super::Slave;
use crate::clock::unix_ms;
use crate::master::epoch_nonce;
use crate::{OpenError, stored};

/// Why a slave is not promoted. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromoteError {
    /// The store is no slave's.
    #[error("the store is no slave's: there is nothing to promote")]
    NoSlave,
    /// It never followed anybody, and has no history to go on with.
    #[error("the slave never followed a master: it has no history to go on with")]
    Empty,
    /// What it holds is no state that its master had. Choose another slave, or let this one follow to the end first.
    #[error("the slave is not through with a copy, a comparison or a resync: what it holds is no state of its master")]
    CatchingUp,
    /// It holds a part of the keys. Choose a slave that holds them all.
    #[error("the slave subscribes to a part of the keys, {ranges}: it holds no state that a master could go on from")]
    Filtered {
        /// What it subscribes to.
        ranges: KeyRanges,
    },
    /// It is a backup, which has no name of its own yet: let it follow first, or promote it without fencing others.
    #[error("the store is a backup: open it as a slave first, with a name of its own")]
    Backup,
    /// It has promised itself to the promotion of another slave: promote that one. If that was given up, fence with
    /// [`FenceConfig::anew`](super::FenceConfig::anew), or [lift](super::lift_fence) the fence.
    #[error("the slave is fenced: it waits for epoch {epoch}, which begins when {by} is promoted")]
    Fenced {
        /// The epoch that is to begin.
        epoch: Epoch,
        /// Who is to be promoted.
        by: String,
    },
    /// The system gives no random numbers, or there are no more epochs.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A store that was promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Promoted {
    /// The last batch of the old epoch that it holds. What its master wrote after this, and nobody else has, is not part of
    /// the history any more.
    pub last: Position,
    /// The first record of the new one.
    pub first: Position,
}

impl<S: ReplicaStore> Slave<S> {
    /// Stops following, makes the store a master's in a new epoch, and closes it: open it with [`Master::open`].
    ///
    /// Other slaves move over by following the new master: those at the same position resume; so do those that are behind,
    /// if this slave has [kept the log](super::SlaveConfig::keep_log) from there on, and compare otherwise; those that are ahead hold batches that are no longer part of the history, and are refused or resync. The
    /// old master is superseded as soon as one of them, or the new master as a slave, meets it; until then it takes
    /// writes. Without a consensus nobody can prevent that: see the guide on topologies. What
    /// [`replicated`](crate::Write::replicated) has acknowledged is only promised to survive if other slaves are fenced
    /// first: [`promote_fenced`](Self::promote_fenced).
    ///
    /// If this slave has begun such a promotion, and could not end it, this ends it without that promise: those that were
    /// fenced follow.
    ///
    /// # Durability
    /// On stable storage on return, in one write set.
    ///
    /// # Cancel safety
    /// If dropped, the slave has stopped, and is promoted or not.
    ///
    /// # Errors
    /// [`PromoteError`]: the slave has stopped, and is a slave as before.
    ///
    /// [`Master::open`]: crate::Master::open
    pub async fn promote(&self) -> Result<Promoted, PromoteError> {
        let _following = self.end_following().await;
        let promoted = promote(&*self.inner.store).await;
        self.inner.store.close().await?;
        promoted
    }

    // Nothing is in flight, nor will be, while the guard lives.
    pub(super) async fn end_following(&self) -> MutexGuard<'_, ()> {
        self.inner.closing.cancel();
        let following = self.inner.following.lock().await;
        self.inner.tracker.stopped();
        if let Some(relay) = &self.inner.relay {
            relay.finish().await;
        }
        following
    }
}

/// Makes the store of a slave that nobody has open a master's, as [`Slave::promote`] does; the store stays open.
///
/// # Errors
/// [`PromoteError`]: nothing was changed.
pub async fn promote<S: ReplicaStore>(store: &S) -> Result<Promoted, PromoteError> {
    promote_as(store, None).await
}

// As it was promised with this fence, if there is one: whoever waits for that epoch must not wait in vain.
pub(super) async fn promote_as<S: ReplicaStore>(store: &S, promised: Option<&Fence>) -> Result<Promoted, PromoteError> {
    let candidate = candidate(store).await?;
    if promised.is_some_and(|promised| candidate.fence.as_ref() != Some(promised)) {
        return Err(StoreError::HeadMoved.into());
    }
    let Promotion { writes, last, first } = candidate.promote(epoch_nonce()?, unix_ms())?;
    store.apply(writes, Durability::Synced).await?;
    Ok(Promoted { last, first })
}

/// What a store says of itself that matters to a promotion.
pub(super) async fn candidate<S: ReplicaStore>(store: &S) -> Result<Candidate, StoreError> {
    let link = super::only_link(store).await?;
    let cursor = match link {
        Some(link) => store.cursor(&link).await?.map(|cursor| (link, cursor)),
        None => None,
    };
    Ok(Candidate {
        identity: stored::read(store, Identity::KEY).await?,
        subscription: stored::read(store, Subscription::KEY).await?,
        cursor,
        resync: stored::read(store, Resync::KEY).await?,
        head: stored::read(store, Head::KEY).await?,
        epochs: stored::read(store, Epochs::KEY).await?,
        fence: stored::read(store, Fence::KEY).await?,
        backup: stored::read(store, Backup::KEY).await?,
    })
}

impl From<Unfit> for PromoteError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::NoSlave => Self::NoSlave,
            Unfit::Empty => Self::Empty,
            Unfit::CatchingUp => Self::CatchingUp,
            Unfit::Filtered(ranges) => Self::Filtered { ranges },
            Unfit::Fenced(Fence { epoch, by, .. }) => Self::Fenced { epoch, by },
            Unfit::Store(error) => Self::Store(error),
        }
    }
}
