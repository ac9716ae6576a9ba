//! A slave's changes: what it applies, from now on.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use replikv_core::{Cursor, EncodedOps, KeyRange, Keyspace, Position, ReplicaStore, WriteSet};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::{Change, Changes, ChangesError, ChangesFrom};
use crate::Slave;

/// How many groups wait for a consumer that is slow before it misses some. They share the bytes of what was received.
const WAITING: usize = 16;

/// What a slave has committed at once.
#[derive(Debug, Clone)]
pub(crate) struct AppliedGroup {
    pub(crate) cursor: Cursor,
    pub(crate) records: usize,
    pub(crate) time: Option<u64>,
    /// `None` if the store has consumed it: nobody was listening then.
    pub(crate) writes: Option<WriteSet>,
}

/// Hands committed groups to whoever listens.
#[derive(Debug)]
pub(crate) struct GroupFeed(broadcast::Sender<AppliedGroup>);

impl GroupFeed {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(WAITING))
    }

    /// True if somebody listens.
    pub(crate) fn is_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub(crate) fn tell(&self, group: AppliedGroup) {
        // Nobody may be left to hear it.
        drop(self.0.send(group));
    }
}

impl<S: ReplicaStore> Slave<S> {
    /// What this slave applies from now on: one item for each group that it commits, with what the batches of the group
    /// come to, as far as it lies in `ranges`; no ranges stand for everything that the slave subscribes to. Pages of a copy are told as well, as a
    /// range that is deleted and the entries that are there now.
    ///
    /// A slave keeps no log: `from` is [`ChangesFrom::Now`], or the position at which the slave stands.
    ///
    /// # Cancel safety
    /// Nothing is changed; what is applied while nobody holds a stream is told to nobody.
    ///
    /// # Errors
    /// [`StoreError::NotSubscribed`](replikv_core::StoreError::NotSubscribed) if `ranges` hold what the slave does not
    /// subscribe to; [`ChangesError::LiveOnly`] if `from` is anything else; [`ChangesError::Missed`] as an item, and the last one, if
    /// the stream is not read as fast as the slave applies.
    pub async fn changes(
        &self,
        from: impl Into<ChangesFrom>,
        ranges: impl IntoIterator<Item = KeyRange>,
    ) -> Result<Changes, ChangesError> {
        let ranges: Arc<[KeyRange]> = ranges.into_iter().collect();
        ranges.iter().try_for_each(|range| self.subscribes_to(range))?;
        // Listening first: what is applied from here on is heard.
        let receiver = self.feed().0.subscribe();
        let stands = self.stored_cursor().await?.map(|cursor| cursor.position);
        let start = match (from.into(), stands) {
            (ChangesFrom::Now, Some(position)) => position,
            (ChangesFrom::After(asked), Some(position)) if asked == position => position,
            (ChangesFrom::AfterToken(token), Some(position)) if token == position.into() => position,
            (ChangesFrom::AfterSeq(seq), Some(position)) if seq == position.seq => position,
            _ => return Err(ChangesError::LiveOnly),
        };
        let listener = Listener { receiver, closing: self.closing().clone(), start, ranges, _slave: self.clone() };
        let stream = stream::unfold(Some(listener), |listener| async move {
            let mut listener = listener?;
            match listener.next().await {
                Ok(Some(change)) => Some((Ok(change), Some(listener))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Changes { start, stream: stream.fuse().boxed() })
    }
}

struct Listener<S> {
    receiver: broadcast::Receiver<AppliedGroup>,
    closing: CancellationToken,
    start: Position,
    ranges: Arc<[KeyRange]>,
    _slave: Slave<S>,
}

impl<S: ReplicaStore> Listener<S> {
    async fn next(&mut self) -> Result<Option<Change>, ChangesError> {
        loop {
            let received = tokio::select! {
                biased;
                received = self.receiver.recv() => received,
                () = self.closing.cancelled() => return Ok(None),
            };
            match received {
                // Committed between listening and looking: it is part of where the stream begins.
                Ok(group) if group.records > 0 && group.cursor.position.seq <= self.start.seq => {}
                Ok(group) => match &group.writes {
                    Some(writes) => return Ok(Some(Change::of_group(&group, writes, &self.ranges))),
                    None => return Err(ChangesError::Missed { groups: 1 }),
                },
                Err(RecvError::Lagged(groups)) => return Err(ChangesError::Missed { groups }),
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }
}

impl Change {
    fn of_group(group: &AppliedGroup, writes: &WriteSet, ranges: &Arc<[KeyRange]>) -> Self {
        let data = writes.chunks().iter().filter(|chunk| chunk.keyspace == Keyspace::Data);
        let parts: Vec<EncodedOps> = data.map(|chunk| chunk.ops.clone()).collect();
        Self {
            position: group.cursor.position,
            time: group.time.unwrap_or(0),
            note: bytes::Bytes::new(),
            batches: group.records as u64,
            consistent: group.cursor.is_consistent(),
            parts,
            ranges: ranges.clone(),
        }
    }
}
