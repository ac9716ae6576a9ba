//! The applier decides what a slave commits: which records go into one write set, folded how, and with which cursor.
//!
//! Records and pages of content go in, in wire order; groups come out. A group holds whole batches only, carries the
//! cursor that belongs to its end, and requires the cursor that belongs to its beginning: a write set of an old
//! connection, or of a second process, changes nothing.

mod fold;
mod keep;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;
use replikv_core::{
    Coverage, Cursor, EncodedOps, Fill, KeyRange, Keyspace, LinkId, Op, OpsPart, Position, Seq, StoreError, WriteSet,
    WriteSetBuilder, meta,
};

use self::fold::Fold;
pub use self::keep::GroupLog;
use self::keep::{Building, Keeping};
use crate::layout::{Checkpoint, Epochs, Head, Stored};
use crate::planted::{self, Bug};
use crate::{Content, Displacing, Portion, Probed, Record, Resync, SlotName, Touched};

/// Turns what arrives into write sets.
#[derive(Debug)]
pub struct Applier {
    link: LinkId,
    target: usize,
    most_operations: usize,
    /// What the store holds once every group handed out is committed.
    cursor: Option<Cursor>,
    /// The stored form of `cursor`: what the next group requires.
    stored: Option<Bytes>,
    /// The resync that is under way once every group handed out is committed.
    resync: Option<Resync>,
    /// What is kept of the log, if it is kept.
    keeping: Option<Keeping>,
    pending: VecDeque<Item>,
    pending_bytes: usize,
    received: u64,
}

#[derive(Debug)]
enum Item {
    Begin(Cursor),
    Resync(Cursor, Resync, Epochs),
    Record(Record),
    Portion(Portion),
    Content(Content),
    Touched(Touched),
    Covered(KeyRange, Position),
    Checkpoints(Vec<Position>),
    Probed(Box<Probed>),
}

/// One write set of a slave, and what is true once it is committed.
#[derive(Debug)]
pub struct Group {
    /// What must be quarantined, and synced, before `writes` may be applied: nothing else keeps it.
    pub displacing: Option<Displacing>,
    /// The operations, the cursor, and the precondition on the cursor before.
    pub writes: WriteSet,
    /// The cursor after it.
    pub cursor: Cursor,
    /// How many records it holds.
    pub records: usize,
    /// How many bytes of input it was made of.
    pub bytes: usize,
    /// How many bytes of records had arrived with its last one, since the applier began.
    pub received: u64,
    /// The wall-clock time of its last record, if it holds one.
    pub time: Option<u64>,
    /// What becomes of the kept log; `None` if there is none afterwards.
    pub log: Option<GroupLog>,
}

impl Applier {
    /// The most that one group takes by default: 32 MiB of input. Larger groups gain little and delay acks.
    pub const DEFAULT_TARGET: usize = 32 << 20;

    /// An applier for `link`, whose stored cursor is `cursor`. A group takes input up to `target` bytes, and one item
    /// at least.
    pub fn new(link: LinkId, cursor: Option<Cursor>, target: usize) -> Self {
        let stored = cursor.as_ref().map(Cursor::to_bytes);
        let (resync, keeping, pending) = (None, None, VecDeque::new());
        let (most_operations, pending_bytes, received) = (usize::MAX, 0, 0);
        Self { link, target, most_operations, cursor, stored, resync, keeping, pending, pending_bytes, received }
    }

    /// A group takes input of so many operations at most, and one item at least.
    #[must_use]
    pub fn most_operations(mut self, operations: usize) -> Self {
        self.most_operations = operations;
        self
    }

    /// Keeps the log as it is received. `head` is where what is stored of it ends: at the stored cursor, or there is none.
    #[must_use]
    pub fn keeping_log(mut self, head: Option<Head>) -> Self {
        let ends_here = |head: &Head| self.cursor.as_ref().is_some_and(|cursor| cursor.position == head.position);
        self.keeping = Some(Keeping::new(head.filter(ends_here)));
        self
    }

    /// How long nodes have run on the store, in milliseconds: the log is kept by that.
    pub fn tell_uptime(&mut self, uptime_ms: u64) {
        if let Some(keeping) = &mut self.keeping {
            keeping.uptime_ms = uptime_ms;
        }
    }

