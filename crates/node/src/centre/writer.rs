//! How what links hand over reaches the store: in groups of its own, or as records of the master that the centre is.

use std::sync::Arc;

use bytes::Bytes;
use replikv_core::{Chunk, Durability, EncodedOps, KeyRange, Keyspace, LinkId, ReplicaStore, StoreError, WriteSet};
use replikv_proto::{Derives, Gathered};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use super::gather::{Gatherer, Handed, Part, Queue};
use crate::{Master, WriteError};

/// What commits for all links of a centre.
#[derive(Debug)]
pub(super) enum Writer<S> {
    /// A task of the centre's.
    Gathering { queue: Queue, task: Mutex<Option<JoinHandle<()>>> },
    /// The commit task of a master, which keeps a log of it.
    Master(Master<Arc<S>>),
}

impl<S: ReplicaStore> Writer<S> {
    pub(super) fn gathering(store: &Arc<S>) -> Self {
        let (queue, gatherer) = Gatherer::new(store.clone());
        Self::Gathering { queue, task: Mutex::new(Some(tokio::spawn(gatherer.run()))) }
    }

    /// Commits what `link` hands over. From the call of `handed` on it may be committed though nobody waits for it.
    pub(super) async fn apply(
        &self,
        store: &S,
        link: &LinkId,
        writes: WriteSet,
        durability: Durability,
    ) -> Result<(), StoreError> {
        match self {
            Self::Gathering { queue, .. } => {
                let (answer, answered) = oneshot::channel();
                queue.hand(Handed::Writes(Part { link: link.clone(), writes, durability, answer }))?;
                let died = |_| StoreError::Fatal { reason: "the task that commits for all links has died".into() };
                answered.await.map_err(died)?
            }
            Self::Master(master) => match gathered(link, &writes) {
                // Nothing that a slave of the centre would hear of.
                None => store.apply(writes, durability).await,
                Some(gathered) => {
                    master.gather(gathered).await.map_err(store_error)?;
                    // What the master syncs now and then, the link may need to be there.
                    let synced = durability == Durability::Buffered || !master.inner().is_buffered();
                    if synced { Ok(()) } else { store.sync().await }
                }
            },
        }
    }

    /// Returns when everything that was handed over before is decided.
    pub(super) async fn all_decided(&self) -> Result<(), StoreError> {
        match self {
            Self::Gathering { queue, .. } => {
                let (passed, all_decided) = oneshot::channel();
                queue.hand(Handed::Barrier(passed))?;
                all_decided.await.map_err(|_| StoreError::Closed)
            }
            Self::Master(master) => master.all_decided().await.map_err(store_error),
        }
    }

    /// What the master derives, if the centre is one.
    pub(super) fn derives(&self) -> Option<&Derives> {
        match self {
            Self::Master(master) => Some(master.inner().derives()),
            Self::Gathering { .. } => None,
        }
    }

    /// These are claimed from now on.
    pub(super) fn claimed(&self, claims: Vec<(LinkId, KeyRange)>) {
        if let Self::Master(master) = self {
            master.inner().claim(claims);
        }
    }

    /// Commits what was handed over before, and takes nothing more.
    pub(super) async fn end(&self) -> Result<(), StoreError> {
        match self {
            Self::Gathering { queue, task } => {
                queue.close();
                let mut task = task.lock().await;
                if let Some(running) = task.as_mut()
                    && let Err(error) = running.await
                {
                    tracing::error!(target: "replikv::slave", %error, "the task that commits for all links has died");
                }
                *task = None;
                Ok(())
            }
            Self::Master(master) => master.shutdown().await,
        }
    }
}

// What changes data, and what goes beside it; None if nothing does.
fn gathered(link: &LinkId, writes: &WriteSet) -> Option<Gathered> {
    let of = |keyspace| writes.chunks().iter().filter(move |chunk: &&Chunk| chunk.keyspace == keyspace);
    let join = |keyspace| {
        let segments: Vec<Bytes> = of(keyspace).flat_map(|chunk| chunk.ops.buffers().cloned()).collect();
        // Whole operations before, and whole ones after.
        EncodedOps::from_segments(segments).unwrap_or_default()
    };
    of(Keyspace::Data).next()?;
    let (ops, beside) = (join(Keyspace::Data), join(Keyspace::Meta));
    Some(Gathered { link: link.clone(), requires: writes.preconditions().to_vec(), ops, beside })
}

fn store_error(error: WriteError) -> StoreError {
    match error {
        WriteError::Store(error) => error,
        WriteError::NotDerived { name, reason } => StoreError::NotDerived { name, reason },
        WriteError::OutcomeUnknown { .. } => StoreError::Fatal { reason: crate::error_chain(&error) },
        // Nobody commits for this centre any more.
        _ => StoreError::Closed,
    }
}
