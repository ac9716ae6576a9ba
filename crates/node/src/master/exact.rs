//! Reading at one point of the history, while writes go on.
//!
//! Every batch moves the head in its own write set. A page between two looks at the same head therefore shows exactly
//! what the history holds there. Where writers leave no gap of that length, the task that commits reads the page between
//! two of its groups.

use std::sync::atomic::Ordering;

use replikv_core::{KeyRange, Keyspace, ReplicaStore, ScanOptions, StoreError};
use replikv_proto::Content;
use replikv_proto::layout::Head;
use tokio::sync::{mpsc, oneshot};

use super::Inner;
use super::commit::Queued;
use super::history::History;
use crate::stored;

/// How often a page is read beside the writers before it is read between two groups.
const BESIDE: usize = 2;
/// How often it is read between two groups, where applications commit in transactions of their own meanwhile.
const BETWEEN: usize = 16;
/// How often all of that is done, each time with half as much to read.
const ROUNDS: usize = 8;

/// A page that is to be read between two groups.
#[derive(Debug)]
pub(super) struct ExactRead {
    range: KeyRange,
    max_bytes: usize,
    answer: oneshot::Sender<Result<Option<Content>, StoreError>>,
}

impl<S: ReplicaStore> Inner<S> {
    /// A page of `range` as it is right after one record, and that record.
    ///
    /// # Cancel safety
    /// Nothing is changed.
    ///
    /// # Errors
    /// What the store reports; `Closed` once nobody commits any more; `Transient` if applications commit in transactions
    /// of their own without a pause.
    pub(super) async fn read_exactly(
        &self,
        intents: &mpsc::UnboundedSender<Queued>,
        range: &KeyRange,
        max_bytes: usize,
    ) -> Result<Content, StoreError> {
        for round in 0..ROUNDS {
            let max_bytes = (max_bytes >> round).max(1);
            for _ in 0..BESIDE {
                if let Some(content) = self.read_between_heads(range, max_bytes).await? {
                    return Ok(content);
                }
            }
            let (answer, answered) = oneshot::channel();
            let read = ExactRead { range: range.clone(), max_bytes, answer };
            intents.send(Queued::Read(read)).map_err(|_| StoreError::Closed)?;
            if let Some(content) = answered.await.map_err(|_| StoreError::Closed)?? {
                return Ok(content);
            }
        }
        Err(StoreError::Transient { reason: "the data changes faster than any part of it can be read".into() })
    }

    /// For the task that commits, between two groups.
    pub(super) async fn read_for(&self, read: ExactRead) {
        let ExactRead { range, max_bytes, answer } = read;
        // Whoever has committed a recording lets this go first.
        self.recordings.wait_for_me();
        let mut result = Ok(None);
        for _ in 0..BETWEEN {
            if answer.is_closed() || !matches!(result, Ok(None)) {
                break;
            }
            result = self.read_between_heads(&range, max_bytes).await;
        }
        self.recordings.decided();
        // Whoever asked may be gone.
        drop(answer.send(result));
    }
}

impl<S: ReplicaStore> History<S> {
    /// A page of `range` as it is right after one record; `None` if another one may have been committed meanwhile.
    pub(crate) async fn read_between_heads(
        &self,
        range: &KeyRange,
        max_bytes: usize,
    ) -> Result<Option<Content>, StoreError> {
        let setbacks = self.setbacks.load(Ordering::SeqCst);
        let options = ScanOptions::default().max_entries(usize::MAX).max_bytes(max_bytes);
        let before: Head = stored::require(&self.store, Head::KEY).await?;
        let page = self.store.scan(Keyspace::Data, range.clone(), options).await?;
        let after: Head = stored::require(&self.store, Head::KEY).await?;
        let handed = self.seen.load().handed;
        // A head that went back and forth is no longer the one it was, but what was lost in between may be in the page.
        if before.position != after.position || self.setbacks.load(Ordering::SeqCst) != setbacks {
            return Ok(None);
        }
        if self.is_over() {
            return Err(StoreError::Closed);
        }
        if after.position.seq > handed.seq {
            // Another master writes to this store.
            return Err(StoreError::HeadMoved);
        }
        let end = page.rest().map_or_else(|| range.end().cloned(), |rest| Some(rest.start().clone()));
        let covered = KeyRange::new(range.start().clone(), end);
        Ok(Some(Content { range: covered, read_at: after.position, entries: page.ops().clone() }))
    }
}