    /// With a resync that was begun before, as stored.
    #[must_use]
    pub fn resyncing(mut self, resync: Option<Resync>) -> Self {
        self.resync = resync;
        self
    }

    /// The next records go on top of `cursor`: a copy begins, or an empty store follows from the start of a history.
    pub fn begin(&mut self, cursor: Cursor) {
        self.pending.push_back(Item::Begin(cursor));
    }

    /// As [`begin`](Self::begin), in a history from which the slave's has parted, and whose epochs are `epochs`. What it
    /// knew of its own goes in the same write set, and not before: checkpoints of a branch that ended would be held against
    /// it later, and a slave that is promoted before it has joined must know the epochs of its own.
    pub fn begin_resync(&mut self, cursor: Cursor, resync: Resync, epochs: Epochs) {
        self.pending.push_back(Item::Resync(cursor, resync, epochs));
    }

    /// A record whose place in the chain was verified.
    pub fn push_record(&mut self, record: Record) {
        self.push(Item::Record(record));
    }

    /// What of one or more records lies in the slave's ranges, whose place in the history was verified.
    pub fn push_portion(&mut self, portion: Portion) {
        self.push(Item::Portion(portion));
    }

    /// A page that replaces its range.
    pub fn push_content(&mut self, content: Content) {
        self.push(Item::Content(content));
    }

    /// What touched keys hold, newer than the records around it.
    pub fn push_touched(&mut self, touched: Touched) {
        self.push(Item::Touched(touched));
    }

    /// A range that holds what the master held at `read_at`: records that come after this apply to it.
    pub fn push_covered(&mut self, range: KeyRange, read_at: Position) {
        self.push(Item::Covered(range, read_at));
    }

    /// The answer to a probe: no group reaches across it, and [`take_probed`](Self::take_probed) hands it out in its turn.
    pub fn push_probed(&mut self, probed: Box<Probed>) {
        self.push(Item::Probed(probed));
    }

    /// The answer to a probe whose turn it is: once every group that was handed out is committed, the store holds what
    /// it speaks of.
    pub fn take_probed(&mut self) -> Option<Box<Probed>> {
        if !matches!(self.pending.front(), Some(Item::Probed(_))) {
            return None;
        }
        let Some(Item::Probed(probed)) = self.pending.pop_front() else { return None };
        self.pending_bytes -= probed.byte_len();
        Some(probed)
    }

    /// What the store holds once every group that was handed out is committed.
    pub fn cursor(&self) -> Option<&Cursor> {
        self.cursor.as_ref()
    }

    /// A write set that holds only if the store stands where it will once every group that was handed out is committed.
    /// The cursor stays: what is put into it mends the data, and moves nothing.
    pub fn mending(&self) -> WriteSetBuilder {
        let mut out = WriteSet::builder();
        out.require(meta::cursor_key(&self.link), self.stored.clone());
        out
    }

    /// What an equal range counts for in [`pending_bytes`](Self::pending_bytes).
    pub fn covered_len(range: &KeyRange) -> usize {
        range.start().len() + range.end().map_or(0, Bytes::len)
    }

    /// Points of the history that the data stands on: they are kept.
    pub fn push_checkpoints(&mut self, checkpoints: Vec<Position>) {
        self.push(Item::Checkpoints(checkpoints));
    }

    /// How much waits. Whoever reads from a connection stops at [`target`](Self::target).
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// How much one group takes.
    pub fn target(&self) -> usize {
        self.target
    }

