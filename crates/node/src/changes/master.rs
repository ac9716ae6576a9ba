//! A master's changes: from the ring, or else from the log.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use replikv_core::{KeyRange, Position, ReplicaStore, Seq, Token};
use replikv_proto::{Located, LogAnswer, Record};

use super::{Change, Changes, ChangesError, ChangesFrom};
use crate::Master;
use crate::master::{Inner, MasterProgress};

impl<S: ReplicaStore> Master<S> {
    /// Every published batch after `from`, in order, with its note, its position and its time, as far as it lies in
    /// `ranges`; no ranges stand for everything. The stream goes on with new batches as they are published.
    ///
    /// To resume, begin again after the position of the last change that was dealt with. Nothing holds the log back for
    /// a stream; use a consumer of a name where that matters.
    ///
    /// # Cancel safety
    /// Nothing is changed. A change that was not returned comes again on the next stream from the same position.
    ///
    /// # Errors
    /// [`ChangesError::Trimmed`] if what follows is no longer in the log, now or later as an item of the stream;
    /// [`ChangesError::NotInHistory`] and [`ChangesError::ForeignSource`] if `from` is no point of this history.
    pub async fn changes(
        &self,
        from: impl Into<ChangesFrom>,
        ranges: impl IntoIterator<Item = KeyRange>,
    ) -> Result<Changes, ChangesError> {
        let start = self.inner().start_of(from.into()).await?;
        let tail = Tail {
            inner: self.inner().clone(),
            progress: self.subscribe(),
            after: start,
            chunk: VecDeque::new(),
            ranges: ranges.into_iter().collect(),
        };
        let stream = stream::unfold(Some(tail), |tail| async move {
            let mut tail = tail?;
            match tail.next().await {
                Ok(Some(change)) => Some((Ok(change), Some(tail))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(Changes { start, stream: stream.fuse().boxed() })
    }
}

impl<S: ReplicaStore> Inner<S> {
    pub(super) async fn start_of(&self, from: ChangesFrom) -> Result<Position, ChangesError> {
        let view = self.view();
        match from {
            ChangesFrom::Now => Ok(view.published),
            ChangesFrom::Oldest => Ok(self.parts().full_after().position),
            ChangesFrom::After(position) => {
                if position.source != self.source() {
                    return Err(ChangesError::ForeignSource);
                }
                match self.locate(&[position]).await?[..] {
                    // What is compacted is no batch any more.
                    [Located::Held { .. }] if self.is_in_full_after(position.seq) => Ok(position),
                    [Located::Held { .. } | Located::Below | Located::Shared] => Err(self.trimmed()),
                    _ => Err(ChangesError::NotInHistory { position }),
                }
            }
            ChangesFrom::AfterToken(Token { source, .. }) if source != self.source() => {
                Err(ChangesError::ForeignSource)
            }
            ChangesFrom::AfterToken(token) => {
                let position = self.position_of(token.seq).await?;
                let same = position.epoch == token.epoch;
                if same { Ok(position) } else { Err(ChangesError::NotInHistory { position }) }
            }
            ChangesFrom::AfterSeq(seq) => self.position_of(seq).await,
        }
    }

    async fn position_of(&self, seq: Seq) -> Result<Position, ChangesError> {
        let view = self.view();
        if seq > view.published.seq {
            return Err(ChangesError::NotInHistory { position: Position { seq, ..view.published } });
        }
        let position = self.position_at(seq).await?.filter(|_| self.is_in_full_after(seq));
        position.ok_or_else(|| self.trimmed())
    }

    // The ring may still have what is compacted in the store.
    fn is_in_full_after(&self, seq: Seq) -> bool {
        seq >= self.parts().full_after().position.seq || self.rings_after(seq)
    }

    fn trimmed(&self) -> ChangesError {
        ChangesError::Trimmed { floor: self.parts().full_after().position }
    }
}

struct Tail<S> {
    inner: Arc<Inner<S>>,
    progress: MasterProgress,
    after: Position,
    /// Records that were read and not told yet: one chunk, sharing the bytes of ring or page.
    chunk: VecDeque<Record>,
    ranges: Arc<[KeyRange]>,
}

impl<S: ReplicaStore> Tail<S> {
    async fn next(&mut self) -> Result<Option<Change>, ChangesError> {
        loop {
            while let Some(record) = self.chunk.pop_front() {
                let change = Change::of_record(&record, &self.ranges);
                let tells = self.ranges.is_empty() || !change.note().is_empty() || !change.is_empty();
                if tells || self.chunk.is_empty() {
                    return Ok(Some(change));
                }
            }
            let Some(next) = self.after.seq.next() else { return Ok(None) };
            if self.progress.reached(next).await.is_err() {
                return Ok(None);
            }
            let LogAnswer::Records { parts, last } = self.inner.read_chunk(self.after).await? else {
                return Err(self.inner.trimmed());
            };
            let mut rest = VecDeque::from(parts);
            // What ring and log hand out has passed its checks.
            while let Some(record) = Record::take_across(&mut rest).map_err(replikv_core::StoreError::backend)? {
                self.chunk.push_back(record);
            }
            self.after = last;
        }
    }
}

impl Change {
    fn of_record(record: &Record, ranges: &Arc<[KeyRange]>) -> Self {
        let header = record.header();
        Self {
            position: record.position(),
            time: header.time,
            note: header.note.clone(),
            batches: 1,
            consistent: true,
            parts: vec![record.body().clone()],
            ranges: ranges.clone(),
        }
    }
}
