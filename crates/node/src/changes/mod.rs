//! What changed, as a stream of whole batches.
//!
//! A master streams from its ring and its log: a stream that stopped goes on after the last position it has seen, and
//! one that is slow costs a position, not a buffer. A slave streams what it applies, group by group,
//! from now on.

mod consumer;
mod error;
mod master;
mod slave;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::Stream;
use futures_core::stream::BoxStream;
use replikv_core::{EncodedOps, KeyRange, Op, Position, Seq, Token};

pub use self::consumer::{Consumer, ConsumerError};
pub use self::error::ChangesError;
pub(crate) use self::slave::{AppliedGroup, GroupFeed};

/// Where a stream of changes begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangesFrom {
    /// With the next batch.
    Now,
    /// With the oldest batch that the log still holds.
    Oldest,
    /// After this point of the history: the position of the last change that was dealt with. The digest proves that it
    /// is the same history.
    After(Position),
    /// After the batch of this token.
    AfterToken(Token),
    /// After the batch of this number, whatever it was.
    AfterSeq(Seq),
}

impl From<Position> for ChangesFrom {
    fn from(position: Position) -> Self {
        Self::After(position)
    }
}

impl From<Token> for ChangesFrom {
    fn from(token: Token) -> Self {
        Self::AfterToken(token)
    }
}

impl From<Seq> for ChangesFrom {
    fn from(seq: Seq) -> Self {
        Self::AfterSeq(seq)
    }
}

/// A stream of [`Change`]s, in order and without a gap. It ends when its node is shut down, or with its first error.
pub struct Changes {
    start: Position,
    stream: BoxStream<'static, Result<Change, ChangesError>>,
}

impl Changes {
    /// Where the stream begins: its first change is the one after this.
    pub fn start(&self) -> Position {
        self.start
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("start", &self.start).finish_non_exhaustive()
    }
}

impl Stream for Changes {
    type Item = Result<Change, ChangesError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.as_mut().poll_next(cx)
    }
}

/// One batch of a master, or what a slave applied at once, as far as it lies in the ranges that were asked for.
///
/// Where a batch touches none of them it may be left out; the last one of a longer run is delivered empty, so that a
/// consumer of a quiet range comes on.
#[derive(Debug, Clone)]
pub struct Change {
    position: Position,
    time: u64,
    note: Bytes,
    batches: u64,
    consistent: bool,
    parts: Vec<EncodedOps>,
    ranges: Arc<[KeyRange]>,
}

/// One operation of a [`Change`]. Bytes are shared with the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeOp {
    /// `key` has this value now.
    Put {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
    },
    /// `key` is gone, if it was there.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Every key of the range is gone.
    DeleteRange(KeyRange),
}

impl Change {
    /// The position that is reached with it: where a later stream goes on from.
    pub fn position(&self) -> Position {
        self.position
    }

    /// When it was committed, by the master's clock: milliseconds since the Unix epoch; 0 if that is not known. Nothing
    /// is ordered by it.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// The note of the batch; empty if there is none, and where several batches were applied at once.
    pub fn note(&self) -> &Bytes {
        &self.note
    }

    /// How many batches it holds: one on a master; on a slave as many as were applied at once, of which only what they
    /// come to is told. 0 for a page of a copy.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Whether the data is a state of the master once this is applied. Always so on a master; not while a slave copies.
    pub fn is_consistent(&self) -> bool {
        self.consistent
    }

    /// The operations, in order, clipped to the ranges that were asked for.
    pub fn ops(&self) -> impl Iterator<Item = ChangeOp> + '_ {
        self.parts.iter().flat_map(|part| part.iter().flat_map(|op| self.clip(part.as_bytes(), op)))
    }

    /// True if nothing of it lies in the ranges that were asked for.
    pub fn is_empty(&self) -> bool {
        self.ops().next().is_none()
    }

    fn clip(&self, buffer: &Bytes, op: Op<'_>) -> Vec<ChangeOp> {
        let wanted = |key: &[u8]| self.ranges.is_empty() || self.ranges.iter().any(|range| range.contains(key));
        match op {
            Op::Put { key, value } if wanted(key) => {
                vec![ChangeOp::Put { key: buffer.slice_ref(key), value: buffer.slice_ref(value) }]
            }
            Op::Delete { key } if wanted(key) => vec![ChangeOp::Delete { key: buffer.slice_ref(key) }],
            Op::Put { .. } | Op::Delete { .. } => Vec::new(),
            Op::DeleteRange { start, end } => {
                let range = KeyRange::new(buffer.slice_ref(start), end.map(|end| buffer.slice_ref(end)));
                let everything = [KeyRange::all()];
                let ranges = if self.ranges.is_empty() { &everything[..] } else { &self.ranges };
                let parts = ranges.iter().map(|wanted| wanted.intersect(&range));
                parts.filter(|part| !part.is_empty()).map(ChangeOp::DeleteRange).collect()
            }
        }
    }
}