    /// True if nothing waits.
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// The next group: everything that waits, up to the target. `None` if nothing does.
    ///
    /// Groups must be committed in the order in which they were taken. If one fails, nothing taken after it can be
    /// committed either; begin again with a new applier from the cursor that the store then holds.
    ///
    /// # Errors
    /// `Corrupt` if a page or an equal range meets what is covered already, or a record came before any position: the
    /// session checks all of it before.
    pub fn next_group(&mut self) -> Result<Option<Group>, StoreError> {
        let items = self.take_items();
        let before = self.stored.clone();
        let bytes = items.iter().map(Item::byte_len).sum();
        let mut records = 0;
        let mut out = WriteSet::builder();
        if !planted::is(Bug::CursorNotRequired) {
            out.require(meta::cursor_key(&self.link), before);
        }
        let plain = matches!(&items[..], [Item::Record(_) | Item::Portion(_)])
            && self.cursor.as_ref().is_some_and(|cursor| cursor.coverage.is_complete());
        let mut fold = Fold::default();
        let (mut displacing, mut contents) = (self.resync, Vec::new());
        let mut late = Vec::new();
        let mut log = self.keeping.map(Building::new);
        for item in &items {
            match item {
                Item::Resync(cursor, resync, epochs) => {
                    fold.flush(&mut out)?;
                    out.put(Keyspace::Meta, Epochs::KEY, epochs.to_bytes())?;
                    out.put(Keyspace::Meta, Resync::KEY, resync.to_bytes())?;
                    out.delete_range(Keyspace::Meta, &KeyRange::prefix(Checkpoint::PREFIX));
                    out.delete_range(Keyspace::Meta, &KeyRange::prefix(SlotName::PREFIX));
                    self.cursor = Some(cursor.clone());
                    (self.resync, displacing) = (Some(*resync), Some(*resync));
                }
                Item::Begin(cursor) => {
                    fold.flush(&mut out)?;
                    self.cursor = Some(cursor.clone());
                }
                Item::Record(record) => {
                    let cursor = self.cursor.as_mut().ok_or_else(|| corrupt("a record came before a position"))?;
                    records += 1;
                    if plain {
                        // One batch on its own goes to the store in the very bytes that came from the connection.
                        out.append(Keyspace::Data, record.body().clone());
                    } else if cursor.coverage.is_complete() {
                        fold_all(record.body(), &mut fold, &mut out)?;
                    } else {
                        fold_covered(record.body(), &cursor.coverage, &mut fold, &mut out)?;
                    }
                    cursor.position = record.position();
                    complete(cursor);
                }
                Item::Portion(portion) => {
                    let cursor = self.cursor.as_mut().ok_or_else(|| corrupt("a record came before a position"))?;
                    records += usize::try_from(portion.records).unwrap_or(usize::MAX);
                    if portion.ops.is_empty() {
                        // The position is all there is to say.
                    } else if plain {
                        out.append(Keyspace::Data, portion.ops.clone());
                    } else if cursor.coverage.is_complete() {
                        fold_all(&portion.ops, &mut fold, &mut out)?;
                    } else {
                        fold_covered(&portion.ops, &cursor.coverage, &mut fold, &mut out)?;
                    }
                    cursor.position = portion.position;
                    complete(cursor);
                }
                Item::Content(content) => {
                    let cursor = self.cursor.as_mut().ok_or_else(|| corrupt("content came before a position"))?;
                    let covered = match cursor.coverage.fill() {
                        Some(Fill::Compare) => cursor.coverage.cover(&content.range, content.read_at),
                        _ => cursor.coverage.advance(&content.range, content.read_at),
                    };
                    if !covered && !planted::is(Bug::PageNotChecked) {
                        return Err(corrupt("a page of content leaves a gap, or meets what is covered already"));
                    }
                    if planted::is(Bug::ContentIsNoBarrier) {
                        late.push(content);
                    } else {
                        fold.replace(&content.range, content.entries.clone(), &mut out)?;
                    }
                    if displacing.is_some() {
                        contents.push(content.clone());
                    }
                    complete(cursor);
                }
                Item::Touched(touched) => {
                    let cursor = self.cursor.as_mut().ok_or_else(|| corrupt("touches came before a position"))?;
                    fold_covered(&touched.ops, &cursor.coverage, &mut fold, &mut out)?;
                    cursor.coverage.newer_until(touched.read_at);
                    cursor.position = touched.end.unwrap_or(cursor.position);
                    complete(cursor);
                }
                Item::Covered(range, read_at) => {
                    let cursor = self.cursor.as_mut().ok_or_else(|| corrupt("a range came before a position"))?;
                    // No barrier: nothing that was folded so far touches the range, since it was not covered.
                    if !cursor.coverage.cover(range, *read_at) {
                        return Err(corrupt("an equal range meets what is covered already"));
                    }
                    complete(cursor);
                }
                Item::Checkpoints(_) | Item::Probed(_) => {}
            }
            if let Some((log, cursor)) = log.as_mut().zip(self.cursor.as_ref()) {
                log.follow(item.record(), cursor);
            }
        }
        fold.flush(&mut out)?;
        for content in late {
            fold.replace(&content.range, content.entries.clone(), &mut out)?;
        }
        let Some(cursor) = self.cursor.clone().filter(|_| !items.is_empty()) else { return Ok(None) };
        for position in items.iter().flat_map(Item::checkpoints) {
            let checkpoint = Checkpoint::at(*position);
            out.put(Keyspace::Meta, checkpoint.key(), checkpoint.to_bytes())?;
        }
        for position in items.iter().filter_map(Item::checkpoint) {
            let kept = log.as_ref().and_then(|log| log.checkpoint(position.seq));
            let checkpoint = kept.unwrap_or_else(|| Checkpoint::at(position));
            out.put(Keyspace::Meta, checkpoint.key(), checkpoint.to_bytes())?;
            for key in checkpoint.expired_keys() {
                out.delete(Keyspace::Meta, key)?;
            }
        }
        let log = match log.map(|log| log.finish(&mut out)).transpose()? {
            Some((keeping, log)) => {
                self.keeping = Some(keeping);
                log
            }
            None => None,
        };
        if displacing.is_some() && cursor.coverage.is_complete() {
            out.delete(Keyspace::Meta, Resync::KEY)?;
            self.resync = None;
        }
        if !planted::is(Bug::CursorLeftOut) {
            out.set_cursor(&self.link, &cursor);
        }
        self.stored = Some(cursor.to_bytes());
        self.received += records_bytes(&items);
        let time = items.iter().rev().find_map(Item::time);
        let displacing = displacing.filter(|_| !contents.is_empty()).map(|resync| Displacing { resync, contents });
        Ok(Some(Group { displacing, writes: out.build(), cursor, records, bytes, received: self.received, time, log }))
    }

    fn push(&mut self, item: Item) {
        self.pending_bytes += item.byte_len();
        self.pending.push_back(item);
    }

    fn take_items(&mut self) -> Vec<Item> {
        let mut items = Vec::new();
        let (mut bytes, mut operations) = (0, 0);
        while let Some(item) = self.pending.front() {
            if matches!(item, Item::Probed(_)) {
                break;
            }
            let len = item.byte_len();
            // Nobody counts them where there may be any number.
            let more = if self.most_operations == usize::MAX { 0 } else { item.operations() };
            if !items.is_empty() && (bytes + len > self.target || operations + more > self.most_operations) {
                if planted::is(Bug::GroupIsTorn) {
                    self.pending_bytes -= len;
                    self.pending.pop_front();
                }
                break;
            }
            bytes += len;
            operations += more;
            items.extend(self.pending.pop_front());
        }
        self.pending_bytes -= bytes;
        items
    }
}

impl Item {
    fn byte_len(&self) -> usize {
        match self {
            Self::Begin(_) | Self::Resync(..) => 0,
            Self::Record(record) => record.byte_len(),
            Self::Portion(portion) => portion.byte_len(),
            Self::Content(content) => content.entries.byte_len(),
            Self::Touched(touched) => touched.ops.byte_len(),
            Self::Covered(range, _) => Applier::covered_len(range),
            Self::Checkpoints(_) => 0,
            Self::Probed(probed) => probed.byte_len(),
        }
    }

    fn operations(&self) -> usize {
        match self {
            Self::Record(record) => operations(record.body()),
            Self::Portion(portion) => operations(&portion.ops),
            Self::Content(content) => operations(&content.entries),
            Self::Touched(touched) => operations(&touched.ops),
            Self::Begin(_) | Self::Resync(..) | Self::Covered(..) | Self::Checkpoints(_) | Self::Probed(_) => 0,
        }
    }

    fn record(&self) -> Option<&Record> {
        match self {
            Self::Record(record) => Some(record),
            _ => None,
        }
    }

    fn checkpoints(&self) -> &[Position] {
        match self {
            Self::Checkpoints(checkpoints) => checkpoints,
            _ => &[],
        }
    }

    fn time(&self) -> Option<u64> {
        match self {
            Self::Record(record) => Some(record.header().time),
            Self::Portion(portion) => Some(portion.time),
            _ => None,
        }
    }

    fn checkpoint(&self) -> Option<Position> {
        match self {
            Self::Record(record) if Checkpoint::is_due(record.position().seq) => Some(record.position()),
            Self::Portion(portion) if Checkpoint::is_due(portion.position.seq) => Some(portion.position),
            Self::Touched(touched) => touched.end.filter(|end| Checkpoint::is_due(end.seq)),
            _ => None,
        }
    }
}

fn operations(ops: &EncodedOps) -> usize {
    let of_part = |part| match part {
        OpsPart::Put(_) => 1,
        OpsPart::Ops(ops) => ops.count(),
    };
    ops.parts().map(of_part).sum()
}

fn records_bytes(items: &[Item]) -> u64 {
    let bytes = |item: &Item| match item {
        Item::Record(record) => record.byte_len() as u64,
        Item::Portion(portion) => portion.log_bytes,
        _ => 0,
    };
    items.iter().map(bytes).sum()
}

fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt { what: what.into() }
}

// Everything is copied, and the stream has passed the last moment of reading: from here on the data is a state of the
// master, and the coverage says no more.
fn complete(cursor: &mut Cursor) {
    let done = cursor.is_consistent() || (planted::is(Bug::ConsistentTooEarly) && cursor.coverage.rest().is_none());
    if done && !cursor.coverage.is_complete() {
        cursor.coverage = Coverage::default();
    }
}

fn fold_all<'a>(ops: &'a EncodedOps, fold: &mut Fold<'a>, out: &mut WriteSetBuilder) -> Result<(), StoreError> {
    for part in ops.parts() {
        match part {
            OpsPart::Put(put) => fold.put_large(put, out)?,
            OpsPart::Ops(ops) => {
                for op in ops {
                    match op {
                        Op::Put { key, value } => fold.put(key, value),
                        Op::Delete { key } => fold.delete(key),
                        Op::DeleteRange { start, end } => fold.delete_range(&range(start, end), out)?,
                    }
                }
            }
        }
    }
    Ok(())
}

// What lies outside the copied ranges is left to the copy, which reads it later than this record.
fn fold_covered<'a>(
    ops: &'a EncodedOps,
    coverage: &Coverage,
    fold: &mut Fold<'a>,
    out: &mut WriteSetBuilder,
) -> Result<(), StoreError> {
    for part in ops.parts() {
        match part {
            OpsPart::Put(put) if coverage.covers(put.key()) => fold.put_large(put, out)?,
            OpsPart::Put(_) => {}
            OpsPart::Ops(ops) => {
                for op in ops {
                    match op {
                        Op::Put { key, value } if coverage.covers(key) || planted::is(Bug::UncoveredIsApplied) => {
                            fold.put(key, value);
                        }
                        Op::Delete { key } if coverage.covers(key) => fold.delete(key),
                        Op::DeleteRange { start, end } if planted::is(Bug::RangeDeleteNotClipped) => {
                            fold.delete_range(&range(start, end), out)?;
                        }
                        Op::DeleteRange { start, end } => {
                            for part in coverage.clip(&range(start, end)) {
                                fold.delete_range(&part, out)?;
                            }
                        }
                        Op::Put { .. } | Op::Delete { .. } => {}
                    }
                }
            }
        }
    }
    Ok(())
}

fn range(start: &[u8], end: Option<&[u8]>) -> KeyRange {
    KeyRange::new(Bytes::copy_from_slice(start), end.map(Bytes::copy_from_slice))
}

/// How far a slave is, as it tells its master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// The last record whose group is readable.
    pub applied: Seq,
    /// The last record whose group is on stable storage.
    pub durable: Seq,
    /// Whether the data is a state of the master.
    pub consistent: bool,
}
